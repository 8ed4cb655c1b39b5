"""Steps of the optimizers that also move rows without a gradient.

The rows of the batch are computed first, from the state before the step. Then one pass
moves all rows as if they had no gradient, and the rows of the batch are overwritten.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding.engines import xla_bags
from tf_dlrm.embedding.engines.engine import Step, TrainedPart
from tf_dlrm.embedding.penalties import PenalizedOptimizer
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime import xla

if TYPE_CHECKING:
    from tf_dlrm.embedding.fused_table import FusedTable

# Shapes: V values in the batch, N bags, D width, R rows of the part, S a segment.

_BLOCK_VALUES = 1 << 22  # values (16 MiB) of a table that the plain pass moves at once


class Segment(NamedTuple):
    """Consecutive rows of a part's tables.

    Attributes:
        row: First row in the fused variable.
        slot_row: First row in the slots.
        num_rows: Number of rows.
    """

    row: int
    slot_row: int
    num_rows: int


def segments_of(part: TrainedPart, table: "FusedTable") -> list[Segment]:
    """Return the few segments that the tables of a part consist of, in order."""
    segments: list[Segment] = []
    for own in table.tables:
        if own.name not in part.first_slot_row:
            continue
        row, num_rows = table.first_row[own.name], own.vocabulary_size
        if segments and sum(segments[-1][::2]) == row:  # slots are in the same order
            num_rows += segments[-1].num_rows
            segments[-1] = segments[-1]._replace(num_rows=num_rows)
        else:
            segments.append(Segment(row, part.first_slot_row[own.name], num_rows))
    return segments


def move_by_blocks(part: TrainedPart, segments: Sequence[Segment], step: Step) -> None:
    """Move all rows of a part, without gradients, with TensorFlow's operations."""
    optimizer, table = part.optimizer, part.variable
    width, dtype = table.shape[1], row_ops.row_dtype(table.shape[0])
    block = max(1, _BLOCK_VALUES // width)
    for segment in segments:
        for first in range(0, segment.num_rows, block):
            own = tf.range(first, min(first + block, segment.num_rows), dtype=dtype)
            rows, slot_rows = own + segment.row, own + segment.slot_row
            current = row_ops.gather(table, rows)
            state = {
                name: row_ops.gather(slot, slot_rows)
                for name, slot in part.slots.items()
            }
            rate = step.rate(optimizer)
            zero = tf.zeros(())
            new, new_state = optimizer.apply(zero, state, rate, step.number, current)
            pairs = [(table, rows, new, current)]
            pairs += [
                (slot, slot_rows, new_state[name], state[name])
                for name, slot in part.slots.items()
            ]
            for variable, places, values, before in pairs:
                if step.applies is not None:
                    values = tf.where(step.applies, values, before)
                row_ops.replace(variable, places, values)


def multiply(part: TrainedPart, segments: Sequence[Segment], factor: tf.Tensor) -> None:
    """Multiply all rows of a part by a scalar, block by block."""
    table = part.variable
    dtype = row_ops.row_dtype(table.shape[0])
    block = max(1, _BLOCK_VALUES // table.shape[1])

    def multiply_block(first, end):
        rows = tf.range(first, tf.minimum(first + block, end))
        row_ops.replace(table, rows, row_ops.gather(table, rows) * factor)
        return first + block, end

    for segment in segments:
        ends = segment.row, segment.row + segment.num_rows
        tf.while_loop(
            lambda first, end: first < end,
            multiply_block,
            [tf.constant(row, dtype) for row in ends],
            parallel_iterations=1,
        )


class AllRowsKernels:
    """XLA kernels that update all rows of a part.

    Args:
        part: The part, whose optimizer moves rows without a gradient.
        table: The `FusedTable`.
    """

    marks_state = False  # marks of repeated rows are in a vector of their own

    def __init__(self, part: TrainedPart, table: "FusedTable") -> None:
        self._part, self._null_row = part, table.null_row
        self._places, self._segments = table.places, segments_of(part, table)
        self._num_rows = sum(segment.num_rows for segment in self._segments)
        self._is_whole = len(part.first_slot_row) == len(table.tables)
        self._slot_offsets = np.array(
            [part.first_slot_row.get(owner.name, -1) for owner in table.owners]
        )
        self._compute = xla.Kernel(self._compute_touched, "embedding_update")
        self._move = xla.Kernel(self._move_whole, "embedding_update")
        self._write = xla.Kernel(self._write_touched, "embedding_update")
        self._sum = xla.Kernel(self._sum_densely, "embedding_update")

    def update(
        self, packed: xla_bags.PackedIds, gradients: tf.Tensor, step: Step
    ) -> None:
        """Update the part from the gradients of pooled bags, `(N, D)`."""
        rate = step.rate(self._part.optimizer)
        arguments = (packed, gradients, rate, step.number)

        def by_rows():
            touched = self._compute(*arguments, compiled=True)
            if self._is_whole:
                self._move(tf.zeros(()), rate, step.number, compiled=True)
            else:  # XLA would copy the tables
                move_by_blocks(self._part, self._segments, step)
            self._write(*touched, compiled=True)
            return tf.constant(True)

        def densely():
            sums = self._sum(packed, gradients, compiled=True)
            self._move(sums, rate, step.number, compiled=True)
            return tf.constant(True)

        num_values = packed.ids.shape.num_elements()
        if num_values is None:
            num_values = tf.size(packed.ids)
        is_short = num_values < self._num_rows // 4
        needs_rows = isinstance(self._part.optimizer, PenalizedOptimizer)
        if not self._is_whole or needs_rows or is_short is True:
            by_rows()
        elif is_short is False:
            densely()
        else:
            tf.cond(is_short, by_rows, densely)
        # Other updates may have left something in the slots of the null row.
        table = self._part.variable
        null = tf.constant([self._null_row], row_ops.row_dtype(table.shape[0]))
        row_ops.replace(table, null, tf.zeros((1, table.shape[1])))

    def _compute_touched(self, packed, gradients, rate, number):
        """Return the new values of the rows in the batch, without writing anything.

        This is a kernel of its own, as `_move_whole` and `_write_touched` are: in a
        single kernel XLA would copy the tables.

        Returns:
            Rows `(V,)` and slot rows `(V,)`, -1 for values for which another value
            acts; new rows `(V, D)`, and a list of new state.
        """
        part = self._part
        flat = xla_bags.flatten(
            xla_bags.PackedIds(*packed), self._places, self._slot_offsets
        )
        num_values = tf.shape(flat.rows)[0]
        position = tf.range(num_values)
        # Of the values of a row, the one whose position is written acts for all.
        marks = tf.tensor_scatter_nd_update(
            tf.zeros((self._num_rows,), tf.int32), flat.slot_rows[:, None], position
        )
        known = tf.maximum(flat.slot_rows, 0)
        acting = tf.where(flat.slot_rows >= 0, tf.gather(marks, known), position)
        sums = tf.math.unsorted_segment_sum(flat.spread(gradients), acting, num_values)
        state = {
            name: tf.gather(s.read_value(), known) for name, s in part.slots.items()
        }
        current = tf.gather(part.variable.read_value(), tf.maximum(flat.rows, 0))
        new, state = part.optimizer.apply(
            sums[:, part.columns], state, rate, number, current
        )
        acts = acting == position
        rows = tf.where(acts, flat.rows, -1)
        slot_rows = tf.where(acts, flat.slot_rows, -1)
        return rows, slot_rows, new, [state[name] for name in part.slots]

    def _write_touched(self, rows, slot_rows, new, state):
        table, *slots = (variable.read_value() for variable in self._variables)
        table = tf.tensor_scatter_nd_update(table, rows[:, None], new)
        slots = [
            tf.tensor_scatter_nd_update(slot, slot_rows[:, None], values)
            for slot, values in zip(slots, state, strict=True)
        ]
        self._assign(table, *slots)

    def _sum_densely(self, packed, gradients):
        flat = xla_bags.flatten(
            xla_bags.PackedIds(*packed), self._places, self._slot_offsets
        )
        sums = tf.math.unsorted_segment_sum(
            flat.spread(gradients), flat.slot_rows, self._num_rows + 1
        )
        return sums[:, self._part.columns]

    def _move_whole(self, gradients, rate, number):
        """Apply a step to all rows of the variables, whose null rows are at one place.

        Args:
            gradients: Gradients by row, or a scalar 0.
            rate: The learning rate.
            number: The number of the step.
        """
        names = list(self._part.slots)
        table, *slots = (variable.read_value() for variable in self._variables)
        state = dict(zip(names, slots, strict=True))
        table, state = self._part.optimizer.apply(gradients, state, rate, number, table)
        self._assign(table, *(state[name] for name in names))

    @property
    def _variables(self):
        return (self._part.variable, *self._part.slots.values())

    def _assign(self, *values):
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value, read_value=False)
