"""Learning rate schedules for DLRM."""

from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError


@keras.saving.register_keras_serializable(package="tf_dlrm")
class WarmupPolynomialDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, constant rate, then polynomial decay, as in MLPerf's DLRM.

    Let s be the number of the step, counted from 1. The rate is
    `learning_rate * s / warmup_steps` up to step `warmup_steps`, then `learning_rate`
    until step `decay_start_step`, and then
    `learning_rate * (1 - (s - decay_start_step) / decay_steps) ** power`, but at least
    `end_learning_rate`. Use one object for the MLPs' optimizer and another, with its
    own rate, for the tables' optimizer.

    Args:
        learning_rate: Rate of the constant part.
        warmup_steps: Number of warm-up steps; 0 for none.
        decay_start_step: Step at which the decay begins, after the warm-up.
        decay_steps: Number of decay steps; 0 for none.
        power: Exponent of the decay.
        end_learning_rate: Lowest rate of the decay.

    Call arguments:
        step: Number of steps so far (0 at the first step), integer scalar.

    Returns:
        Learning rate of the next step, float32 scalar.

    Raises:
        ValueError: If a number of steps is negative, or the decay begins during the
            warm-up.

    Example:

    >>> import tf_dlrm
    >>> rate = tf_dlrm.optimizers.WarmupPolynomialDecay(24.0, 2750, 49315, 27772)
    >>> [round(float(rate(step)), 4) for step in (0, 2749, 30000, 60000)]
    [0.0087, 24.0, 24.0, 9.084]

    Reference:
        `LRPolicyScheduler` of facebookresearch/dlrm (`dlrm_s_pytorch.py`). Unlike
        there, the rate after the decay is `end_learning_rate`, not the last rate of the
        decay.
    """

    def __init__(
        self,
        learning_rate: float,
        warmup_steps: int = 0,
        decay_start_step: int = 0,
        decay_steps: int = 0,
        power: float = 2.0,
        end_learning_rate: float = 1e-7,
    ) -> None:
        super().__init__()
        for name, value in (
            ("warmup_steps", warmup_steps),
            ("decay_start_step", decay_start_step),
            ("decay_steps", decay_steps),
        ):
            if value < 0:
                raise UserError(f"`{name}` must not be negative. Received: {value}")
        if decay_steps and decay_start_step < warmup_steps:
            raise UserError(
                "`decay_start_step` must not be inside the warm-up. Received: "
                f"decay_start_step={decay_start_step}, warmup_steps={warmup_steps}"
            )
        self.learning_rate = float(learning_rate)
        self.warmup_steps = int(warmup_steps)
        self.decay_start_step = int(decay_start_step)
        self.decay_steps = int(decay_steps)
        self.power = float(power)
        self.end_learning_rate = float(end_learning_rate)

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        # float64 keeps step numbers beyond 2^24 distinct.
        number = tf.cast(step, tf.float64) + 1.0
        scale = tf.ones_like(number)
        if self.warmup_steps:
            scale = tf.minimum(scale, number / self.warmup_steps)
        rate = self.learning_rate * scale
        if self.decay_steps:
            progress = (number - self.decay_start_step) / self.decay_steps
            factor = tf.maximum(1.0 - progress, 0.0) ** self.power
            decay = tf.maximum(self.learning_rate * factor, self.end_learning_rate)
            rate = tf.where(number >= self.decay_start_step, decay, rate)
        return tf.cast(rate, tf.float32)

    def get_config(self) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "warmup_steps": self.warmup_steps,
            "decay_start_step": self.decay_start_step,
            "decay_steps": self.decay_steps,
            "power": self.power,
            "end_learning_rate": self.end_learning_rate,
        }
