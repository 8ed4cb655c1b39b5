"""Lookups and updates with TensorFlow's own operations, on any device."""

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from tf_dlrm.embedding import id_ranges
from tf_dlrm.embedding.engines import all_rows
from tf_dlrm.embedding.engines.engine import Engine, PooledGradients, Step, TrainedPart
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.types import Ids

# Shapes: V values in the batch, U unique rows, D width.


class PlainEngine(Engine):
    """Engine that uses TensorFlow's gather, segment sum, unique and scatter."""

    def pool(
        self, handle: tf.Tensor, ids: Ids, weights: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        lookup = self._table.lookup(ids, weights)
        embeddings = row_ops.gather_from(handle, lookup.rows, self._table.width)
        bad = id_ranges.any_out_of_range(ids, self._table.places.sizes)
        return lookup.pool(embeddings), bad

    def build_optimizer(self) -> None:
        """Do nothing: updates need no preparation."""

    def update(self, batch: PooledGradients, step: Step) -> None:
        self.update_parts(self._table.parts, batch, step)

    def update_parts(
        self, parts: Sequence[TrainedPart], batch: PooledGradients, step: Step
    ) -> None:
        """Update some of the parts from the gradients of pooled bags."""
        if parts:
            lookup = self._table.lookup(batch.ids, batch.weights)
            rows, gradients = lookup.unpool(batch.gradients)
            self.update_rows(parts, rows, gradients, step)

    def update_rows(
        self,
        parts: Sequence[TrainedPart],
        rows: tf.Tensor,
        gradients: tf.Tensor,
        step: Step,
    ) -> None:
        """Update parts from the gradients of rows.

        Args:
            parts: The parts to update.
            rows: Rows of the variable, `(V,)`, possibly with repetitions.
            gradients: Gradients of the rows, float32 `(V, D)`.
            step: The optimizer step.
        """
        table = self._table
        for part in parts:
            part_rows, part_gradients = rows, gradients
            if len(part.first_slot_row) < len(table.tables):
                belongs = tf.gather(table.belongs_to(part), table.table_of(rows))
                part_rows = tf.boolean_mask(rows, belongs)
                part_gradients = tf.boolean_mask(gradients, belongs)
            _update(
                part,
                part_rows,
                part_gradients,
                step,
                functools.partial(table.slot_rows, part),
                all_rows.segments_of(part, table),
            )
        # The gradients of missing ids go to the null row: cheaper than masking them.
        null = tf.constant([table.null_row], table.row_dtype)
        row_ops.replace(table.variable, null, tf.zeros((1, table.width)))


def _update(
    part: TrainedPart,
    rows: tf.Tensor,
    gradients: tf.Tensor,
    step: Step,
    to_slot_rows: Callable[[tf.Tensor], tf.Tensor],
    segments: Sequence[all_rows.Segment],
) -> None:
    """Update rows `(V,)` from gradients `(V, D)`, summed over repeated rows."""
    optimizer, table, rate = part.optimizer, part.variable, step.rate(part.optimizer)
    if optimizer.is_linear:
        own = gradients[:, part.columns]
        change, _ = optimizer.apply(own, {}, rate, step.number)
        row_ops.subtract(table, rows, change)
        return
    rows, gradients = row_ops.sum_repeated(rows, gradients)
    slot_rows = to_slot_rows(rows)
    state = {n: row_ops.gather(slot, slot_rows) for n, slot in part.slots.items()}
    current = row_ops.gather(table, rows) if optimizer.writes_rows else None
    squares = row_ops.mean_squares(gradients)
    change, state = optimizer.apply(
        gradients[:, part.columns], state, rate, step.number, current, squares
    )
    if optimizer.moves_other_rows:
        all_rows.move_by_blocks(part, segments, step)
    for name, slot in part.slots.items():
        row_ops.replace(slot, slot_rows, state[name])
    if optimizer.writes_rows:
        row_ops.replace(table, rows, change)
    else:
        row_ops.subtract(table, rows, change)
