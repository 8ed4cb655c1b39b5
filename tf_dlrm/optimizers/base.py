"""Base class of all row-sparse optimizers: learning rate, slots, serialization."""

from collections.abc import Iterable
from typing import Any, Self, TypeAlias

import keras
import tensorflow as tf

from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime.errors import UserError

LearningRate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule | None


class SparseOptimizer:
    """Base class of the tables' optimizers, which update the rows of a batch.

    A subclass names its slots and defines one method, `apply`, which is pure
    mathematics on some rows. The engine gathers these rows and their state, sums the
    gradients of rows that occur several times in the batch, and writes the result back.
    The dense optimizers, such as `DenseAdam`, update all other rows too.

    Args:
        learning_rate: Float, `keras.optimizers.schedules.LearningRateSchedule`, or
            `None` to follow the learning rate of the model's optimizer. Each step reads
            it, so assigning `optimizer.learning_rate = 0.01` takes effect immediately.
            If a callback changes the learning rate of the model's optimizer during
            `fit`, a float changes by the same factor.

    Raises:
        ValueError: If `learning_rate` is none of these, or is negative or not finite.
    """

    is_linear = False
    """Set to `True` if the change is linear in the gradient and needs no state, so that
    the gradients of repeated rows need not be summed first."""
    writes_rows = False
    """Set to `True` if `apply` receives the rows and returns their new values, not a
    change."""
    uses_mean_squares = False
    """Set to `True` if `apply` needs the mean square of each row's gradient. The engine
    can compute it from the gradients of the bags, which are fewer than the rows."""
    moves_other_rows = False
    """Set to `True` if a step also changes rows that are not in the batch, or their
    state. `apply` then gets a scalar 0 as their gradients; set `writes_rows` too."""

    shrinks_all_rows = False
    """Set to `True` if a step first multiplies all rows of its tables by `shrinkage`.
    The optimizer must be linear; `apply` computes the rest of the step."""

    def __init__(self, learning_rate: LearningRate = None) -> None:
        self._variable = None
        self._value = None
        self._follows = False  # `build` decides
        if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            self._value = learning_rate
        elif learning_rate is not None:
            self.learning_rate = learning_rate

    @property
    def learning_rate(self) -> LearningRate:
        """Current learning rate: a float, a schedule, or `None` if it follows."""
        if self._variable is not None:
            return float(self._variable.numpy())
        return self._value

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if not isinstance(value, (int, float)) and not hasattr(value, "__float__"):
            raise UserError(
                "`learning_rate` must be a float, a Keras LearningRateSchedule or "
                f"None. Received: learning_rate={value!r}"
            )
        if not 0.0 <= float(value) < float("inf"):
            raise UserError(
                "`learning_rate` must be finite and not negative. Received: "
                f"learning_rate={value!r}"
            )
        if isinstance(self._value, keras.optimizers.schedules.LearningRateSchedule):
            raise UserError(
                "The learning rate of this optimizer is a schedule and cannot be set."
            )
        if self._follows:
            raise UserError(
                "This optimizer follows the learning rate of the model's optimizer. "
                "Set that one, or compile with an optimizer with its own learning rate."
            )
        self._value = float(value)
        if self._variable is not None:
            self._variable.assign(self._value)

    def build(self) -> None:
        """Create the learning rate's variable, so that compiled steps can read it."""
        self._follows = self._value is None
        if isinstance(self._value, float) and self._variable is None:
            self._variable = tf.Variable(
                self._value, trainable=False, dtype=tf.float32, name="learning_rate"
            )

    def check_tables(self, tables: Iterable[EmbeddingTable]) -> None:
        """Raise an error if this optimizer cannot train the tables.

        Args:
            tables: All tables that it is to train.

        Raises:
            ValueError: If the tables are too large for an optimizer of all rows.
        """

    @property
    def variables(self) -> list[tf.Variable]:
        """Own variables after `build`: the learning rate, if it is a float."""
        return [] if self._variable is None else [self._variable]

    def current_learning_rate(
        self, iterations: tf.Tensor, followed: tf.Tensor | None
    ) -> tf.Tensor:
        """Return the learning rate of the next step, a float32 scalar tensor.

        Args:
            iterations: Number of steps so far, int64 scalar.
            followed: Learning rate of the model's optimizer, or `None`.

        Raises:
            ValueError: If this optimizer has no learning rate and `followed` is `None`.
        """
        if isinstance(self._value, keras.optimizers.schedules.LearningRateSchedule):
            return tf.cast(self._value(iterations), tf.float32)
        if self._variable is not None:
            return self._variable.read_value()
        if followed is None:
            raise UserError(
                f"{type(self).__name__} has no learning rate. Set one, or train with a "
                "Keras optimizer whose learning rate it can follow."
            )
        return tf.cast(followed, tf.float32)

    def slots(self, embedding_dim: int) -> dict[str, tuple[int, float]]:
        """Return the slots for rows of this width, by name: (width, initial value)."""
        return {}

    def shrinkage(self, learning_rate: tf.Tensor) -> tf.Tensor:
        """Return the factor of all rows in a step, a float64 scalar tensor.

        Args:
            learning_rate: float32 scalar tensor.
        """
        return tf.ones((), tf.float64)

    def apply(
        self,
        gradients: tf.Tensor,
        slots: dict[str, tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        rows: tf.Tensor | None = None,
        mean_squares: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Compute one step for U rows.

        Treat each row independently, because engines may add rows and discard their
        results. The gradients are summed by row, unless the optimizer `is_linear`. If a
        table is split by columns, D is less than `embedding_dim`: use `mean_squares`
        where you need the whole row.

        Args:
            gradients: `(U, D)` float32.
            slots: State of these rows by slot name, `(U, width)` float32.
            learning_rate: float32 scalar tensor.
            step: Number of this step, from 1; int64 scalar tensor.
            rows: The rows, `(U, D)`, if the class sets `writes_rows`.
            mean_squares: Means of the squared gradients, `(U, 1)`, if the class sets
                `uses_mean_squares`.

        Returns:
            The change to subtract from the rows, `(U, D)` (with `writes_rows`, the new
            rows), and the new state by slot name.
        """
        raise TypeError(f"{type(self).__name__} must define `apply`.")

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        rate = self.learning_rate
        if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule):
            rate = keras.optimizers.schedules.serialize(rate)
        return {"learning_rate": rate}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Create an optimizer from the result of `get_config()`."""
        config = dict(config)
        if isinstance(config.get("learning_rate"), dict):
            config["learning_rate"] = keras.optimizers.schedules.deserialize(
                config["learning_rate"]
            )
        return cls(**config)


def check_not_negative(**values: float) -> None:
    """Raise an error that names the first argument that is negative or NaN."""
    for name, value in values.items():
        if not value >= 0:
            raise UserError(f"`{name}` must not be negative. Received: {value}")
