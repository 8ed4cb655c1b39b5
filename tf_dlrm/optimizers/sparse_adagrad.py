"""Adagrad for the rows of a batch, with an accumulator for each value or each row."""

from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.optimizers.base import LearningRate, SparseOptimizer, check_not_negative


@keras.saving.register_keras_serializable(package="tf_dlrm")
class SparseAdagrad(SparseOptimizer):
    """Adagrad, equal to dense Keras Adagrad, which does not move rows without gradient.

    `accumulator += g²`, then `row -= learning_rate * g / sqrt(accumulator + epsilon)`,
    where g is the sum of the gradients over the row's occurrences in the batch.

    Args:
        learning_rate: Float, Keras schedule, or `None` to follow the model's optimizer.
        initial_accumulator_value: Initial value of the accumulators.
        epsilon: Small number that prevents division by zero.
        epsilon_outside_root: Whether to divide by `sqrt(accumulator) + epsilon`, as
            torch and FBGEMM do. Their initial accumulator value is 0.

    Raises:
        ValueError: If `initial_accumulator_value` or `epsilon` is negative.

    Reference:
        Duchi et al. 2011, Adaptive Subgradient Methods, algorithm 1.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        epsilon_outside_root: bool = False,
    ) -> None:
        super().__init__(learning_rate)
        check_not_negative(
            initial_accumulator_value=initial_accumulator_value, epsilon=epsilon
        )
        self.initial_accumulator_value = float(initial_accumulator_value)
        self.epsilon = float(epsilon)
        self.epsilon_outside_root = bool(epsilon_outside_root)

    def slots(self, embedding_dim: int) -> dict[str, tuple[int, float]]:
        return {"accumulator": (embedding_dim, self.initial_accumulator_value)}

    def apply(
        self,
        gradients: tf.Tensor,
        slots: dict[str, tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        rows: tf.Tensor | None = None,
        mean_squares: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        accumulator = slots["accumulator"] + tf.square(gradients)
        if self.epsilon_outside_root:
            change = gradients / (tf.sqrt(accumulator) + self.epsilon)
        else:
            change = gradients * tf.math.rsqrt(accumulator + self.epsilon)
        return learning_rate * change, {"accumulator": accumulator}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
            "epsilon_outside_root": self.epsilon_outside_root,
        }


@keras.saving.register_keras_serializable(package="tf_dlrm")
class RowWiseAdagrad(SparseOptimizer):
    """Adagrad with one accumulator for each row, which needs little memory.

    `accumulator += mean(g²)`, then
    `row -= learning_rate * g / (sqrt(accumulator) + epsilon)`, like FBGEMM's
    `EXACT_ROWWISE_ADAGRAD`. The state is `1 / embedding_dim` of the size of the table.

    Args:
        learning_rate: Float, Keras schedule, or `None` to follow the model's optimizer.
        initial_accumulator_value: Initial value of the accumulators.
        epsilon: Small number that prevents division by zero.

    Raises:
        ValueError: If `initial_accumulator_value` or `epsilon` is negative.

    Reference:
        Mudigere et al. 2021, arXiv 2104.05158, section 4.1.1.
    """

    uses_mean_squares = True

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        initial_accumulator_value: float = 0.0,
        epsilon: float = 1e-8,
    ) -> None:
        super().__init__(learning_rate)
        check_not_negative(
            initial_accumulator_value=initial_accumulator_value, epsilon=epsilon
        )
        self.initial_accumulator_value = float(initial_accumulator_value)
        self.epsilon = float(epsilon)

    def slots(self, embedding_dim: int) -> dict[str, tuple[int, float]]:
        return {"accumulator": (1, self.initial_accumulator_value)}

    def apply(
        self,
        gradients: tf.Tensor,
        slots: dict[str, tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        rows: tf.Tensor | None = None,
        mean_squares: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        accumulator = slots["accumulator"] + mean_squares
        scale = learning_rate / (tf.sqrt(accumulator) + self.epsilon)
        return scale * gradients, {"accumulator": accumulator}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
        }
