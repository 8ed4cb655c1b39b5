"""Admission: which new ids may claim a row.

# n new ids of a lookup, T tables
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding.growing import claims, hashes
from tf_dlrm.embedding.growing.slots import SlotRules, Slots
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime import rows as row_ops

NUM_HASHES = 4


class Admission:
    """The rules of admission of growing tables, and their counts.

    Args:
        tables: The growing tables.

    Attributes:
        counting: The counting table of each table with exact counts, as `Slots` whose
            hits are the counts; `None` if there are none.
        sketches: The `Sketches` of the tables with a sketch, or `None`.
    """

    def __init__(self, tables: Sequence[EmbeddingTable]) -> None:
        rules = [table.growing for table in tables if table.growing is not None]
        self._min_counts = np.array([own.min_count for own in rules], np.int64)
        self._has_sketch = np.array([own.admission == "sketch" for own in rules])
        shares = [o.admission if isinstance(o.admission, float) else 1 for o in rules]
        self._shares = np.array(shares, np.float32)
        seeds, names = [own.seed for own in rules], [table.name for table in tables]
        self._keys = hashes.keys(seeds, names, hashes.ADMISSION_SALT)
        self._counts_exactly = (self._min_counts > 1) & ~self._has_sketch
        sizes = [
            own.num_slots(table.vocabulary_size) for own, table in zip(rules, tables)
        ]
        self.counting: Slots | None = None
        if self._counts_exactly.any():
            self.counting = Slots(
                [
                    SlotRules(size if exact else 1, own.max_probes, "lru")
                    for own, size, exact in zip(rules, sizes, self._counts_exactly)
                ]
            )
        self.sketches: Sketches | None = None
        if self._has_sketch.any():
            own_keys = hashes.keys(seeds, names, hashes.SKETCH_SALT)
            self.sketches = Sketches(sizes, self._has_sketch, own_keys)

    def build(self) -> None:
        """Create the variables, on the current device."""
        if self.counting is not None:
            self.counting.build("counting")
        if self.sketches is not None:
            self.sketches.build()

    def admit(
        self, ids: tf.Tensor, tables: tf.Tensor, counts: tf.Tensor, now: tf.Tensor
    ) -> tf.Tensor:
        """Count new ids and return which of them are admitted, bool `(n,)`.

        Args:
            ids: Distinct ids in the order of their first positions, int64 `(n,)`.
            tables: Number of the table of each id, int32 `(n,)`.
            counts: Number of occurrences of each id, int64 `(n,)`.
            now: Number of the step, int64 scalar.
        """
        admitted = tf.fill(tf.shape(ids), True)
        if (self._shares < 1).any():
            share = tf.gather(tf.constant(self._shares), tables)
            key = tf.gather(tf.constant(self._keys), tables)
            admitted &= hashes.uniform(ids, key, now) < share
        for is_own, count in (
            (self._counts_exactly, self._count_exactly),
            (self._has_sketch, self._count_in_sketch),
        ):
            if not is_own.any():
                continue
            own = tf.where(tf.gather(tf.constant(is_own), tables))[:, 0]
            own_ids, own_tables, own_counts = (
                tf.gather(x, own) for x in (ids, tables, counts)
            )
            total = count(own_ids, own_tables, own_counts, now)
            enough = tf.gather(tf.constant(self._min_counts), own_tables)
            admitted = tf.tensor_scatter_nd_update(
                admitted, own[:, None], total >= enough
            )
        return admitted

    def _count_exactly(self, ids, tables, counts, now):
        """Count ids in the counting tables, and return their counts."""
        slots = self._counting_slots()
        known = slots.find(ids, tables)
        own = tf.where(known >= 0)[:, 0]
        place = tf.gather(known, own)
        before = row_ops.gather(slots.hits, place)
        slots.take(place, tf.gather(ids, own), now, before + tf.gather(counts, own))
        new = tf.where(known < 0)[:, 0]
        new_ids, new_counts = tf.gather(ids, new), tf.gather(counts, new)
        claimed = claims.choose(slots, new_ids, tf.gather(tables, new), now)
        got = claimed >= 0
        slots.take(
            tf.boolean_mask(claimed, got),
            tf.boolean_mask(new_ids, got),
            now,
            tf.boolean_mask(new_counts, got),
        )
        places = tf.tensor_scatter_nd_update(known, new[:, None], claimed)
        total = row_ops.gather(slots.hits, tf.maximum(places, 0))
        return tf.where(places >= 0, total, tf.zeros_like(total))

    def _count_in_sketch(self, ids, tables, counts, now):
        del now
        if self.sketches is None:
            raise RuntimeError("No table has a sketch.")
        return self.sketches.count(ids, tables, counts)

    def restart(self, ids: tf.Tensor, tables: tf.Tensor) -> None:
        """Set the counts of ids that claimed a row to 0."""
        if self.counting is None:
            return
        own = tf.gather(tf.constant(self._counts_exactly), tables)
        ids, tables = tf.boolean_mask(ids, own), tf.boolean_mask(tables, own)
        place = self.counting.find(ids, tables)
        place = tf.boolean_mask(place, place >= 0)
        row_ops.replace(self.counting.hits, place, tf.zeros_like(place))

    def _counting_slots(self) -> Slots:
        if self.counting is None:
            raise RuntimeError("No table counts exactly.")
        return self.counting


class Sketches:
    """Count-min sketches of several tables, one after another in one variable.

    Args:
        sizes: Number of slots of each table.
        is_own: Whether each table has a sketch.
        keys: The uint64 key of each table's hashes.

    Attributes:
        cells: The counts, int32: for each table, 4 rows of W cells.
        totals: Number of occurrences of each table that were counted since its cells
            were halved, int64 `(T,)`.
    """

    cells: tf.Variable
    totals: tf.Variable

    def __init__(
        self, sizes: Sequence[int], is_own: np.ndarray, keys: np.ndarray
    ) -> None:
        widths = [1 << max(0, size - 1).bit_length() for size in sizes]
        self.widths = np.where(is_own, widths, 0).astype(np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(NUM_HASHES * self.widths)])
        self._keys = keys

    def build(self) -> None:
        """Create the variables, on the current device."""
        zeros = tf.zeros((int(self.offsets[-1]),), tf.int32)
        self.cells = tf.Variable(zeros, trainable=False, name="sketch")
        zeros = tf.zeros((len(self.widths),), tf.int64)
        self.totals = tf.Variable(zeros, trainable=False, name="sketch_totals")

    def count(self, ids: tf.Tensor, tables: tf.Tensor, counts: tf.Tensor) -> tf.Tensor:
        """Count occurrences of distinct ids `(n,)` and return their counts, int64."""
        key = tf.gather(tf.constant(self._keys), tables)[:, None]
        row = tf.range(NUM_HASHES, dtype=tf.int64)
        width = tf.gather(tf.constant(self.widths), tables)[:, None]
        places = hashes.modulo(hashes.bits(ids[:, None], key, row), width)
        first = tf.gather(tf.constant(self.offsets[:-1]), tables)[:, None]
        places += first + row * width
        repeated = tf.broadcast_to(tf.cast(counts, tf.int32)[:, None], tf.shape(places))
        tf.raw_ops.ResourceScatterAdd(
            resource=self.cells.handle, indices=places, updates=repeated
        )
        own = tf.reduce_min(row_ops.gather(self.cells, places), axis=1)
        num_tables = len(self.widths)
        added = tf.math.unsorted_segment_sum(counts, tables, num_tables)
        totals = self.totals.assign_add(added)
        widths = tf.constant(np.maximum(self.widths, 1))
        with tf.control_dependencies([own]):
            self._halve((totals >= widths) & tf.constant(self.widths > 0))
        return tf.cast(own, tf.int64)

    def _halve(self, is_full):
        """Halve the cells of full sketches: a pass over the cells, once in W counts."""

        def halve():
            cells = self.cells.read_value()
            parts = tf.split(cells, (NUM_HASHES * self.widths).tolist())
            parts = [
                tf.where(is_full[i], part // 2, part) for i, part in enumerate(parts)
            ]
            self.cells.assign(tf.concat(parts, 0))
            totals = self.totals.read_value()
            self.totals.assign(tf.where(is_full, tf.zeros_like(totals), totals))
            return tf.constant(True)

        tf.cond(tf.reduce_any(is_full), halve, lambda: tf.constant(False))
