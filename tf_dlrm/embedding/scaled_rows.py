"""Decay of whole tables by one number: rows are stored divided by a common scale.

A row w is stored as v, where `w = scale * v`. A step that multiplies all rows by a
factor multiplies the scale, so it does not pass over the rows. Lookups multiply pooled
vectors by the scale. Everything else reads the rows after `TableStore.settle`, which
multiplies them by the scale and sets it to 1.
"""

from collections.abc import Callable

import tensorflow as tf

from tf_dlrm.optimizers.base import SparseOptimizer

_SMALLEST = 1e-9  # rows are settled before the scale becomes smaller


class ScaledOptimizer(SparseOptimizer):
    """An optimizer whose rows are stored divided by a scale.

    Its learning rate is that of the stored rows. If it is not linear, it is a vector:
    the rate of the optimizer, the scale before the step, and 1 / the scale after it.

    Args:
        optimizer: The optimizer of the rows, with `shrinks_all_rows`.

    Attributes:
        scale: The scale, a float64 variable: its rounding in float32 would be larger
            than the decay of a step.
    """

    def __init__(self, optimizer: SparseOptimizer) -> None:
        super().__init__()
        self.optimizer = optimizer
        self.is_linear, self.writes_rows = optimizer.is_linear, optimizer.writes_rows
        self.uses_mean_squares = optimizer.uses_mean_squares
        one = tf.ones((), tf.float64)
        self.scale: tf.Variable = tf.Variable(one, trainable=False, name="scale")

    def advance(
        self,
        rate: tf.Tensor,
        applies: tf.Tensor | None,
        settle: Callable[[], object],
    ) -> tf.Tensor:
        """Shrink all rows by the factor of a step, and return its learning rate.

        Args:
            rate: Learning rate of the optimizer, a scalar or a vector that begins with
                it.
            applies: Whether the step changes anything; `None` is `True`.
            settle: Function that settles the rows of this optimizer.
        """
        factor = self.optimizer.shrinkage(rate if rate.shape.rank == 0 else rate[0])
        # Zero would lose the gradients; the difference is below rounding.
        is_zero = tf.abs(factor) < _SMALLEST
        factor = tf.where(is_zero, tf.constant(_SMALLEST, tf.float64), factor)
        if applies is not None:
            factor = tf.where(applies, factor, tf.ones_like(factor))

        def settled():
            settle()
            return tf.ones((), tf.float64)

        scale = self.scale.read_value()
        is_small = tf.abs(scale * factor) < _SMALLEST
        before = tf.cond(is_small, settled, lambda: tf.identity(scale))
        after = before * factor
        self.scale.assign(after)
        before, inverse = (tf.cast(x, tf.float32) for x in (before, 1.0 / after))
        if self.is_linear:
            return rate * inverse
        return tf.concat([tf.reshape(rate, (-1,)), tf.stack([before, inverse])], 0)

    def slots(self, embedding_dim: int) -> dict[str, tuple[int, float]]:
        return self.optimizer.slots(embedding_dim)

    def apply(
        self,
        gradients: tf.Tensor,
        slots: dict[str, tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        rows: tf.Tensor | None = None,
        mean_squares: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        own = self.optimizer
        if self.is_linear or rows is None:
            return own.apply(gradients, slots, learning_rate, step)
        rate, before, inverse = learning_rate[:-2], learning_rate[-2], learning_rate[-1]
        current = rows * before
        new, slots = own.apply(gradients, slots, rate, step, current, mean_squares)
        return rows - (current - new) * inverse, slots
