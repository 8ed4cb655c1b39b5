"""Updates, under XLA, of the rows that a batch touches.

A linear optimizer subtracts the gradients value by value. The other optimizers have
slots and need the sum of the gradients of values that share a row. Such values are
found without sorting and without extra memory: each value writes its position into the
first column of its row's state and reads back which position was written last. The
value at that position acts for the row. Writing the row's new state then restores the
column.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from tf_dlrm.embedding.engines.engine import Step, TrainedPart
from tf_dlrm.embedding.engines.xla_bags import FlatIds
from tf_dlrm.runtime import rows as row_ops

# Shapes: V values, U unique rows, D width, C chunk.

MAX_VALUES = 1 << 24  # positions are written into float32 state, exact up to here
_SMALL_BYTES = 64 << 20  # batches with at most so many bytes of gradients are small
_TURN_BYTES = 64 << 20  # large batches: bytes for the sums of the rows of one turn
_CHUNK = 1 << 16  # large batches: values in a chunk
_SMALL_CHUNK = 1 << 14  # the same for repeated rows, which are probably few


def is_small(num_values: int | tf.Tensor, width: int) -> Any:
    """Return whether to update a batch in one piece (a tensor for a tensor)."""
    return num_values <= _SMALL_BYTES // (4 * width)


def first_column(slots: dict[str, tf.Variable], flat: FlatIds) -> tf.Tensor:
    """Return the first column of the first slot for each value, `(V,)`.

    `update` overwrites this column, so a separate kernel must read it: in a single
    kernel XLA would copy the whole slot.
    """
    first = next(iter(slots.values()))
    places = tf.stack([flat.slot_rows, tf.zeros_like(flat.slot_rows)], 1)
    return tf.gather_nd(first.read_value(), tf.maximum(places, 0))


class FlatBatch(NamedTuple):
    """The values of a batch and the gradients of its pooled bags.

    Attributes:
        flat: The values.
        gradients: Gradients of the pooled bags, float32 `(N, D)`.
        saved: The result of `first_column`, `(V,)`; `None` for a linear optimizer.
    """

    flat: FlatIds
    gradients: tf.Tensor
    saved: tf.Tensor | None


def update(part: TrainedPart, batch: FlatBatch, step: Step, small: bool) -> None:
    """Apply one step under XLA, whose scatters ignore rows of -1 and work in place.

    Args:
        part: The part to update.
        batch: The batch.
        step: The optimizer step.
        small: The result of `is_small` for the batch.
    """
    flat = batch.flat
    state = _State(part, step)
    if not small and flat.bags is None:
        flat = flat._replace(bags=tf.range(tf.shape(flat.rows)[0]))
    batch = batch._replace(flat=flat)
    if part.optimizer.is_linear:
        if small:
            state.write(flat.rows, flat.rows, flat.spread(batch.gradients))
        else:
            _write_in_chunks(state, batch)
    else:
        acting = state.find_repeated(flat.slot_rows)
        (_update_small if small else _update_large)(state, batch, acting)
    state.assign()


class _State:
    """The current values of table and slots inside a kernel."""

    def __init__(self, part: TrainedPart, step: Step) -> None:
        self._optimizer, self._columns = part.optimizer, part.columns
        self._rate, self._step = step.rate(part.optimizer), step.number
        self._variables = (part.variable, *part.slots.values())
        self._names = list(part.slots)
        self.values = tuple(variable.read_value() for variable in self._variables)

    def assign(self):
        for variable, value in zip(self._variables, self.values):
            variable.assign(value, read_value=False)

    def find_repeated(self, slot_rows):
        """Return, for each value, the position of the value that acts for its row.

        Values without a row get their own position. From here on, until the rows are
        written, the first column of the state holds marks.

        Returns:
            Positions, int32 `(V,)`.
        """
        position = tf.range(tf.shape(slot_rows)[0])
        places = tf.stack([slot_rows, tf.zeros_like(slot_rows)], 1)
        table, first, *others = self.values
        first = tf.tensor_scatter_nd_update(
            first, places, tf.cast(position, first.dtype)
        )
        self.values = (table, first, *others)
        acting = tf.cast(tf.gather_nd(first, tf.maximum(places, 0)), tf.int32)
        return tf.where(slot_rows >= 0, acting, position)

    def write(self, rows, slot_rows, gradients, saved=None, squares=None):
        """Update rows.

        Args:
            rows: Rows of the table, `(n,)`, -1 for none.
            slot_rows: Rows of the slots, `(n,)`, -1 for none.
            gradients: Gradients of the rows, `(n, D)`.
            saved: First column of the rows' state, `(n,)`; `None` without state.
            squares: Mean squares of the gradients, `(n, 1)`; default: computed here.
        """
        if squares is None and self._optimizer.uses_mean_squares:
            squares = row_ops.mean_squares(gradients)
        gradients = gradients[:, self._columns]
        table, *slots = self.values
        state = {}
        for i, (name, slot) in enumerate(zip(self._names, slots)):
            values = tf.gather(slot, tf.maximum(slot_rows, 0))
            if i == 0:
                is_first = tf.range(tf.shape(values)[1]) == 0
                values = tf.where(is_first, saved[:, None], values)
            state[name] = values
        current = None
        if self._optimizer.writes_rows:
            current = tf.gather(table, tf.maximum(rows, 0))
        change, state = self._optimizer.apply(
            gradients, state, self._rate, self._step, current, squares
        )
        slots = [
            tf.tensor_scatter_nd_update(slot, slot_rows[:, None], state[name])
            for name, slot in zip(self._names, slots)
        ]
        if self._optimizer.writes_rows:
            table = tf.tensor_scatter_nd_update(table, rows[:, None], change)
        else:
            table = tf.tensor_scatter_nd_sub(table, rows[:, None], change)
        self.values = (table, *slots)


def _update_small(state, batch, acting):
    """Update all rows at once, with `(V, D)` of memory."""
    flat, gradients, saved = batch
    num_values = tf.shape(flat.rows)[0]
    sums = tf.math.unsorted_segment_sum(flat.spread(gradients), acting, num_values)
    acts = acting == tf.range(num_values)
    rows = tf.where(acts, flat.rows, -1)
    state.write(rows, tf.where(acts, flat.slot_rows, -1), sums, saved)


def _update_large(state, batch, acting):
    """Update rows that occur once in chunks, and repeated rows in turns.

    To limit memory, a turn takes as many rows as fit into `_TURN_BYTES` and loops over
    all repeated values. That is cheap: if many values repeat, they share few rows.
    """
    flat, gradients, saved = batch
    num_values = tf.shape(flat.rows)[0]
    position = tf.range(num_values)
    is_other = acting != position
    # Mark the positions that act for others; each of the others writes its mark.
    marks = tf.where(is_other, acting, -1)
    acts_for_others = tf.tensor_scatter_nd_update(
        tf.zeros((num_values,), tf.bool), marks[:, None], tf.ones_like(is_other)
    )
    repeated = tf.logical_or(is_other, acts_for_others)
    occurs_once = tf.logical_not(repeated)
    once = flat._replace(
        rows=tf.where(occurs_once, flat.rows, -1),
        slot_rows=tf.where(occurs_once, flat.slot_rows, -1),
    )
    _write_in_chunks(state, batch._replace(flat=once))

    # Pack the positions of repeated values, and those of the acting values.
    values, num_repeated = _pack(position, repeated)
    actors, num_rows = _pack(position, acts_for_others)
    number = tf.cumsum(tf.cast(acts_for_others, tf.int32)) - 1  # of acting values
    place = tf.gather(number, acting)
    turn_rows = max(1, _TURN_BYTES // (4 * gradients.shape[1]))
    turn_rows = tf.minimum(num_values, turn_rows)
    chunk = tf.minimum(turn_rows, _SMALL_CHUNK)

    def turn(first):
        def add(i, sums):
            at = i + tf.range(chunk)
            inside = at < num_repeated
            at = tf.gather(values, tf.minimum(at, num_values - 1))
            target = tf.gather(place, at) - first
            inside = tf.logical_and(inside, target < turn_rows)
            fits = tf.logical_and(inside, target >= 0)
            target = tf.where(fits, target, -1)[:, None]
            at = tf.where(fits, at, 0)  # values of other turns cost no memory access
            sums = tf.tensor_scatter_nd_add(sums, target, flat.spread(gradients, at))
            return i + chunk, sums

        zeros = tf.zeros((turn_rows, tf.shape(gradients)[1]))
        _, sums = tf.while_loop(
            lambda i, _: i < num_repeated, add, (tf.constant(0), zeros)
        )

        def write(i):
            # The last chunk overlaps the one before; skip the rows they share.
            i, fresh = tf.minimum(i, turn_rows - chunk), i
            at = first + i + tf.range(chunk)
            inside = tf.logical_and(at >= first + fresh, at < num_rows)
            at = tf.gather(actors, tf.minimum(at, num_values - 1))
            rows = tf.where(inside, tf.gather(flat.rows, at), -1)
            slot_rows = tf.where(inside, tf.gather(flat.slot_rows, at), -1)
            some = tf.gather(sums, i + tf.range(chunk))
            state.write(rows, slot_rows, some, tf.gather(saved, at))

        _loop(state, tf.minimum(num_rows - first, turn_rows), chunk, write)

    _loop(state, num_rows, turn_rows, turn)


def _write_in_chunks(state, batch):
    """Update rows that are unique or need no sums, `_CHUNK` values at a time."""
    flat, gradients, saved = batch
    num_values = tf.shape(flat.rows)[0]
    chunk = tf.minimum(num_values, _CHUNK)
    bag_squares = row_ops.mean_squares(gradients)

    def body(first):
        # The last chunk overlaps the one before; skip the values they share.
        start = tf.minimum(first, num_values - chunk)
        fresh = start + tf.range(chunk) >= first
        part = FlatIds(
            *[None if x is None else tf.slice(x, [start], [chunk]) for x in flat]
        )
        rows = tf.where(fresh, part.rows, -1)
        slot_rows = tf.where(fresh, part.slot_rows, -1)
        before = None if saved is None else tf.slice(saved, [start], [chunk])
        squares = tf.gather(bag_squares, part.bags)
        if part.weights is not None:
            squares *= tf.square(part.weights)[:, None]
        state.write(rows, slot_rows, part.spread(gradients), before, squares)

    _loop(state, num_values, chunk, body)


def _pack(position, is_selected):
    """Return the selected positions at the front of a vector, and their number."""
    number = tf.cumsum(tf.cast(is_selected, tf.int32))
    target = tf.where(is_selected, number - 1, -1)
    packed = tf.tensor_scatter_nd_update(
        tf.zeros_like(position), target[:, None], position
    )
    return packed, number[-1]


def _loop(state, end, step, body):
    """Run `body(i)` for i = 0, step, ... below `end`; it may change `state`."""

    def run(i, values):
        state.values = values
        body(i)
        return i + step, state.values

    _, state.values = tf.while_loop(
        lambda i, _: i < end, run, (tf.constant(0), state.values)
    )
