"""`Slots`: which id has which slot, for several tables at once; lookups of slots.

# V values, n values that are still searched, W slots of a window, T tables
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding.growing import hashes
from tf_dlrm.runtime import rows as row_ops

EMPTY = -1
_FIRST_WINDOW, _WINDOW = 7, 40  # a round costs as much as many slots


class SlotRules(NamedTuple):
    """The rules of one table's slots.

    Attributes:
        size: Number of slots.
        max_probes: Number of slots of an id.
        evict: `"lru"`, `"lfu"` or `None`.
        expire_after: Number of steps after which an id has expired; `None` for never.
    """

    size: int
    max_probes: int
    evict: str | None
    expire_after: int | None = None


class Slots:
    """The slots of several tables, one after another in three variables.

    Args:
        rules: The `SlotRules` of each table.

    Attributes:
        ids: The id of each slot, int64, -1 for an empty one.
        last_seen: The step in which the id was last looked up in training, int64.
        hits: Number of its occurrences in training since it has the slot, int64.
        offsets: First slot of each table, and the end, `(T + 1,)`.
    """

    ids: tf.Variable
    last_seen: tf.Variable
    hits: tf.Variable

    def __init__(self, rules: Sequence[SlotRules]) -> None:
        self.rules = tuple(rules)
        sizes = np.array([own.size for own in rules], np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(sizes)])
        self.sizes = sizes
        self.probes = np.minimum([own.max_probes for own in rules], sizes)

    def build(self, name: str) -> None:
        """Create the variables, on the current device."""
        total = int(self.offsets[-1])

        def make(value, part):
            initial = tf.fill((total,), tf.constant(value, tf.int64))
            return tf.Variable(initial, trainable=False, name=f"{name}_{part}")

        self.ids = make(EMPTY, "ids")
        self.last_seen, self.hits = make(0, "last_seen"), make(0, "hits")

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """The variables by name."""
        return {"ids": self.ids, "last_seen": self.last_seen, "hits": self.hits}

    def by_table(
        self, values: Sequence[int] | np.ndarray, tables: tf.Tensor
    ) -> tf.Tensor:
        """Return a table's value, int64, for each entry of `tables`."""
        values = np.asarray(values, np.int64)
        if (values == values[0]).all():
            return tf.constant(values[0])
        return tf.gather(tf.constant(values), tables)

    def window(
        self, start: tf.Tensor, tables: tf.Tensor, first: tf.Tensor | int, width: int
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Return slots of the ranges of ids, and which of them are within the range.

        Args:
            start: First slot of each range within its table, int64 `(n,)`.
            tables: Number of the table of each range, `(n,)`.
            first: Number of the first slot in the range.
            width: Number of slots, W.

        Returns:
            int64 `(n, W)`, numbers in the variables; and bool, `(n, W)` or `(W,)`.
        """
        size = self.by_table(self.sizes, tables)
        probes = self.by_table(self.probes, tables)
        steps = tf.cast(first, tf.int64) + tf.range(width, dtype=tf.int64)
        places = start[:, None] + steps
        size, probes = (x[:, None] if x.shape.rank else x for x in (size, probes))
        is_own = steps < probes
        # Beyond the range, any slot will do.
        places = tf.where(places >= size, places - size, places)
        places = tf.where(is_own, places, tf.zeros_like(places))
        if len(self.rules) > 1:
            places += self.by_table(self.offsets[:-1], tables)[:, None]
        return places, is_own

    def start(self, ids: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
        """Return the first slot of each id's range within its table, int64 `(V,)`."""
        return hashes.modulo(hashes.murmur(ids), self.by_table(self.sizes, tables))

    def find(self, ids: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
        """Return the slot of each id, int64 `(V,)`, -1 for none.

        Args:
            ids: int64 `(V,)`; an id below 0 has no slot.
            tables: Number of the table of each id, int32 `(V,)`.
        """
        start = self.start(ids, tables)
        size, probes, offset = (
            self.by_table(values, tables)
            for values in (self.sizes, self.probes, self.offsets[:-1])
        )
        # Most ids are in their first slot.
        first = start + offset
        held = row_ops.gather(self.ids, first)
        none = tf.constant(-1, tf.int64)
        slots = tf.where(tf.equal(held, ids) & (ids >= 0), first, none)
        most = int(self.probes.max())
        if most == 1:
            return slots
        # No id is behind an empty slot of its range.
        is_waiting = (slots < 0) & tf.not_equal(held, EMPTY) & (ids >= 0)
        waiting = tf.where(is_waiting)[:, 0]

        def search(step, waiting, slots, width=_WINDOW):
            own = [
                tf.gather(x, waiting) if x.shape.rank else x
                for x in (ids, start, size, probes, offset)
            ]
            places, ended = self._search(step, width, *own)
            slots = tf.tensor_scatter_nd_update(slots, waiting[:, None], places)
            waiting = tf.boolean_mask(waiting, (places < 0) & ~ended)
            return step + width, waiting, slots

        state = search(tf.constant(1, tf.int64), waiting, slots, _FIRST_WINDOW)
        *_, slots = tf.while_loop(
            lambda step, waiting, _: (tf.size(waiting) > 0) & (step < most),
            search,
            state,
            shape_invariants=(
                tf.TensorShape([]),
                tf.TensorShape([None]),
                slots.shape,
            ),
            parallel_iterations=1,
        )
        return slots

    def _search(self, first, width, ids, start, size, probes, offset):
        """Return the slots in a window, and whether the window has an empty slot.

        The windows are columns, whose reductions are fast: `(W, n)`.
        """
        step = first + tf.range(width, dtype=tf.int64)[:, None]
        places = start + step
        # Beyond the range, any slot will do.
        places = tf.where(places >= size, places - size, places)
        places = tf.where(step < probes, places, tf.zeros_like(places))
        held = row_ops.gather(self.ids, places + offset)
        held = tf.where(step < probes, held, tf.constant(EMPTY, tf.int64))
        is_it = tf.equal(held, ids)
        number = tf.reduce_sum(tf.where(is_it, step, tf.zeros_like(step)), axis=0)
        place = start + number
        place = tf.where(place >= size, place - size, place) + offset
        ended = tf.reduce_any(tf.equal(held, EMPTY), axis=0)
        return tf.where(number > 0, place, tf.constant(-1, tf.int64)), ended

    def touch(self, slots: tf.Tensor, now: tf.Tensor, counts: tf.Tensor) -> None:
        """Note that ids were looked up.

        Args:
            slots: The distinct slots of ids, int64 `(n,)`.
            now: Number of the step, int64 scalar.
            counts: Number of occurrences of each id, int64 `(n,)`.
        """
        seen = tf.fill(tf.shape(slots), now)
        row_ops.replace(self.last_seen, slots, seen)
        tf.raw_ops.ResourceScatterAdd(
            resource=self.hits.handle, indices=slots, updates=counts
        )

    def take(
        self, slots: tf.Tensor, ids: tf.Tensor, now: tf.Tensor, hits: tf.Tensor
    ) -> None:
        """Give distinct slots `(n,)` to ids."""
        seen = tf.fill(tf.shape(slots), now)
        for variable, values in (
            (self.ids, ids),
            (self.last_seen, seen),
            (self.hits, hits),
        ):
            row_ops.replace(variable, slots, values)
