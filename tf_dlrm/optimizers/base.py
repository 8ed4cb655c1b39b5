"""Base of all row-sparse optimizers: learning rate, slots, serialization."""

from typing import Any, Self, TypeAlias

import keras
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError

LearningRate: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule | None


class SparseOptimizer:
    """Base class of optimizers that update only the rows a batch touched.

    A subclass names its slots and writes one method, `apply`: pure mathematics on
    some rows. The engine gathers these rows and their state, sums the gradients of
    rows that occur several times in the batch, and writes the result back.

    Args:
        learning_rate: Float, `keras.optimizers.schedules.LearningRateSchedule`, or
            `None` to follow the learning rate of the model's optimizer. Read live
            at every step: assigning `optimizer.learning_rate = 0.01` acts at once.
            While `fit` runs, a float keeps its ratio to the rate of the model's
            optimizer when a callback assigns that one.

    Raises:
        ValueError: If `learning_rate` is neither.
    """

    is_linear = False
    """Whether the change is linear in the gradient and needs no state, so that
    repeated rows need not be summed first."""
    writes_rows = False
    """Whether `apply` gets the rows and returns their new values, not a change."""
    uses_mean_squares = False
    """Whether `apply` wants the mean of squares of each row's gradient, which the
    engine knows without going over the gradients where values share a bag's."""

    def __init__(self, learning_rate: LearningRate = None) -> None:
        self._variable = None
        self._value = None
        self._follows = False  # decided when the steps are made
        if isinstance(learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            self._value = learning_rate
        elif learning_rate is not None:
            self.learning_rate = learning_rate

    @property
    def learning_rate(self) -> LearningRate:
        """The learning rate now: a float, a schedule, or `None` if it follows."""
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
                "This optimizer follows the learning rate of the model: set that one, "
                "or compile with a rate of its own."
            )
        self._value = float(value)
        if self._variable is not None:
            self._variable.assign(self._value)

    def build(self) -> None:
        """Create the learning rate's variable, so that compiled steps read it live."""
        self._follows = self._value is None
        if isinstance(self._value, float) and self._variable is None:
            self._variable = tf.Variable(
                self._value, trainable=False, dtype=tf.float32, name="learning_rate"
            )

    @property
    def variables(self) -> list[tf.Variable]:
        """Variables of its own after `build`: the learning rate, if it is a float."""
        return [] if self._variable is None else [self._variable]

    def current_learning_rate(
        self, iterations: tf.Tensor, followed: tf.Tensor | None
    ) -> tf.Tensor:
        """Return the learning rate of step `iterations`: a float32 scalar tensor.

        Args:
            iterations: Steps done so far, int64 scalar.
            followed: The learning rate of the model's optimizer, or `None`.

        Raises:
            ValueError: If this optimizer has none and there is none to follow.
        """
        if isinstance(self._value, keras.optimizers.schedules.LearningRateSchedule):
            return tf.cast(self._value(iterations), tf.float32)
        if self._variable is not None:
            return self._variable.read_value()
        if followed is None:
            raise UserError(
                f"{type(self).__name__} has no learning rate: give it one, or train "
                "it beside a Keras optimizer whose rate it can follow."
            )
        return tf.cast(followed, tf.float32)

    def slots(self, embedding_dim: int) -> dict[str, tuple[int, float]]:
        """Return slots for rows of this width: name to (width, initial value)."""
        return {}

    def apply(
        self,
        gradients: tf.Tensor,
        slots: dict[str, tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        rows: tf.Tensor | None = None,
        mean_squares: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """Compute one step of U rows.

        Each row on its own, without sums over rows: engines may add rows whose result
        they drop. Gradients are summed by row, unless the optimizer `is_linear`. D may
        be fewer columns than `embedding_dim`, where a table is split by columns: use
        `mean_squares` for what needs the whole row.

        Args:
            gradients: `(U, D)` float32.
            slots: Name to state of these rows, `(U, width)` float32.
            learning_rate: float32 scalar tensor.
            step: Number of this step, from 1; int64 scalar tensor.
            rows: `(U, D)` the rows, where `writes_rows`.
            mean_squares: `(U, 1)` means of the squared gradients, where
                `uses_mean_squares`.

        Returns:
            `(U, D)` what to subtract from the rows (or with `writes_rows` their new
            values), and the new state of each slot, by name.
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
        """Make an optimizer from `get_config()`."""
        config = dict(config)
        if isinstance(config.get("learning_rate"), dict):
            config["learning_rate"] = keras.optimizers.schedules.deserialize(
                config["learning_rate"]
            )
        return cls(**config)
