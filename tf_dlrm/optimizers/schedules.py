"""Learning-rate schedules of the DLRM world."""

from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError


@keras.saving.register_keras_serializable(package="tf_dlrm")
class WarmupPolynomialDecay(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up, constant, then polynomial decay: the schedule of MLPerf's DLRM.

    With s the number of the step, from 1: `learning_rate * s / warmup_steps` up to
    `warmup_steps`; constant before `decay_start_step`; then
    `learning_rate * (1 - (s - decay_start_step) / decay_steps) ** power`, down to
    `end_learning_rate`, where it stays. Use one object for the MLPs' optimizer
    and another, with its own rate, for the tables'.

    Args:
        learning_rate: The rate of the constant part.
        warmup_steps: Steps of the warm-up; 0 for none.
        decay_start_step: Step at which the decay begins; not inside the warm-up.
        decay_steps: Steps of the decay; 0 for none.
        power: Power of the decay.
        end_learning_rate: Smallest rate of the decay.

    Call arguments:
        step: Steps done so far (0 at the first one), integer scalar.

    Returns:
        float32 scalar: the rate of the step to come.

    Raises:
        ValueError: If a number of steps is negative, or the decay begins in the
            warm-up.

    Example:

    >>> import tf_dlrm
    >>> rate = tf_dlrm.optimizers.WarmupPolynomialDecay(24.0, 2750, 49315, 27772)
    >>> [round(float(rate(step)), 4) for step in (0, 2749, 30000, 60000)]
    [0.0087, 24.0, 24.0, 9.084]

    Reference:
        `LRPolicyScheduler` of facebookresearch/dlrm (`dlrm_s_pytorch.py`), with the
        rate after the end at `end_learning_rate` rather than at its last value.
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
                "`decay_start_step` must not lie inside the warm-up. Received: "
                f"decay_start_step={decay_start_step}, warmup_steps={warmup_steps}"
            )
        self.learning_rate = float(learning_rate)
        self.warmup_steps = int(warmup_steps)
        self.decay_start_step = int(decay_start_step)
        self.decay_steps = int(decay_steps)
        self.power = float(power)
        self.end_learning_rate = float(end_learning_rate)

    def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
        # float64: step numbers beyond 2^24 stay apart.
        number = tf.cast(step, tf.float64) + 1.0
        scale = tf.ones_like(number)
        if self.warmup_steps:
            scale = tf.minimum(scale, number / self.warmup_steps)
        rate = self.learning_rate * scale
        if self.decay_steps:
            done = (number - self.decay_start_step) / self.decay_steps
            left = tf.maximum(1.0 - done, 0.0) ** self.power
            decayed = tf.maximum(self.learning_rate * left, self.end_learning_rate)
            rate = tf.where(number >= self.decay_start_step, decayed, rate)
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
