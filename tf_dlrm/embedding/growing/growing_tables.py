"""`GrowingTables`: the ids of a layer's growing tables, and the step that claims rows.

Ids become rows before the lookup. Everything behind it (engines, optimizers, shards)
sees rows only.

# V values of the global batch, n distinct new ids, T growing tables
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.embedding.growing import claims, hashes
from tf_dlrm.embedding.growing.admission import Admission
from tf_dlrm.embedding.growing.keyed_rows import KeyedRows
from tf_dlrm.embedding.growing.slots import EMPTY, SlotRules, Slots
from tf_dlrm.embedding.growing.translation import Translation
from tf_dlrm.embedding.table_store import TableStore
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.growing_ids import GrowingIds
from tf_dlrm.runtime import replicas
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Ids

COUNTERS = ("lookups", "claims", "evictions", "not_admitted", "fallbacks")


class GrowingTables:
    """The ids of growing tables, whose rows are in a `TableStore`.

    The slots of all tables are variables on the first device, 24 bytes a slot. Claims
    are made there for the global batch, so that they do not depend on the devices.

    Args:
        store: The store of all tables of the layer.

    Attributes:
        tables: The growing tables.
        slots: Their `Slots`.
        admission: Their `Admission`.
        clock: Number of training steps so far, int64 scalar.
        counters: Numbers since the layer was created, int64 `(T, 5)`, see `COUNTERS`.
        expired_before: Step before which ids have expired in event time, int64 `(T,)`.
        protection: The protected ids.
        evicted: Ids and tables that lost their slots in the last step.
    """

    def __init__(self, store: TableStore) -> None:
        self._store = store
        pairs = [(table, table.growing) for table in store.tables]
        own = [(table, rules) for table, rules in pairs if rules is not None]
        self.tables: tuple[EmbeddingTable, ...] = tuple(table for table, _ in own)
        self.rules: tuple[GrowingIds, ...] = tuple(rules for _, rules in own)
        self.number = {table.name: i for i, table in enumerate(self.tables)}
        self.slots = Slots(
            [
                SlotRules(
                    rules.num_slots(table.vocabulary_size),
                    rules.max_probes,
                    rules.evict,
                    rules.expire_after_steps,
                )
                for table, rules in own
            ]
        )
        self.admission = Admission(self.tables)
        self.keyed_rows = KeyedRows(self.tables)
        owners = [table for table in store.tables for _ in table.features]
        self._translation = Translation([self.number.get(t.name, -1) for t in owners])
        # Number of each growing table among all tables
        names = [table.name for table in store.tables]
        self._places = np.array([names.index(t.name) for t in self.tables], np.int32)
        self._num_shared = np.array(
            [rules.num_shared(table.vocabulary_size) for table, rules in own], np.int64
        )
        self._grows = np.array([table.trainable for table in self.tables])
        self._has_time = any(rules.expire_after_seconds for rules in self.rules)

    def build(self, layer: keras.layers.Layer) -> None:
        """Create the variables and attach them to `layer` for checkpoints."""
        if replicas.place().num_workers > 1:
            raise UserError(
                "Growing tables cannot be trained by several workers yet. Train them "
                "in one process, or give the tables a fixed vocabulary."
            )
        replicas.on_device(self._store.devices[0], self._make_variables)
        layer._growing = state = tf.Module()
        for name, variable in self.variables.items():
            setattr(state, name, variable)
        self.start_shared_rows(list(self.number))

    def _make_variables(self):
        num_tables = len(self.tables)
        self.slots.build("slots")
        self.admission.build()

        def make(values, name, shape=None):
            return tf.Variable(values, trainable=False, name=name, shape=shape)

        self.clock = make(tf.zeros((), tf.int64), "clock")
        zeros = tf.zeros((num_tables, len(COUNTERS)), tf.int64)
        self.counters = make(zeros, "counters")
        self.expired_before = make(tf.zeros((num_tables,), tf.int64), "expired_before")
        none = tf.zeros((0,), tf.int64)
        self.moments = make(tf.zeros((0, 2), tf.int64), "moments", (None, 2))
        self.protection = claims.Protection(
            make(none, "protected", (None,)),
            make(tf.zeros((0, num_tables), tf.bool), "protects", (None, num_tables)),
        )
        self.evicted = tuple(make(none, f"evicted_{i}", (None,)) for i in range(2))

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The variables of the state, by name."""
        found = {f"slots_{k}": v for k, v in self.slots.variables.items()}
        counting, sketches = self.admission.counting, self.admission.sketches
        if counting is not None:
            found |= {f"counting_{k}": v for k, v in counting.variables.items()}
        if sketches is not None:
            found |= {"sketch": sketches.cells, "sketch_totals": sketches.totals}
        return found | {
            "clock": self.clock,
            "counters": self.counters,
            "expired_before": self.expired_before,
            "moments": self.moments,
            "protected": self.protection.ids,
            "protects": self.protection.flags,
        }

    def start_shared_rows(self, names: Sequence[str]) -> None:
        """Set shared rows of tables to initial values, keyed by ids below -1."""
        for name in names:
            number = self.number[name]
            table = self.tables[number]
            first = self.rules[number].num_slots(table.vocabulary_size)
            rows = tf.range(first, table.vocabulary_size, dtype=tf.int64)
            if rows.shape[0]:
                self.start_rows(first - rows - 2, tf.fill(rows.shape, number), rows)

    def start_rows(self, ids: tf.Tensor, tables: tf.Tensor, rows: tf.Tensor) -> None:
        """Give rows the initial values of ids, and their optimizer state its own.

        Args:
            ids: int64 `(n,)`.
            tables: Number of the growing table of each id, int32 `(n,)`.
            rows: The row of each id within its table, int64 `(n,)`, distinct.
        """
        places = tf.gather(tf.constant(self._places), tables)

        def initial(columns: range, own: tf.Tensor | None = None) -> tf.Tensor:
            chosen = (
                (ids, tables)
                if own is None
                else (tf.gather(ids, own), tf.gather(tables, own))
            )
            return self.keyed_rows.values(*chosen, columns)

        self._store.start_rows(places, rows, initial)

    # Ids to rows

    def translate(self, ids: Ids, claims_rows: bool, starts_step: bool) -> Ids:
        """Return this replica's ids with rows in the place of ids of growing tables.

        Args:
            ids: Standardized, valid ids of all features.
            claims_rows: Whether new ids claim rows.
            starts_step: Whether this is the first lookup of a training step.
        """
        columns = range(self._store.num_features)
        values, tables, put_back = self._translation.select(ids, columns)

        def run(batches):
            with tf.device(self._store.devices[0]):
                values, tables = (
                    batches[0][key]
                    if len(batches) == 1
                    else tf.concat([batch[key] for batch in batches], 0)
                    for key in ("values", "tables")
                )
                if claims_rows:
                    rows = self._claim(values, tables, starts_step)
                else:
                    rows = self._read(values, tables)
                if len(batches) == 1:
                    return [rows]
                return tf.split(rows, [tf.size(batch["values"]) for batch in batches])

        return put_back(replicas.run_for_all(run, {"values": values, "tables": tables}))

    def read(
        self,
        ids: Ids,
        columns: Sequence[int],
        find: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    ) -> Ids:
        """Return standardized ids with rows in place of ids, for exports.

        Ids out of range become -1.

        Args:
            ids: The ids of the features at `columns`.
            columns: Positions of features.
            find: Function of ids and tables that returns slots; default: `slots.find`.
        """
        values, tables, put_back = self._translation.select(ids, columns)
        slots = (find or self.slots.find)(values, tables)
        return put_back(self._rows(values, tables, slots, raises=False)[0])

    def _read(self, values, tables):
        return self._rows(values, tables, self.slots.find(values, tables))[0]

    def _rows(self, values, tables, slots, raises=True):
        """Return rows, and which values read the fallback, as places `(m,)`."""
        rows = slots
        if len(self.tables) > 1:
            rows -= self.slots.by_table(self.slots.offsets[:-1], tables)
        rows = tf.where(slots >= 0, rows, tf.constant(-1, tf.int64))
        missing = tf.where((slots < 0) & (values >= 0))[:, 0]
        if raises and any(rules.fallback == "error" for rules in self.rules):
            missing = self._refuse_missing(values, tables, missing)
        if self._num_shared.any():
            own = tf.gather(tables, missing)
            shared = self._shared_rows(tf.gather(values, missing), own)
            rows = tf.tensor_scatter_nd_update(rows, missing[:, None], shared)
        return rows, missing

    def _shared_rows(self, ids, tables):
        sizes = tf.gather(tf.constant(self.slots.sizes), tables)
        counts = tf.gather(tf.constant(self._num_shared), tables)
        parts = hashes.quotient(hashes.murmur(ids), sizes)
        shared = sizes + hashes.modulo(parts, tf.maximum(counts, 1))
        return tf.where(counts > 0, shared, tf.constant(-1, tf.int64))

    def _refuse_missing(self, values, tables, missing):
        refuses = tf.constant([rules.fallback == "error" for rules in self.rules])
        names = tf.constant([table.name for table in self.tables])
        bad = tf.boolean_mask(missing, tf.gather(refuses, tf.gather(tables, missing)))
        first = bad[:1]
        message = [
            "An id has no row, and `fallback` of its growing table is 'error'. Table, "
            "id, number of such ids in the batch:",
            tf.gather(names, tf.gather(tables, first)),
            tf.gather(values, first),
            tf.size(bad),
        ]
        check = tf.debugging.Assert(tf.equal(tf.size(bad), 0), message)
        with tf.control_dependencies([] if check is None else [check]):
            return tf.identity(missing)

    # Claims

    def _claim(self, values, tables, starts_step):
        now = self.clock.read_value()
        if starts_step:
            # Not without a batch, at the end of a dataset.
            with tf.control_dependencies([values]):
                now = self.clock.assign_add(1)
            now = tf.identity(now)
            for variable in self.evicted:
                variable.assign(tf.zeros((0,), tf.int64))
        ids, tables, place, counts = self._distinct(values, tables)
        slots = self.slots.find(ids, tables)
        found = tf.where(slots >= 0)[:, 0]
        held, repeats = tf.gather(slots, found), tf.gather(counts, found)
        self.slots.touch(held, now, repeats)
        is_new = (slots < 0) & (ids >= 0)
        if not self._grows.all():
            is_new &= tf.gather(tf.constant(self._grows), tables)
        new = tf.where(is_new)[:, 0]

        def claim():
            # Only the new ones
            own = [tf.gather(x, new) for x in (ids, tables, counts)]
            got = self._claim_new(own[0], own[1], own[2], now)
            return tf.tensor_scatter_nd_update(slots, new[:, None], got)

        slots = tf.cond(tf.size(new) > 0, claim, lambda: tf.identity(slots))
        rows, missing = self._rows(ids, tables, slots)
        is_id = tf.cast(ids >= 0, tf.int64)
        self._count("lookups", tables, counts * is_id)
        self._count("fallbacks", tf.gather(tables, missing), tf.gather(counts, missing))
        return tf.gather(rows, place)

    def _distinct(self, values, tables):
        """Return distinct pairs of id and table, in the order of their first positions.

        Returns:
            The ids and tables of n pairs, the pair of each value `(V,)`, and the number
            of values of each pair.
        """
        num_tables = len(self.tables)
        ids, place = tf.unique(values, out_idx=tf.int64)
        if num_tables == 1:
            tables = tf.zeros_like(ids, tf.int32)
        else:
            pairs, place = tf.unique(
                place * num_tables + tf.cast(tables, tf.int64), out_idx=tf.int64
            )
            ids = tf.gather(ids, pairs // num_tables)
            tables = tf.cast(pairs % num_tables, tf.int32)
        ones = tf.ones_like(values)
        counts = tf.math.unsorted_segment_sum(ones, place, tf.size(ids))
        return ids, tables, place, counts

    def _claim_new(self, ids, tables, counts, now):
        """Let new ids claim slots; return the slot of each, -1 for none.

        Args:
            ids: Distinct ids in the order of their first positions, int64 `(n,)`.
            tables: Number of the table of each id, int32 `(n,)`.
            counts: Number of occurrences of each id, int64 `(n,)`.
            now: Number of the step.
        """
        admitted = self.admission.admit(ids, tables, counts, now)
        self._count("not_admitted", tf.boolean_mask(tables, ~admitted))
        own = tf.where(admitted)[:, 0]
        chosen = claims.choose(
            self.slots,
            tf.gather(ids, own),
            tf.gather(tables, own),
            now,
            self.expired_before.read_value() if self._has_time else None,
            self.protection,
        )
        own, slots = (tf.boolean_mask(x, chosen >= 0) for x in (own, chosen))
        claimed, of_table = tf.gather(ids, own), tf.gather(tables, own)
        self._note_evicted(tf.identity(row_ops.gather(self.slots.ids, slots)), of_table)
        self._count("claims", of_table)
        self.slots.take(slots, claimed, now, tf.gather(counts, own))
        offsets = tf.gather(tf.constant(self.slots.offsets[:-1]), of_table)
        self.start_rows(claimed, of_table, slots - offsets)
        self.admission.restart(claimed, of_table)
        result = tf.fill(tf.shape(ids), tf.constant(-1, tf.int64))
        return tf.tensor_scatter_nd_update(result, own[:, None], slots)

    def _note_evicted(self, replaced, tables):
        lost = tf.not_equal(replaced, EMPTY)
        own = tf.boolean_mask(tables, lost)
        self._count("evictions", own)
        lost_ids = tf.boolean_mask(replaced, lost)
        for variable, new in zip(self.evicted, (lost_ids, tf.cast(own, tf.int64))):
            variable.assign(tf.concat([variable.read_value(), new], 0))

    def _count(self, name, tables, counts=None):
        """Add the number of entries of each table, or `counts`, to a counter."""
        num_tables = len(self.tables)
        if counts is None:
            counts = tf.ones_like(tables, tf.int64)
        if num_tables == 1:
            added = tf.reshape(tf.reduce_sum(counts), (1,))
        else:
            added = tf.math.unsorted_segment_sum(counts, tables, num_tables)
        unit = np.zeros((1, len(COUNTERS)), np.int64)
        unit[0, COUNTERS.index(name)] = 1
        self.counters.assign_add(added[:, None] * tf.constant(unit))

    # State by table

    def range_of(self, name: str) -> tuple[int, int]:
        """Return the first slot of a table in the variables, and the end."""
        number = self.number[name]
        first, end = self.slots.offsets[number : number + 2]
        return int(first), int(end)

    def read_slots(self, name: str, variable: tf.Variable) -> np.ndarray:
        """Return a copy of a table's part of a variable of the slots."""
        first, end = self.range_of(name)
        result = np.empty(end - first, np.int64)
        for a, b in row_ops.block_ranges(end - first, 1):
            own = tf.range(first + a, first + b, dtype=tf.int64)
            result[a:b] = row_ops.gather(variable, own).numpy()
        return result
