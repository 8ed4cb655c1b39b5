"""Dense optimizers with weight decay, which move all rows of the tables at each step.

They equal Keras' optimizers on the loss plus `l2 / 2` times the sum of the squares of
all values of the tables.
"""

import abc
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import LearningRate, SparseOptimizer
from tf_dlrm.runtime.errors import UserError

MAX_VALUES = 64_000_000
"""Default limit of the values (rows times width) that a dense optimizer trains."""


class DenseOptimizer(SparseOptimizer):
    """Base class of optimizers that move all rows at each step.

    `apply` gets the gradients of the rows of the batch, or a scalar 0 for all others.

    Args:
        learning_rate: Float, Keras schedule, or `None` to follow the model's optimizer.
        l2: Strength of the L2 penalty, at least 0.
        max_values: Largest number of values, in all tables of this optimizer together.

    Raises:
        ValueError: If `l2` is negative or not finite, or `max_values` is not positive.
    """

    writes_rows = True

    def __init__(self, learning_rate: LearningRate, l2: float, max_values: int) -> None:
        super().__init__(learning_rate)
        if not 0.0 <= l2 < float("inf"):
            raise UserError(f"`l2` must be finite and not negative. Received: {l2}")
        if max_values < 1:
            raise UserError(f"`max_values` must be at least 1. Received: {max_values}")
        self.l2, self.max_values = float(l2), int(max_values)
        self.moves_other_rows = self.l2 > 0.0

    def check_tables(self, tables: Iterable[EmbeddingTable]) -> None:
        sizes = {t.name: t.vocabulary_size * t.embedding_dim for t in tables}
        total = sum(sizes.values())
        if not self.moves_other_rows or total <= self.max_values:
            return
        name = max(sizes, key=lambda name: sizes[name])
        sparse = type(self).__name__.replace("Dense", "Sparse")
        raise UserError(
            f"{type(self).__name__} moves every row of its tables at every step, which "
            f"is slow for large ones. Its tables have {total:,} values (rows times "
            f"width), more than max_values={self.max_values:,}; the largest is "
            f"'{name}' with {sizes[name]:,}. Give it a row-sparse optimizer, "
            f"embedding_optimizer={{'{name}': tf_dlrm.optimizers.{sparse}(...), ...}}, "
            f"or allow the size: max_values={total}."
        )

    def _penalized(self, gradients: tf.Tensor, rows: tf.Tensor | None) -> tf.Tensor:
        """Return the gradients of the loss with its penalty."""
        if rows is None or not self.l2:
            return gradients
        return gradients + self.l2 * rows

    @abc.abstractmethod
    def apply(
        self,
        gradients: tf.Tensor,
        slots: dict[str, tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        rows: tf.Tensor | None = None,
        mean_squares: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Compute one step; `gradients` is a scalar 0 for rows without a gradient."""

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "l2": self.l2, "max_values": self.max_values}


@keras.saving.register_keras_serializable(package="tf_dlrm")
class DenseSGD(DenseOptimizer):
    """SGD with an L2 penalty on whole tables.

    At each step, for each row of each table, `row -= learning_rate * (g + l2 * row)`,
    where g is the sum of the gradients over the row's occurrences in the batch, 0 for
    rows that are not in it. With `l2=0`, it does what `SparseSGD` does.

    Args:
        learning_rate: Float, Keras schedule, or `None` to follow the model's optimizer.
        l2: Strength of the L2 penalty: the loss gets `l2 / 2` times the sum of the
            squares of all values of the tables.
        max_values: Largest number of values (rows times width) in all tables of this
            optimizer together, because each step passes over all of them.

    Raises:
        ValueError: If `l2` is negative or not finite, or `max_values` is not positive.

    Example:

    >>> import tf_dlrm
    >>> tf_dlrm.optimizers.DenseSGD(0.1, l2=1e-5).l2
    1e-05
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        l2: float = 0.0,
        max_values: int = MAX_VALUES,
    ) -> None:
        super().__init__(learning_rate, l2, max_values)

    def apply(
        self,
        gradients: tf.Tensor,
        slots: dict[str, tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        rows: tf.Tensor | None = None,
        mean_squares: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        return rows - learning_rate * self._penalized(gradients, rows), {}


@keras.saving.register_keras_serializable(package="tf_dlrm")
class DenseAdagrad(DenseOptimizer):
    """Adagrad with an L2 penalty on whole tables, equal to Keras' Adagrad.

    At each step, for each row of each table, with `g' = g + l2 * row`:
    `accumulator += g'²`, then
    `row -= learning_rate * g' / sqrt(accumulator + epsilon)`. With `l2=0`, it does what
    `SparseAdagrad` does.

    Args:
        learning_rate: Float, Keras schedule, or `None` to follow the model's optimizer.
        initial_accumulator_value: Initial value of the accumulators.
        epsilon: Small number that prevents division by zero.
        l2: Strength of the L2 penalty: the loss gets `l2 / 2` times the sum of the
            squares of all values of the tables.
        max_values: Largest number of values (rows times width) in all tables of this
            optimizer together, because each step passes over all of them.

    Raises:
        ValueError: If an argument is negative or `l2` is not finite.

    Reference:
        Duchi et al. 2011, Adaptive Subgradient Methods, algorithm 1.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        l2: float = 0.0,
        max_values: int = MAX_VALUES,
    ) -> None:
        super().__init__(learning_rate, l2, max_values)
        _check_not_negative("initial_accumulator_value", initial_accumulator_value)
        _check_not_negative("epsilon", epsilon)
        self.initial_accumulator_value = float(initial_accumulator_value)
        self.epsilon = float(epsilon)

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
        gradients = self._penalized(gradients, rows)
        accumulator = slots["accumulator"] + tf.square(gradients)
        change = gradients * tf.math.rsqrt(accumulator + self.epsilon)
        # 0 / 0 where neither a gradient nor the initial value is above 0.
        change = tf.where(accumulator + self.epsilon > 0.0, change, 0.0)
        return rows - learning_rate * change, {"accumulator": accumulator}

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
        }


@keras.saving.register_keras_serializable(package="tf_dlrm")
class DenseAdam(DenseOptimizer):
    """Adam with an L2 penalty on whole tables, equal to Keras' dense Adam.

    Unlike `SparseAdam`, it moves all rows of its tables at each step, also those that
    are not in the batch: their moments decay, they follow their momentum, and the
    penalty pulls them to zero. With `l2`, and a learning rate that falls when
    validation no longer improves, it is the optimizer of most published results on
    Criteo.

    At each step, for each row of each table, with `g' = g + l2 * row`:
    `m += (1 - beta_1) (g' - m)`, `v += (1 - beta_2) (g'² - v)`, and
    `row -= learning_rate * m / (sqrt(v) + epsilon)`, with the bias correction
    `sqrt(1 - beta_2^t) / (1 - beta_1^t)` of step t in the learning rate.

    Args:
        learning_rate: Float, Keras schedule, or `None` to follow the model's optimizer.
        beta_1: Decay of the first moment.
        beta_2: Decay of the second moment.
        epsilon: Small number added to the root of the second moment.
        l2: Strength of the L2 penalty: the loss gets `l2 / 2` times the sum of the
            squares of all values of the tables, as `weight_decay` of `torch.optim.Adam`
            does. (AdamW's decay, which is not part of the gradient, is different.)
        corrects_epsilon: Whether to add `epsilon` to the root of the bias-corrected
            second moment, as torch does (its `eps` is 1e-8). This matters for rows that
            are rarely in a batch, whose gradients are about as small as `epsilon`.
        max_values: Largest number of values (rows times width) in all tables of this
            optimizer together, because each step passes over all of them.

    Raises:
        ValueError: If `beta_1` or `beta_2` is outside `[0, 1)`, or `epsilon` or `l2` is
            negative.

    Example:

    >>> import tf_dlrm
    >>> tf_dlrm.optimizers.DenseAdam(0.001, l2=1e-5).get_config()["l2"]
    1e-05

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
        l2: float = 0.0,
        corrects_epsilon: bool = False,
        max_values: int = MAX_VALUES,
    ) -> None:
        super().__init__(learning_rate, l2, max_values)
        for name, value in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0.0 <= value < 1.0:
                raise UserError(f"`{name}` must be in [0, 1). Received: {value}")
        _check_not_negative("epsilon", epsilon)
        self.beta_1, self.beta_2 = float(beta_1), float(beta_2)
        self.epsilon = float(epsilon)
        self.corrects_epsilon = bool(corrects_epsilon)
        self.moves_other_rows = True  # they follow their momentum

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
        gradients = self._penalized(gradients, rows)
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
        rate = learning_rate * correction
        # With epsilon 0, the null row and rows that never had a gradient would be 0/0.
        divisor = tf.sqrt(velocity) + epsilon
        if not self.epsilon:
            divisor = tf.where(divisor > 0.0, divisor, 1.0)
        state = {"momentum": momentum, "velocity": velocity}
        return rows - rate * momentum / divisor, state

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "corrects_epsilon": self.corrects_epsilon,
        }


def _check_not_negative(name: str, value: float) -> None:
    if not value >= 0:
        raise UserError(f"`{name}` must not be negative. Received: {value}")
