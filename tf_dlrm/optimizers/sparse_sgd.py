"""Stochastic gradient descent for the rows of a batch."""

import keras
import tensorflow as tf

from tf_dlrm.optimizers.base import LearningRate, SparseOptimizer


@keras.saving.register_keras_serializable(package="tf_dlrm")
class SparseSGD(SparseOptimizer):
    """SGD without momentum, equal to dense SGD: `row -= learning_rate * gradient`.

    Args:
        learning_rate: Float, Keras schedule, or `None` to follow the model's optimizer.

    Example:

    >>> import tf_dlrm
    >>> tf_dlrm.optimizers.SparseSGD(0.1).learning_rate
    0.1
    """

    is_linear = True

    def __init__(self, learning_rate: LearningRate = 0.01) -> None:
        super().__init__(learning_rate)

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
