"""Stochastic gradient descent on the touched rows."""

import keras

from tf_dlrm.optimizers.base import SparseOptimizer


@keras.saving.register_keras_serializable(package="tf_dlrm")
class SparseSGD(SparseOptimizer):
    """SGD without momentum: `row -= learning_rate * gradient`. Equals dense SGD.

    Args:
        learning_rate: See `SparseOptimizer`.

    Example:

    >>> import tf_dlrm
    >>> tf_dlrm.optimizers.SparseSGD(0.1).learning_rate
    0.1
    """

    is_linear = True

    def __init__(self, learning_rate=0.01):
        super().__init__(learning_rate)

    def apply(
        self, gradients, slots, learning_rate, step, rows=None, mean_squares=None
    ):
        return learning_rate * gradients, {}
