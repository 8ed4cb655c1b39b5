"""Stochastic gradient descent for the rows of a batch."""

from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.optimizers.base import LearningRate, SparseOptimizer
from tf_dlrm.runtime.errors import UserError


@keras.saving.register_keras_serializable(package="tf_dlrm")
class SparseSGD(SparseOptimizer):
    """SGD without momentum, equal to dense SGD: `row -= learning_rate * gradient`.

    With `l2`, it equals dense SGD on the loss plus `l2 / 2` times the sum of the
    squares of all values of its tables, like `DenseSGD`: at each step,
    `row -= learning_rate * (gradient + l2 * row)` for every row. But a step does not
    pass over all rows: they are stored divided by a scale, which the step multiplies by
    `1 - learning_rate * l2`, and lookups multiply by the scale. Methods and properties
    of the model and its layers, such as `get_table` and `weights`, files, checkpoints
    and exports hold the rows themselves; the first of these after a step multiplies all
    rows by the scale. A `tf.Variable` that you keep from `weights` holds scaled values
    between the batches of `fit` and after `train_on_batch`; restore checkpoints of
    other optimizers before or after `fit`.

    Args:
        learning_rate: Float, Keras schedule, or `None` to follow the model's optimizer.
        l2: Strength of the L2 penalty on whole tables, at least 0.

    Raises:
        ValueError: If `l2` is negative or not finite.

    Example:

    >>> import tf_dlrm
    >>> tf_dlrm.optimizers.SparseSGD(0.1).learning_rate
    0.1
    """

    is_linear = True

    def __init__(self, learning_rate: LearningRate = 0.01, l2: float = 0.0) -> None:
        super().__init__(learning_rate)
        if not 0.0 <= l2 < float("inf"):
            raise UserError(f"`l2` must be finite and not negative. Received: {l2}")
        self.l2 = float(l2)
        self.shrinks_all_rows = self.l2 > 0.0

    def shrinkage(self, learning_rate: tf.Tensor) -> tf.Tensor:
        return 1.0 - self.l2 * tf.cast(learning_rate, tf.float64)

    def apply(
        self,
        gradients: tf.Tensor,
        slots: dict[str, tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        rows: tf.Tensor | None = None,
        mean_squares: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        return learning_rate * gradients, {}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "l2": self.l2}
