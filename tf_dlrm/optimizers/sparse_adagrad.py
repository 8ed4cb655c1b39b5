"""Adagrad on the touched rows, with one accumulator for each value or each row."""

import keras
import tensorflow as tf

from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime.errors import UserError


@keras.saving.register_keras_serializable(package="tf_dlrm")
class SparseAdagrad(SparseOptimizer):
    """Adagrad. Equals dense Keras Adagrad: a row without gradient does not move.

    `accumulator += g²`, then `row -= learning_rate * g / sqrt(accumulator + epsilon)`,
    where g is the sum over the row's occurrences in the batch.

    Args:
        learning_rate: See `SparseOptimizer`.
        initial_accumulator_value: What accumulators start at.
        epsilon: Small number against division by zero.
        epsilon_outside_root: `True` for the form of torch and FBGEMM,
            `sqrt(accumulator) + epsilon`; they also start at 0.

    Reference:
        Duchi et al. 2011, Adaptive Subgradient Methods, algorithm 1.
    """

    def __init__(
        self,
        learning_rate=0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        epsilon_outside_root: bool = False,
    ):
        super().__init__(learning_rate)
        _check_not_negative(
            initial_accumulator_value=initial_accumulator_value, epsilon=epsilon
        )
        self.initial_accumulator_value = float(initial_accumulator_value)
        self.epsilon = float(epsilon)
        self.epsilon_outside_root = bool(epsilon_outside_root)

    def slots(self, embedding_dim):
        return {"accumulator": (embedding_dim, self.initial_accumulator_value)}

    def apply(
        self, gradients, slots, learning_rate, step, rows=None, mean_squares=None
    ):
        accumulator = slots["accumulator"] + tf.square(gradients)
        if self.epsilon_outside_root:
            change = gradients / (tf.sqrt(accumulator) + self.epsilon)
        else:
            change = gradients * tf.math.rsqrt(accumulator + self.epsilon)
        return learning_rate * change, {"accumulator": accumulator}

    def get_config(self):
        return {
            **super().get_config(),
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
            "epsilon_outside_root": self.epsilon_outside_root,
        }


@keras.saving.register_keras_serializable(package="tf_dlrm")
class RowWiseAdagrad(SparseOptimizer):
    """Adagrad with one accumulator for a whole row: 1 / embedding_dim of the state.

    `accumulator += mean(g²)`, then
    `row -= learning_rate * g / (sqrt(accumulator) + epsilon)`, as FBGEMM's
    `EXACT_ROWWISE_ADAGRAD`.

    Args:
        learning_rate: See `SparseOptimizer`.
        initial_accumulator_value: What accumulators start at.
        epsilon: Small number against division by zero.

    Reference:
        Mudigere et al. 2021, arXiv 2104.05158, section 4.1.1.
    """

    uses_mean_squares = True

    def __init__(
        self,
        learning_rate=0.01,
        initial_accumulator_value: float = 0.0,
        epsilon: float = 1e-8,
    ):
        super().__init__(learning_rate)
        _check_not_negative(
            initial_accumulator_value=initial_accumulator_value, epsilon=epsilon
        )
        self.initial_accumulator_value = float(initial_accumulator_value)
        self.epsilon = float(epsilon)

    def slots(self, embedding_dim):
        return {"accumulator": (1, self.initial_accumulator_value)}

    def apply(
        self, gradients, slots, learning_rate, step, rows=None, mean_squares=None
    ):
        accumulator = slots["accumulator"] + mean_squares
        scale = learning_rate / (tf.sqrt(accumulator) + self.epsilon)
        return scale * gradients, {"accumulator": accumulator}

    def get_config(self):
        return {
            **super().get_config(),
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
        }


def _check_not_negative(**values) -> None:
    for name, value in values.items():
        if value < 0:
            raise UserError(f"`{name}` must not be negative. Received: {value}")
