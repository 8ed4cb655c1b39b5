"""`Gate`: the check of a trained model on held-out rows before replicas get it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError

HEALTHY, SUSPECT, BAD = "healthy", "suspect", "bad"


class Bounds:
    """Bounds of log loss and calibration, relative to the last release.

    Args:
        max_loss_increase: Largest increase of the log loss over that of the last
            release, as a share of it.
        calibration: Smallest and largest calibration, the mean prediction divided by
            the click rate.

    Raises:
        ValueError: If a bound is negative, or the calibration does not include 1.
    """

    def __init__(
        self,
        max_loss_increase: float = 0.01,
        calibration: tuple[float, float] = (0.8, 1.25),
    ) -> None:
        low, high = calibration
        if not max_loss_increase >= 0.0:
            rule = "`max_loss_increase` must be at least 0."
            raise UserError(f"{rule} Received: {max_loss_increase!r}")
        if not 0.0 <= low <= 1.0 <= high:
            rule = "`calibration` must be a range that includes 1."
            raise UserError(f"{rule} Received: {calibration!r}")
        self.max_loss_increase, self.calibration = max_loss_increase, (low, high)

    def find_fault(
        self, results: Mapping[str, float], released: Mapping[str, float] | None
    ) -> str:
        """Return what is out of bounds, as a sentence; "" if nothing is.

        Args:
            results: `log_loss` and `calibration`.
            released: Those of the last release, or `None`.
        """
        loss, ratio = results["log_loss"], results["calibration"]
        low, high = self.calibration
        if not math.isfinite(loss):
            return "The log loss is not finite."
        if not low <= ratio <= high:
            return f"The calibration is {ratio:.4f}, not within {low:g} to {high:g}."
        if released is not None:
            limit = released["log_loss"] * (1.0 + self.max_loss_increase)
            if loss > limit:
                return (
                    f"The log loss is {loss:.5f}, more than {limit:.5f}: that of the "
                    f"last release plus {self.max_loss_increase:.2%}."
                )
        return ""


class Gate(NamedTuple):
    """The condition under which `HEAD.json` moves to a new state.

    Weights that are not finite are never released, with or without a gate.

    Attributes:
        window: Held-out rows: batches of `(features, label)` or `(features, label,
            weight)`, such as a `tf.data.Dataset`, which each publication iterates over.
        bounds: The bounds.
        patience: Number of publications in a row out of bounds after which the training
            model counts as bad; before that, it is suspect.

    Example:

    >>> import tf_dlrm
    >>> gate = tf_dlrm.serving.Gate([], tf_dlrm.serving.Bounds(max_loss_increase=0.02))
    >>> gate.patience
    3
    """

    window: Iterable[Any]
    bounds: Bounds = Bounds()
    patience: int = 3


def measure(
    labels: np.ndarray, probabilities: np.ndarray, weights: Any = None
) -> dict[str, Any]:
    """Return `log_loss`, `calibration` and `num_rows` of predictions.

    Args:
        labels: 0 or 1, or a share between them, `(n,)`.
        probabilities: Predictions, `(n,)`.
        weights: Weights of the rows, or `None`.
    """
    labels = np.asarray(labels, np.float64).reshape(-1)
    predicted = np.asarray(probabilities, np.float64).reshape(-1)
    weights = np.ones_like(labels) if weights is None else np.reshape(weights, -1)
    near = np.clip(predicted, 1e-7, 1.0 - 1e-7)
    losses = -(labels * np.log(near) + (1.0 - labels) * np.log1p(-near))
    clicks = float(weights @ labels)
    return {
        "log_loss": float(weights @ losses / weights.sum()),
        "calibration": float(weights @ predicted) / clicks if clicks else math.nan,
        "num_rows": len(labels),
    }


def evaluate(model: keras.Model, window: Iterable[Any]) -> dict[str, float]:
    """Return the results of a model on a window, see `measure`.

    Raises:
        ValueError: If the window has no rows or no clicks.
    """
    predict = tf.function(lambda x: model(x, training=False), reduce_retracing=True)
    parts = []
    for batch in window:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        size = int(np.size(y))
        weight = np.ones(size) if weight is None else np.reshape(weight, -1)
        answers = np.reshape(predict(x), -1)
        parts.append((np.reshape(y, -1), answers, weight))
    if not parts:
        raise UserError("The `window` of the gate has no rows.")
    results = measure(*(np.concatenate(column) for column in zip(*parts)))
    if math.isnan(results["calibration"]):
        raise UserError("The `window` of the gate has no clicks: use more rows.")
    return results
