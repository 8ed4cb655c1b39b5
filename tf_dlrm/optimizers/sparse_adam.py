"""Lazy Adam, for the rows of a batch."""

from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.optimizers.base import LearningRate, SparseOptimizer, check_not_negative
from tf_dlrm.runtime.errors import UserError


@keras.saving.register_keras_serializable(package="tf_dlrm")
class SparseAdam(SparseOptimizer):
    """Lazy Adam, which updates rows and their moments only when a batch touches them.

    It equals `torch.optim.SparseAdam`: the bias correction counts all steps, and rows
    that are not in the batch keep their values and moments. If every step touches every
    row, it equals dense Adam. Otherwise it differs: dense Adam moves all rows of all
    tables at every step, which is too slow for large tables.

    Args:
        learning_rate: Float, Keras schedule, or `None` to follow the model's optimizer.
        beta_1: Decay of the first moment.
        beta_2: Decay of the second moment.
        epsilon: Small number added to the root of the second moment.
        corrects_epsilon: Whether to add `epsilon` to the root of the bias-corrected
            second moment, as `torch.optim.Adam` does, but not its `SparseAdam`.

    Raises:
        ValueError: If `beta_1` or `beta_2` is outside `[0, 1)`, or `epsilon` is
            negative.

    Reference:
        Kingma and Ba 2014, arXiv 1412.6980: algorithm 1 with `corrects_epsilon`,
        otherwise the form before section 2.1.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        corrects_epsilon: bool = False,
    ) -> None:
        super().__init__(learning_rate)
        for name, value in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0.0 <= value < 1.0:
                raise UserError(f"`{name}` must be in [0, 1). Received: {value}")
        check_not_negative(epsilon=epsilon)
        self.beta_1, self.beta_2 = float(beta_1), float(beta_2)
        self.epsilon, self.corrects_epsilon = float(epsilon), bool(corrects_epsilon)

    def slots(self, embedding_dim: int) -> dict[str, tuple[int, float]]:
        return {"momentum": (embedding_dim, 0.0), "velocity": (embedding_dim, 0.0)}

    def apply(
        self,
        gradients: tf.Tensor,
        slots: dict[str, tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        rows: tf.Tensor | None = None,
        mean_squares: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        momentum, velocity = slots["momentum"], slots["velocity"]
        momentum += (1.0 - self.beta_1) * (gradients - momentum)
        velocity += (1.0 - self.beta_2) * (tf.square(gradients) - velocity)
        # In float32, 1 - 0.999 would lose four digits.
        step = tf.cast(step, tf.float64)
        root = tf.sqrt(1.0 - self.beta_2**step)
        correction = tf.cast(root / (1.0 - self.beta_1**step), tf.float32)
        epsilon = self.epsilon
        if self.corrects_epsilon:
            epsilon = epsilon * tf.cast(root, tf.float32)
        change = momentum / (tf.sqrt(velocity) + epsilon)
        state = {"momentum": momentum, "velocity": velocity}
        return learning_rate * correction * change, state

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "corrects_epsilon": self.corrects_epsilon,
        }
