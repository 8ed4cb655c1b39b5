"""Tables of equal width as one variable, and the optimizer state of its rows."""

import dataclasses
import functools

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import bag_kernels, bags, id_ranges, row_updates
from tf_dlrm.runtime import huge_pages, xla
from tf_dlrm.runtime import rows as row_ops

_LONG_PART, _SHORT_PART = 8, 2  # values summed at a time: bags of many ids, of few


@dataclasses.dataclass
class _Part:
    """The tables of a fused variable that one optimizer trains, and its slots.

    Slot variables hold the part's tables one under the other and then a null row, as
    the fused variable does with all tables.
    """

    optimizer: object
    first_slot_row: dict
    slots: dict
    flatten: xla.Kernel | None = None
    write_small: xla.Kernel | None = None
    write_large: xla.Kernel | None = None


class FusedTable:
    """One variable with the rows of several tables and a null row at the end.

    Args:
        width: Embedding dim of the tables.
        tables: The tables fused here.
        all_tables: All tables of the collection, for the places of the features.
    """

    def __init__(self, width, tables, all_tables):
        self.width, self.tables = width, tables
        self.by_name = {table.name: table for table in tables}
        sizes = np.array([table.vocabulary_size for table in tables], np.int64)
        firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.first_row = {t.name: int(row) for t, row in zip(tables, firsts)}
        self.num_rows = int(sizes.sum())
        self.null_row = self.num_rows
        self.row_dtype = row_ops.row_dtype(self.num_rows + 1)
        owners = [table for table in all_tables for _ in table.features]
        self.columns = [i for i, t in enumerate(owners) if t.embedding_dim == width]
        self._features = [owners[column] for column in self.columns]
        self.places = bags.Places(
            sizes=np.array([table.vocabulary_size for table in self._features]),
            offsets=np.array([self.first_row[table.name] for table in self._features]),
            combiners=[table.combiner for table in self._features],
            null_row=self.null_row,
            row_dtype=self.row_dtype,
        )
        self.variable = None
        # Of a table that is split by columns, those that lie here of the gradients.
        self.gradient_columns = slice(None)
        self.slots = {}  # all, by slot, width and number of the part
        self._parts: list[_Part] = []
        self._one_hot_kernel = xla.Kernel(self._pool_one_hot, "embedding_lookup")
        self._bag_kernels = {
            (lowest, part): xla.Kernel(
                lambda handle, *packed, lowest=lowest, part=part: self._pool_bags(
                    handle, packed, lowest, part
                ),
                "embedding_lookup",
            )
            for lowest in (0, -1)
            for part in (_LONG_PART, _SHORT_PART)
        }

    # Forward

    def lookup(self, ids, weights, columns=None) -> bags.Lookup:
        """Finds the rows of standardized ids of this table's features.

        Args:
            ids: The ids.
            weights: Their standardized weights, or `None`.
            columns: The columns that the ids are of; `None` for all of this table.
        """
        places = self.places
        if columns is not None and len(columns) < len(self.columns):
            chosen = [self.columns.index(column) for column in columns]
            places = places._replace(
                sizes=places.sizes[chosen],
                offsets=places.offsets[chosen],
                combiners=[places.combiners[i] for i in chosen],
            )
        return bags.make_lookup(ids, weights, places)

    def pool(self, ids, weights, call):
        """Looks up and pools standardized ids.

        Args:
            ids: Standardized ids of this table's features.
            weights: Their standardized weights, or `None`.
            call: Object whose `sparse_gradient` says whether the variable's gradient
                is `tf.IndexedSlices`. It lives as long as that may be asked for.

        Returns:
            `(B, F, D)`, and whether an id is out of range (bool scalar tensor), which
            then counts as no id.
        """

        def read(handle, weights=weights):
            if xla.enabled():
                return self._pool_compiled(handle, ids, weights)
            lookup = self.lookup(ids, weights)
            read_rows = row_ops.gather_from(handle, lookup.rows, self.width)
            return lookup.pool(read_rows), id_ranges.any_out_of_range(
                ids, self.places.sizes
            )

        def gradients(upstream):
            lookup = self.lookup(ids, weights)
            rows, of_rows = lookup.unpool(upstream)
            of_table = row_ops.unique_slices(
                self.variable,
                self._null_if_frozen(rows),
                of_rows,
                self.null_row,
                call.sparse_gradient,
            )
            if weights is None:
                return of_table, None
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                lookup = self.lookup(ids, weights)
                pooled = lookup.pool(row_ops.gather(self.variable, lookup.rows))
            return of_table, tape.gradient(pooled, weights, upstream)

        return row_ops.read_for_any_optimizer(read, self.variable, weights, gradients)

    def _pool_compiled(self, handle, ids, weights):
        packed = bag_kernels.pack(ids, weights, len(self.columns))
        if packed.splits is None:
            pooled, bad = self._one_hot_kernel(handle, *packed, compiled=True)
        else:
            lowest = 0 if isinstance(ids, tf.RaggedTensor) else -1
            pooled, bad = self._pool_packed_bags(handle, packed, lowest)
        return pooled[: bags.num_examples(ids, len(self.columns))], bad

    def _pool_packed_bags(self, handle, packed, lowest):
        """With the kernel for long bags or for short ones, whichever they are."""
        num_values, num_bags = tf.shape(packed.ids)[0], tf.shape(packed.splits)[0] - 1
        long, short = (
            self._bag_kernels[lowest, part] for part in (_LONG_PART, _SHORT_PART)
        )
        pooled, bad = tf.cond(
            num_values > 2 * num_bags,
            lambda: long(handle, *packed, compiled=True),
            lambda: short(handle, *packed, compiled=True),
        )
        return tf.ensure_shape(pooled, (None, len(self.columns), self.width)), bad

    def _pool_one_hot(self, handle, *packed):
        return bag_kernels.pool_one_hot(
            lambda rows: row_ops.gather_from(handle, rows, self.width),
            bag_kernels.PackedIds(*packed),
            self.places,
        )

    def _pool_bags(self, handle, packed, lowest, part):
        return bag_kernels.pool_bags(
            lambda rows: row_ops.gather_from(handle, rows, self.width),
            bag_kernels.PackedIds(*packed),
            self.places,
            lowest,
            part,
        )

    # Training

    def build_optimizer(self, optimizers: dict, copies=()) -> None:
        """Creates the slots, mirrored where a strategy mirrors variables.

        Args:
            optimizers: Maps the name of each table that is trained to its optimizer.
            copies: The `FusedTable`s of the same tables in the other replicas, each
                of which gets its own of the mirrored slots.
        """
        everywhere = (self, *copies)
        for table in everywhere:
            table._parts = []
        self.slots = {}
        for optimizer in {id(o): o for o in optimizers.values()}.values():
            tables = [t for t in self.tables if optimizers.get(t.name) is optimizer]
            first_slot_row, num_rows = {}, 0
            for table in tables:
                first_slot_row[table.name] = num_rows
                num_rows += table.vocabulary_size
            slots = [{} for _ in everywhere]
            for name, (width, value) in optimizer.slots(self.width).items():
                variable = tf.Variable(
                    tf.fill((num_rows + 1, width), tf.constant(value, tf.float32)),
                    trainable=False,
                    name=f"{name}_{self.width}",
                )
                self.slots[f"{name}_{self.width}_{len(self._parts)}"] = variable
                for each, slot in zip(slots, row_ops.local_variables(variable)):
                    huge_pages.use_for(slot)
                    each[name] = slot
            for table, own in zip(everywhere, slots):
                part = _Part(optimizer, first_slot_row, own)
                if optimizer.is_linear or own:
                    table._make_kernels(part)
                table._parts.append(part)

    def update(self, ids, weights, gradients, rates, step) -> None:
        """Applies the gradients of pooled bags by each table's optimizer.

        Args:
            ids: Standardized ids of this table's features.
            weights: Their standardized weights, or `None`.
            gradients: `(B, F, D)` float32; wider where `gradient_columns` says which
                of its columns lie here.
            rates: Learning rate by id of the optimizer.
            step: Number of this step, from 1; int64 scalar tensor.
        """
        compiled = []
        if xla.enabled():
            compiled = [part for part in self._parts if part.flatten is not None]
        if compiled:
            packed = bag_kernels.pack(ids, weights, len(self.columns))
            width = gradients.shape[-1]
            flat_gradients = tf.reshape(xla.pad_rows(gradients), (-1, width))
        for part in compiled:
            rate = rates[id(part.optimizer)]
            check = None if part.optimizer.is_linear else _check_count(ids)
            with tf.control_dependencies([] if check is None else [check]):
                self._update_compiled(part, packed, flat_gradients, rate, step)
        others = [part for part in self._parts if part not in compiled]
        if others:
            rows, gradients = self.lookup(ids, weights).unpool(gradients)
            self.update_rows(rows, gradients, rates, step, others)

    def _update_compiled(self, part, packed, gradients, rate, step):
        num_values = packed.ids.shape.num_elements()
        if num_values is None:
            num_values = tf.size(packed.ids)
        flat, saved = part.flatten(*packed, compiled=True)
        arguments = (flat, saved, gradients, rate, step)
        small = row_updates.is_small(num_values, gradients.shape[-1])
        if isinstance(small, bool):
            write = part.write_small if small else part.write_large
            write(*arguments, compiled=True)
            return

        def written(kernel):
            kernel(*arguments, compiled=True)
            return tf.constant(True)

        tf.cond(
            small,
            lambda: written(part.write_small),
            lambda: written(part.write_large),
        )

    def _make_kernels(self, part):
        slot_offsets = np.array(
            [part.first_slot_row.get(table.name, -1) for table in self._features]
        )

        def flatten(*packed):
            flat = bag_kernels.flatten(
                bag_kernels.PackedIds(*packed), self.places, slot_offsets
            )
            if part.optimizer.is_linear:
                return flat, None
            return flat, row_updates.first_column(part.slots, flat)

        def write(flat, saved, gradients, rate, step, small):
            row_updates.update_compiled(
                part.optimizer,
                self.variable,
                part.slots,
                flat,
                gradients,
                saved,
                rate,
                step,
                small,
                self.gradient_columns,
            )

        def kernel(function, **options):
            bound = functools.partial(function, **options) if options else function
            return xla.Kernel(bound, "embedding_update")

        part.flatten = kernel(flatten)
        part.write_small = kernel(write, small=True)
        part.write_large = kernel(write, small=False)

    def update_rows(self, rows, gradients, rates, step, parts=None) -> None:
        """Applies gradients of rows.

        Args:
            rows: `(V,)` rows of the variable, repeated as they come.
            gradients: `(V, D)` float32.
            rates: As of `update`.
            step: As of `update`.
            parts: The parts that are updated; `None` for all.
        """
        for part in self._parts if parts is None else parts:
            part_rows, part_gradients = rows, gradients
            if len(part.first_slot_row) < len(self.tables):
                of_part = tf.gather(self._belongs_to(part), self._table_of(rows))
                part_rows = tf.boolean_mask(rows, of_part)
                part_gradients = tf.boolean_mask(gradients, of_part)
            row_updates.update_plain(
                part.optimizer,
                self.variable,
                part.slots,
                part_rows,
                part_gradients,
                rates[id(part.optimizer)],
                step,
                lambda unique, part=part: self._slot_rows(part, unique),
                self.gradient_columns,
            )
        # Missing ids sent their gradients here, which is cheaper than masking them.
        null = tf.constant([self.null_row], self.row_dtype)
        row_ops.replace(self.variable, null, tf.zeros((1, self.width)))

    def slot_names(self, name: str) -> list[str]:
        """Names of the slots of a table; none before `build_optimizer`."""
        return [s for p in self._parts if name in p.first_slot_row for s in p.slots]

    def find_slot(self, name: str, slot: str):
        """The variable of a table's slot and the table's first row in it."""
        for part in self._parts:
            if name in part.first_slot_row and slot in part.slots:
                return part.slots[slot], part.first_slot_row[name]
        raise ValueError(
            f"Table '{name}' has no optimizer slot '{slot}'. Slots: "
            f"{self.slot_names(name)}"
        )

    # Rows to slots where tables have different optimizers. The table of a row is
    # found by bisection; the null row is one table further and belongs to no part.

    def _null_if_frozen(self, rows):
        if all(table.trainable for table in self.tables):
            return rows
        trainable = tf.constant([*(table.trainable for table in self.tables), True])
        null_row = tf.constant(self.null_row, rows.dtype)
        return tf.where(tf.gather(trainable, self._table_of(rows)), rows, null_row)

    def _table_of(self, rows):
        ends = np.cumsum([table.vocabulary_size for table in self.tables])
        ends = tf.constant(ends, self.row_dtype)
        return tf.searchsorted(ends, rows, side="right")

    def _belongs_to(self, part):
        flags = [table.name in part.first_slot_row for table in self.tables]
        return tf.constant([*flags, False])

    def _slot_rows(self, part, rows):
        if len(part.first_slot_row) == len(self.tables):
            return rows
        shifts = [
            part.first_slot_row.get(table.name, 0) - self.first_row[table.name]
            for table in self.tables
        ]
        shifts = tf.constant([*shifts, 0], self.row_dtype)
        return rows + tf.gather(shifts, self._table_of(rows))


def _check_count(ids):
    """Raises where positions of values would not be exact in float32 state.

    Returns:
        What the update waits for; `None` where the number was known and in order.
    """
    values = ids.values if isinstance(ids, tf.RaggedTensor) else ids
    limit = row_updates.MAX_VALUES
    message = f"A batch may have at most {limit:,} ids of tables of one width."
    num_values = values.shape.num_elements()
    if num_values is None:
        num_values = tf.size(values, tf.int64)
        return tf.debugging.Assert(
            num_values <= limit, [message, "Received:", num_values]
        )
    if num_values > limit:
        raise ValueError(f"{message} Received: {num_values:,}")
    return None
