"""Dense optimizers with weight decay, which move all rows of the tables at each step.

They equal Keras' optimizers on the loss plus `l2 / 2` times the sum of the squares of
all values of the tables.
"""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import LearningRate, SparseOptimizer
from tf_dlrm.optimizers.sparse_adagrad import SparseAdagrad
from tf_dlrm.optimizers.sparse_adam import SparseAdam
from tf_dlrm.optimizers.sparse_sgd import SparseSGD
from tf_dlrm.runtime.errors import UserError

MAX_VALUES = 64_000_000
"""Default limit of the values (rows times width) that a dense optimizer trains."""


class DenseOptimizer(SparseOptimizer):
    """Base class of optimizers that apply a row-sparse optimizer's rule to all rows.

    Args:
        rule: Row-sparse optimizer, which computes the change of a row. Its learning
            rate is not used.
        learning_rate: Float, Keras schedule, or `None` to follow the model's optimizer.
        l2: Strength of the L2 penalty, at least 0.
        max_values: Largest number of values, in all tables of this optimizer together.
        divides_by_zero: Whether the rule may compute 0 / 0 for rows without gradient.
        moves_other_rows: Whether rows without gradient move even if `l2` is 0.

    Attributes:
        rule: The row-sparse optimizer, which has the constants, such as `rule.epsilon`.

    Raises:
        ValueError: If `l2` is negative or not finite, or `max_values` is not positive.
    """

    writes_rows = True

    def __init__(
        self,
        rule: SparseOptimizer,
        learning_rate: LearningRate,
        l2: float,
        max_values: int,
        divides_by_zero: bool = False,
        moves_other_rows: bool = False,
    ) -> None:
        super().__init__(learning_rate)
        if not 0.0 <= l2 < float("inf"):
            raise UserError(f"`l2` must be finite and not negative. Received: {l2}")
        if max_values < 1:
            raise UserError(f"`max_values` must be at least 1. Received: {max_values}")
        self.l2, self.max_values = float(l2), int(max_values)
        self.moves_other_rows = moves_other_rows or self.l2 > 0.0
        self.rule, self._divides_by_zero = rule, divides_by_zero

    def check_tables(self, tables: Iterable[EmbeddingTable]) -> None:
        sizes = {t.name: t.vocabulary_size * t.embedding_dim for t in tables}
        total = sum(sizes.values())
        if not self.moves_other_rows or total <= self.max_values:
            return
        name = max(sizes, key=lambda name: sizes[name])
        sparse = type(self.rule).__name__
        raise UserError(
            f"{type(self).__name__} moves every row of its tables at every step, which "
            f"is slow for large ones. Its tables have {total:,} values (rows times "
            f"width), more than max_values={self.max_values:,}; the largest is "
            f"'{name}' with {sizes[name]:,}. Give it a row-sparse optimizer, "
            f"embedding_optimizer={{'{name}': tf_dlrm.optimizers.{sparse}(...), ...}}, "
            f"or allow the size: max_values={total}."
        )

    def slots(self, embedding_dim: int) -> dict[str, tuple[int, float]]:
        return self.rule.slots(embedding_dim)

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
        if self.l2 and rows is not None:
            gradients = gradients + self.l2 * rows
        change, state = self.rule.apply(gradients, slots, learning_rate, step)
        if self._divides_by_zero:
            is_undefined = tf.math.is_nan(change) & (gradients == 0.0)
            change = tf.where(is_undefined, 0.0, change)
        return rows - change, state

    def get_config(self) -> dict[str, Any]:
        own = {"l2": self.l2, "max_values": self.max_values}
        return {**self.rule.get_config(), **super().get_config(), **own}


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
        super().__init__(SparseSGD(None), learning_rate, l2, max_values)


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
        epsilon_outside_root: Whether to divide by `sqrt(accumulator) + epsilon`, as
            torch does. Its initial accumulator value is 0.
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
        epsilon_outside_root: bool = False,
        l2: float = 0.0,
        max_values: int = MAX_VALUES,
    ) -> None:
        rule = SparseAdagrad(
            None, initial_accumulator_value, epsilon, epsilon_outside_root
        )
        super().__init__(
            rule, learning_rate, l2, max_values, divides_by_zero=epsilon == 0
        )


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
        corrects_epsilon: Whether to add `epsilon` to the root of the bias-corrected
            second moment, as torch does (its `eps` is 1e-8). This matters for rows that
            are rarely in a batch, whose gradients are about as small as `epsilon`.
        l2: Strength of the L2 penalty: the loss gets `l2 / 2` times the sum of the
            squares of all values of the tables, as `weight_decay` of `torch.optim.Adam`
            does. (AdamW's decay, which is not part of the gradient, is different.)
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
        corrects_epsilon: bool = False,
        l2: float = 0.0,
        max_values: int = MAX_VALUES,
    ) -> None:
        super().__init__(
            SparseAdam(None, beta_1, beta_2, epsilon, corrects_epsilon),
            learning_rate,
            l2,
            max_values,
            divides_by_zero=epsilon == 0,
            moves_other_rows=True,  # they follow their momentum
        )
