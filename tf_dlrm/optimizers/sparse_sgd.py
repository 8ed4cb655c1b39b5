"""Stochastic gradient descent on the touched rows."""

import keras

from tf_dlrm import rows as row_ops
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

    def __init__(self, learning_rate=0.01):
        super().__init__(learning_rate)

    def update(self, table, slots, rows, gradients, learning_rate, step, to_slot_rows):
        # Subtraction adds up over repeated rows: summing them first gains nothing.
        row_ops.subtract(table, rows, learning_rate * gradients)
