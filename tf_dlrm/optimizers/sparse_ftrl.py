"""FTRL (follow the regularized leader) for the rows of a batch."""

from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.optimizers.base import LearningRate, SparseOptimizer
from tf_dlrm.runtime.errors import UserError


@keras.saving.register_keras_serializable(package="tf_dlrm")
class SparseFtrl(SparseOptimizer):
    """FTRL-proximal: Adagrad-like steps with an L1 penalty that gives exact zeros.

    For each value w, with g the sum of its gradients over the row's occurrences in the
    batch: `n' = n + g²`, `z += g - (sqrt(n') - sqrt(n)) / learning_rate * w`,
    `w = (clip(z, -l1, l1) - z) / ((beta + sqrt(n')) / learning_rate + 2 l2)`.

    It equals Keras' `Ftrl` on the rows of the batch. Rows that are not in the batch
    keep their values, whereas Keras' `Ftrl` sets rows that no batch has touched to
    zero. A step with learning rate 0 changes neither rows nor state, because the state
    would become infinite.

    Args:
        learning_rate: Float, Keras schedule, or `None` to follow the model's optimizer.
        initial_accumulator_value: Initial value of n.
        l1_regularization_strength: L1 penalty, at least 0.
        l2_regularization_strength: L2 penalty, at least 0.
        beta: Smoothing term added to the root of n, at least 0.

    Raises:
        ValueError: If one of these numbers is negative.

    Reference:
        McMahan et al. 2013, Ad click prediction: a view from the trenches, algorithm 1.
    """

    writes_rows = True

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        beta: float = 0.0,
    ) -> None:
        super().__init__(learning_rate)
        options = {
            "initial_accumulator_value": initial_accumulator_value,
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
            "beta": beta,
        }
        for name, value in options.items():
            if value < 0:
                raise UserError(f"`{name}` must not be negative. Received: {value}")
        self.initial_accumulator_value = float(initial_accumulator_value)
        self.l1_regularization_strength = float(l1_regularization_strength)
        self.l2_regularization_strength = float(l2_regularization_strength)
        self.beta = float(beta)

    def slots(self, embedding_dim: int) -> dict[str, tuple[int, float]]:
        return {
            "accumulator": (embedding_dim, self.initial_accumulator_value),
            "linear": (embedding_dim, 0.0),
        }

    def apply(
        self,
        gradients: tf.Tensor,
        slots: dict[str, tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        rows: tf.Tensor | None = None,
        mean_squares: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        moves = learning_rate > 0.0
        learning_rate = tf.where(moves, learning_rate, 1.0)
        old_root = tf.sqrt(slots["accumulator"])
        accumulator = slots["accumulator"] + tf.square(gradients)
        root = tf.sqrt(accumulator)
        linear = slots["linear"] + gradients
        linear -= (root - old_root) / learning_rate * rows
        l1, l2 = self.l1_regularization_strength, self.l2_regularization_strength
        divisor = (self.beta + root) / learning_rate + 2.0 * l2
        new_rows = (tf.clip_by_value(linear, -l1, l1) - linear) / divisor
        state = {"accumulator": accumulator, "linear": linear}
        state = {name: tf.where(moves, state[name], slots[name]) for name in state}
        return tf.where(moves, new_rows, rows), state

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "initial_accumulator_value": self.initial_accumulator_value,
            "l1_regularization_strength": self.l1_regularization_strength,
            "l2_regularization_strength": self.l2_regularization_strength,
            "beta": self.beta,
        }
