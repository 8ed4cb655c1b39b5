"""Claims: which slots the new ids of a lookup get, as if one id after another chose.

The order in which an id prefers slots does not depend on other claims. All ids can
therefore choose at once, in rounds: each waiting id takes the best slot that no earlier
id holds, and a later id that held it chooses again. The result is that of choosing in
turn (deferred acceptance; Gale and Shapley 1962).

# n ids, m ids that choose in a round, W slots of a window
"""

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding.growing.slots import EMPTY, Slots
from tf_dlrm.runtime import rows as row_ops

_SHORT = 16  # slots that are searched for an empty one at first
_MOST_AT_ONCE = 4096  # ids that choose in a round
_NEVER = np.iinfo(np.int64).max
_EMPTY, _EXPIRED, _OLD, _NONE = range(4)  # from the most preferred slots on


class Protection:
    """Ids that never lose their slot.

    Attributes:
        ids: The distinct ids in ascending order, int64 `(P,)`.
        flags: Whether each is protected in each table, bool `(P, T)`.
    """

    def __init__(self, ids: tf.Variable, flags: tf.Variable) -> None:
        self.ids, self.flags = ids, flags

    def covers(self, ids: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
        """Return whether ids `(m, W)` are protected in their tables `(m,)`."""
        own, flags = self.ids.read_value(), self.flags.read_value()
        # One more entry, so that there is always one.
        own = tf.concat([own, [_NEVER]], 0)
        flags = tf.pad(flags, [[0, 1], [0, 0]])
        place = tf.searchsorted(own, tf.reshape(ids, (-1,)))
        place = tf.reshape(tf.minimum(place, tf.size(own) - 1), tf.shape(ids))
        column = tf.broadcast_to(tf.cast(tables, tf.int32)[:, None], tf.shape(ids))
        is_own = tf.gather_nd(flags, tf.stack([place, column], axis=-1))
        return is_own & tf.equal(tf.gather(own, place), ids)


def choose(
    slots: Slots,
    ids: tf.Tensor,
    tables: tf.Tensor,
    now: tf.Tensor,
    expired_before: tf.Tensor | None = None,
    protection: Protection | None = None,
) -> tf.Tensor:
    """Return the slot that each new id claims, int64 `(n,)`, -1 for none.

    Args:
        slots: The slots; they are not changed.
        ids: Distinct ids without a slot, in the order of their first positions.
        tables: Number of the table of each id, int32 `(n,)`.
        now: Number of the step. Slots last seen in it are not replaced.
        expired_before: Step before which ids have expired, by table, int64 `(T,)`;
            `None` for never.
        protection: The protected ids; `None` for none.
    """
    chooser = _Chooser(slots, ids, tables, now, expired_before, protection)

    def play_round(choice, waiting):
        now_choosing, rest = waiting[:_MOST_AT_ONCE], waiting[_MOST_AT_ONCE:]
        wish = chooser.best(now_choosing, choice)
        has_wish = wish >= 0  # other ids have no slot left, now or later
        now_choosing = tf.boolean_mask(now_choosing, has_wish)
        wish = tf.boolean_mask(wish, has_wish)
        # Of the ids that wish for a slot, the first one gets it.
        wanted, place = tf.unique(wish)
        number = tf.range(tf.size(wish))
        first = tf.math.unsorted_segment_min(number, place, tf.size(wanted))
        wins = tf.equal(tf.gather(first, place), number)
        winners = tf.boolean_mask(now_choosing, wins)
        losers = tf.boolean_mask(now_choosing, ~wins)
        holder = chooser.holder(wanted, choice)
        displaced = tf.boolean_mask(holder, holder < tf.size(choice))
        choice = _set(choice, displaced, tf.fill(tf.shape(displaced), _minus_one()))
        choice = _set(choice, winners, wanted)
        waiting = tf.sort(tf.concat([losers, displaced, rest], 0))
        return choice, waiting

    num_ids = tf.size(ids)
    choice, _ = tf.while_loop(
        lambda _, waiting: tf.size(waiting) > 0,
        play_round,
        (tf.fill((num_ids,), _minus_one()), tf.range(num_ids)),
        shape_invariants=(tf.TensorShape([None]), tf.TensorShape([None])),
        parallel_iterations=1,
    )
    return choice


class _Chooser:
    """The wishes of ids in one lookup."""

    def __init__(self, slots, ids, tables, now, expired_before, protection):
        self._slots, self._ids, self._tables = slots, ids, tables
        self._now, self._expired_before = now, expired_before
        self._protection = protection
        self._start = slots.start(ids, tables)

    def holder(self, places, choice):
        """Return which id holds each of some slots; the number of ids for none."""
        none = tf.size(choice)
        flat = tf.reshape(places, (-1,))

        def search():
            order = tf.argsort(choice)
            held = tf.gather(choice, order)
            place = tf.minimum(tf.searchsorted(held, flat), none - 1)
            is_held = tf.equal(tf.gather(held, place), flat)
            return tf.where(is_held, tf.gather(order, place), none)

        holder = tf.cond(
            tf.reduce_any(choice >= 0),
            search,
            lambda: tf.fill(tf.shape(flat), none),
        )
        return tf.reshape(holder, tf.shape(places))

    def best(self, who, choice):
        """Return the best slot of ids `who` that no earlier id holds; -1 for none."""
        places, is_own = self._window(who, _SHORT)
        held = row_ops.gather(self._slots.ids, places)
        is_free = self._is_free(who, places, choice)
        is_empty = tf.equal(held, EMPTY) & is_own & is_free
        column = tf.argmax(tf.cast(is_empty, tf.int8), axis=1)
        place = tf.gather(places, column, batch_dims=1)
        found = tf.reduce_any(is_empty, axis=1)
        other = tf.where(~found)[:, 0]

        def search_all():
            best = self._best_of_all(tf.gather(who, other), choice)
            return tf.tensor_scatter_nd_update(place, other[:, None], best)

        return tf.cond(tf.size(other) > 0, search_all, lambda: place)

    def _window(self, who, width):
        start, tables = tf.gather(self._start, who), tf.gather(self._tables, who)
        return self._slots.window(start, tables, 0, width)

    def _is_free(self, who, places, choice):
        return self.holder(places, choice) > who[:, None]

    def _best_of_all(self, who, choice):
        slots, rules = self._slots, self._slots.rules
        tables = tf.gather(self._tables, who)
        places, is_own = self._window(who, int(slots.probes.max()))
        held = row_ops.gather(slots.ids, places)
        seen = row_ops.gather(slots.last_seen, places)
        is_empty = tf.equal(held, EMPTY)
        usable = is_own & self._is_free(who, places, choice)
        is_kept = tf.equal(seen, self._now)
        if self._protection is not None:
            is_kept |= self._protection.covers(held, tables)
        usable &= is_empty | ~is_kept

        def own(values):
            column = slots.by_table(values, tables)
            return column[:, None] if column.shape.rank else column

        has_order = tf.equal(own([rule.evict is not None for rule in rules]), 1)
        rank = tf.where(has_order, _OLD, _NONE)
        expired = self._expired(seen, tables, own)
        if expired is not None:
            rank = tf.where(expired, _EXPIRED, rank)
        rank = tf.where(usable, tf.where(is_empty, _EMPTY, rank), _NONE)
        best = tf.reduce_min(rank, axis=1, keepdims=True)
        is_best = tf.equal(rank, best)
        keys = [seen]
        if any(rule.evict == "lfu" for rule in rules):
            is_lfu = tf.equal(own([rule.evict == "lfu" for rule in rules]), 1)
            hits = row_ops.gather(slots.hits, places)
            keys = [tf.where(is_lfu, hits, tf.zeros_like(hits)), seen]
        for key in keys:
            key = tf.where(tf.equal(rank, _OLD), key, tf.zeros_like(key))
            key = tf.where(is_best, key, _NEVER)
            is_best &= tf.equal(key, tf.reduce_min(key, axis=1, keepdims=True))
        column = tf.argmax(tf.cast(is_best, tf.int8), axis=1)
        place = tf.gather(places, column, batch_dims=1)
        return tf.where(best[:, 0] < _NONE, place, _minus_one())

    def _expired(self, seen, tables, own):
        """Return whether ids have expired, bool `(m, W)`; `None` if none ever do."""
        limits = [rule.expire_after for rule in self._slots.rules]
        expired = None
        if any(limit is not None for limit in limits):
            limit = own([_NEVER if limit is None else limit for limit in limits])
            expired = self._now - seen > limit
        if self._expired_before is not None:
            by_time = seen < tf.gather(self._expired_before, tables)[:, None]
            expired = by_time if expired is None else expired | by_time
        return expired


def _minus_one():
    return tf.constant(-1, tf.int64)


def _set(tensor, places, values):
    return tf.tensor_scatter_nd_update(tensor, places[:, None], values)
