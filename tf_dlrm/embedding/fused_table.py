"""`FusedTable`: tables of equal width as one variable, and the state of its rows."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import bags, engines, penalties
from tf_dlrm.embedding.engines import (
    Engine,
    PlainEngine,
    PooledGradients,
    Step,
    all_rows,
)
from tf_dlrm.embedding.engines.engine import TrainedPart
from tf_dlrm.embedding.scaled_rows import ScaledOptimizer
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime import huge_pages, xla
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.types import Ids


class FusedTable:
    """One variable with the rows of several tables and a null row at the end.

    Args:
        width: Embedding dim of the tables.
        tables: The tables to fuse.
        all_tables: All tables of the collection, which give the positions of features.

    Attributes:
        variable: Variable `(rows of all tables + 1, width)`; the owner sets it.
        parts: A `TrainedPart` for each optimizer.
        slots: All slot variables, by slot name, width and number of the part.
    """

    def __init__(
        self,
        width: int,
        tables: Sequence[EmbeddingTable],
        all_tables: Sequence[EmbeddingTable],
    ) -> None:
        self.width, self.tables = width, tuple(tables)
        self.by_name = {table.name: table for table in tables}
        sizes = np.array([table.vocabulary_size for table in tables], np.int64)
        first_rows = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.first_row = {t.name: int(row) for t, row in zip(tables, first_rows)}
        self.num_rows = int(sizes.sum())
        self.null_row = self.num_rows
        self.row_dtype = row_ops.row_dtype(self.num_rows + 1)
        owners = [table for table in all_tables for _ in table.features]
        self.columns = [i for i, t in enumerate(owners) if t.embedding_dim == width]
        self.owners = [owners[column] for column in self.columns]
        self.places = bags.Places(
            sizes=np.array([table.vocabulary_size for table in self.owners]),
            offsets=np.array([self.first_row[table.name] for table in self.owners]),
            combiners=[table.combiner for table in self.owners],
            null_row=self.null_row,
            row_dtype=self.row_dtype,
        )
        self.variable: tf.Variable = None
        # The columns of the gradients that are stored here, if tables are split.
        self.gradient_columns = slice(None)
        self.parts: list[TrainedPart] = []
        self.slots: dict[str, tf.Variable] = {}
        self._regularizers = penalties.by_regularizer(tables)
        self.engine: Engine = engines.choose()(self)

    def choose_engine(self) -> None:
        """Choose the engine again, after XLA was enabled or disabled."""
        kind = engines.choose()
        if type(self.engine) is not kind:
            self.engine = kind(self)
            self.engine.build_optimizer()

    # Forward

    def lookup(
        self,
        ids: Ids,
        weights: tf.Tensor | None,
        columns: Sequence[int] | None = None,
    ) -> bags.Lookup:
        """Find the rows of standardized ids of this table's features.

        Args:
            ids: The ids.
            weights: Standardized weights of the ids, or `None`.
            columns: Columns of the ids; default: all columns of this table.
        """
        places = self.places
        if columns is not None and len(columns) < len(self.columns):
            indices = [self.columns.index(column) for column in columns]
            places = places._replace(
                sizes=places.sizes[indices],
                offsets=places.offsets[indices],
                combiners=[places.combiners[i] for i in indices],
            )
        return bags.make_lookup(ids, weights, places)

    def pool(
        self, ids: Ids, weights: tf.Tensor | None, call: "Call"
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Look up and pool standardized ids.

        Args:
            ids: Standardized ids of this table's features.
            weights: Standardized weights of the ids, or `None`.
            call: The call of the layer. It stays alive while its gradient may be
                requested.

        Returns:
            The pooled vectors, `(B, F, D)`, and whether any id is out of range, a bool
            scalar tensor. Ids out of range are ignored.
        """

        def read(handle, weights=weights):
            return self.engine.pool(handle, ids, weights)

        def gradients(upstream):
            lookup = self.lookup(ids, weights)
            rows, row_gradients = lookup.unpool(upstream)
            table_gradient = row_ops.unique_slices(
                self.variable,
                self._null_if_frozen(rows),
                row_gradients,
                self.null_row,
                call.sparse_gradient,
            )
            if weights is None:
                return table_gradient, None
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(weights)
                lookup = self.lookup(ids, weights)
                pooled = lookup.pool(row_ops.gather(self.variable, lookup.rows))
            return table_gradient, tape.gradient(pooled, weights, upstream)

        pooled, bad = row_ops.read_for_any_optimizer(
            read, self.variable, weights, gradients
        )
        return self.scaled(pooled), bad

    def _scales(self, tables):
        """Return the scale of the stored rows of each table; `None` if all are 1."""
        scales = {
            name: tf.cast(part.optimizer.scale, tf.float32)
            for part in self.parts
            if isinstance(part.optimizer, ScaledOptimizer)
            for name in part.first_slot_row
        }
        if not scales:
            return None
        return tf.stack([scales.get(table.name, 1.0) for table in tables])

    def scaled(
        self, pooled: tf.Tensor, columns: Sequence[int] | None = None
    ) -> tf.Tensor:
        """Return pooled vectors of stored rows, times the scales of the rows.

        Exported models hold settled rows and no scales.

        Args:
            pooled: `(B, F, D)`.
            columns: The columns of the ids; default: all columns of this table.
        """
        if xla.is_for_servers():
            return pooled
        owners = self.owners
        if columns is not None:
            owners = [owners[self.columns.index(column)] for column in columns]
        scales = self._scales(owners)
        return pooled if scales is None else pooled * scales[:, None]

    def scale_rows(self, optimizer: ScaledOptimizer) -> None:
        """Multiply the stored rows of an optimizer by its scale."""
        for part in self.parts:
            if part.optimizer is optimizer:
                scale = tf.cast(optimizer.scale, tf.float32)
                all_rows.multiply(part, all_rows.segments_of(part, self), scale)

    @property
    def is_penalized(self) -> bool:
        """True if any trainable table has a regularizer."""
        return bool(self._regularizers)

    def penalty(self, ids: Ids) -> tf.Tensor:
        """Return the penalty on the distinct rows of standardized ids, a scalar.

        Its gradient is dense: slow, but correct for any optimizer.
        """
        unique, _ = tf.unique(tf.reshape(self.lookup(ids, None).rows, (-1,)))
        table = self.table_of(unique)
        total, scales = tf.zeros(()), self._scales(self.tables)
        for regularizer, names in self._regularizers:
            is_own = tf.constant([*(t.name in names for t in self.tables), False])
            is_own = tf.gather(is_own, table)
            values = self._read_unique(tf.boolean_mask(unique, is_own))
            if scales is not None:
                own_scales = tf.gather(scales, tf.boolean_mask(table, is_own))
                values *= own_scales[:, None]
            total += penalties.value(regularizer, values)
        return total

    def _read_unique(self, rows):
        values, _ = row_ops.read_for_any_optimizer(
            lambda handle: (row_ops.gather_from(handle, rows, self.width), rows),
            self.variable,
            None,
            lambda upstream: (
                row_ops.unique_slices(
                    self.variable, rows, upstream, self.null_row, sparse=False
                ),
                None,
            ),
        )
        return values

    # Training

    def build_optimizer(
        self,
        optimizers: dict[str, SparseOptimizer],
        copies: Sequence["FusedTable"] = (),
    ) -> None:
        """Create the slots, mirrored if the strategy mirrors variables.

        Args:
            optimizers: Names of the trainable tables to their optimizers.
            copies: The `FusedTable`s of the same tables in the other replicas. Each
                gets its own copy of the mirrored slots.
        """
        everywhere = (self, *copies)
        parts: list[list[TrainedPart]] = [[] for _ in everywhere]
        self.slots = {}
        distinct = {id(o): o for o in optimizers.values()}.values()
        for number, optimizer in enumerate(distinct):
            first_slot_row, num_rows = {}, 0
            for table in self.tables:
                if optimizers.get(table.name) is optimizer:
                    first_slot_row[table.name] = num_rows
                    num_rows += table.vocabulary_size
            slots: list[dict[str, tf.Variable]] = [{} for _ in everywhere]
            for name, (width, value) in optimizer.slots(self.width).items():
                variable = tf.Variable(
                    tf.fill((num_rows + 1, width), tf.constant(value, tf.float32)),
                    trainable=False,
                    name=f"{name}_{self.width}",
                )
                self.slots[f"{name}_{self.width}_{number}"] = variable
                for own, slot in zip(slots, row_ops.local_variables(variable)):
                    huge_pages.use_for(slot)
                    own[name] = slot
            for fused, own_parts, own in zip(everywhere, parts, slots):
                columns = fused.gradient_columns
                part = TrainedPart(
                    optimizer, fused.variable, own, first_slot_row, columns
                )
                own_parts.append(part)
        for fused, own_parts in zip(everywhere, parts):
            fused.parts = own_parts
            fused.engine.build_optimizer()

    def update(self, batch: PooledGradients, step: Step) -> None:
        """Update each table with its optimizer from the gradients of pooled bags."""
        self.engine.update(batch, step)

    def update_rows(self, rows: tf.Tensor, gradients: tf.Tensor, step: Step) -> None:
        """Update rows `(V,)` from gradients `(V, D)` with TensorFlow's operations.

        The dense sums of copies (`sharding/exchange.py`) use this with any engine.
        """
        PlainEngine(self).update_rows(self.parts, rows, gradients, step)

    def start_rows(self, rows: tf.Tensor, values: tf.Tensor) -> None:
        """Overwrite distinct rows `(n,)`; their slots get their initial values."""
        rows = tf.cast(rows, self.row_dtype)
        scales = self._scales(self.tables)
        if scales is not None:
            values /= tf.gather(scales, self.table_of(rows))[:, None]
        row_ops.replace(self.variable, rows, values)
        for part in self.parts:
            own = rows
            if len(part.first_slot_row) < len(self.tables):
                belongs = tf.gather(self.belongs_to(part), self.table_of(rows))
                own = tf.boolean_mask(rows, belongs)
            own = self.slot_rows(part, own)
            for name, (width, value) in part.optimizer.slots(self.width).items():
                state = tf.fill((tf.size(own), width), tf.constant(value, tf.float32))
                row_ops.replace(part.slots[name], own, state)

    def slot_names(self, name: str) -> list[str]:
        """Return the names of a table's slots, which exist after `build_optimizer`."""
        return [s for p in self.parts if name in p.first_slot_row for s in p.slots]

    def find_slot(self, name: str, slot: str) -> tuple[tf.Variable, int]:
        """Return the variable of a table's slot, and the table's first row in it.

        Raises:
            ValueError: If the table has no such slot.
        """
        for part in self.parts:
            if name in part.first_slot_row and slot in part.slots:
                return part.slots[slot], part.first_slot_row[name]
        raise ValueError(
            f"Table '{name}' has no optimizer slot '{slot}'. Slots: "
            f"{self.slot_names(name)}"
        )

    # Mapping of rows to slot rows if tables have different optimizers. Bisection finds
    # the table of a row. The null row counts as one more table, which is in no part.

    def _null_if_frozen(self, rows):
        if all(table.trainable for table in self.tables):
            return rows
        trainable = tf.constant([*(table.trainable for table in self.tables), True])
        null_row = tf.constant(self.null_row, rows.dtype)
        return tf.where(tf.gather(trainable, self.table_of(rows)), rows, null_row)

    def table_of(self, rows: tf.Tensor) -> tf.Tensor:
        """Return the index of the table of each row."""
        ends = np.cumsum([table.vocabulary_size for table in self.tables])
        ends = tf.constant(ends, self.row_dtype)
        return tf.searchsorted(ends, rows, side="right")

    def belongs_to(self, part: TrainedPart) -> tf.Tensor:
        """Return whether a part has each table, and `False` for the null row, bool."""
        flags = [table.name in part.first_slot_row for table in self.tables]
        return tf.constant([*flags, False])

    def slot_rows(self, part: TrainedPart, rows: tf.Tensor) -> tf.Tensor:
        """Return the rows in a part's slots for rows of the part's tables."""
        if len(part.first_slot_row) == len(self.tables):
            return rows
        shifts = [
            part.first_slot_row.get(table.name, 0) - self.first_row[table.name]
            for table in self.tables
        ]
        shifts = tf.constant([*shifts, 0], self.row_dtype)
        return rows + tf.gather(shifts, self.table_of(rows))


class Call:
    """One call of a layer, alive while its gradient may be requested.

    Attributes:
        sparse_gradient: Whether the gradients of the variables are `tf.IndexedSlices`.
    """

    def __init__(self, sparse_gradient: bool = True) -> None:
        self.sparse_gradient = sparse_gradient
