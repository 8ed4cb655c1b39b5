"""Corrections of click probabilities by a curve: a sigmoid, or a piecewise-linear one.

Curves are computed in float64 by TensorFlow's operations, in a graph or eagerly.
# n rows, C curves, K knots of all curves
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf

# The logits of 0 and 1 are infinite. Both ends of this range are exact in float32.
LOWEST, HIGHEST = 2.0**-23, 1.0 - 2.0**-23

Own = TypeVar("Own", bound="Correction")


class Correction(abc.ABC):
    """An increasing curve that maps predicted to corrected click probabilities.

    Attributes:
        method: Name of the method, as `fit_correction` takes it.
        num_rows: Number of rows that the curve was fitted on.
    """

    method: str
    num_rows: int

    def __call__(self, probabilities: Any) -> Any:
        """Return corrected probabilities, in the shape and dtype of the input.

        Args:
            probabilities: A tensor, or an array, which returns an array.
        """
        return like(probabilities, lambda p: self.apply([self], tf.zeros_like(p), p))

    @classmethod
    @abc.abstractmethod
    def apply(
        cls: type[Own], curves: Sequence[Own], places: tf.Tensor, p: tf.Tensor
    ) -> tf.Tensor:
        """Correct each probability by one of several curves.

        Args:
            curves: The curves.
            places: Position of the curve of each row in `curves`, `(n,)`.
            p: float64 `(n,)`, probabilities.

        Returns:
            float64 `(n,)`.
        """

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """Return JSON-safe facts about the curve."""


@dataclasses.dataclass(frozen=True)
class PlattCorrection(Correction):
    """Platt scaling: a logistic regression on the logit of the prediction.

    The corrected probability is `sigmoid(slope * logit(p) + intercept)`. Predictions
    below 2^-23 or above 1 - 2^-23 count as these values, whose logits are finite.

    Args:
        slope: Factor of the logit, positive, so that the order of rows stays.
        intercept: Logit that is added.
        num_rows: Number of rows that it was fitted on.

    Example:

    >>> from tf_dlrm.calibration import PlattCorrection
    >>> halved = PlattCorrection(slope=1.0, intercept=-0.693)
    >>> halved([0.5, 0.02]).round(3).tolist()
    [0.333, 0.01]

    Reference:
        Platt 1999, Probabilistic outputs for support vector machines, without its
        smoothed labels.
    """

    slope: float
    intercept: float
    num_rows: int = 0
    method = "platt"

    @classmethod
    def apply(
        cls, curves: Sequence["PlattCorrection"], places: tf.Tensor, p: tf.Tensor
    ) -> tf.Tensor:
        places = tf.cast(places, tf.int32)
        slopes, intercepts = (
            tf.gather(tf.constant(values, tf.float64), places)
            for values in zip(*[(curve.slope, curve.intercept) for curve in curves])
        )
        p = tf.clip_by_value(p, LOWEST, HIGHEST)
        return tf.sigmoid(slopes * (tf.math.log(p) - tf.math.log1p(-p)) + intercepts)

    def describe(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"method": self.method}


@dataclasses.dataclass(frozen=True, eq=False)
class IsotonicCorrection(Correction):
    """Isotonic regression: the increasing curve with the least squared error.

    Between two knots it is linear; before the first and after the last one it is
    constant. It has many steps, also some of 0 or 1, so it needs many rows.

    Args:
        predicted: Increasing predictions at the knots, float64 `(K,)`.
        corrected: Corrected probabilities at the knots, float64 `(K,)`.
        num_rows: Number of rows that it was fitted on.

    Example:

    >>> from tf_dlrm.calibration import IsotonicCorrection
    >>> curve = IsotonicCorrection([0.1, 0.3, 0.5], [0.0, 0.2, 0.2])
    >>> curve([0.0, 0.2, 0.9]).round(3).tolist()
    [0.0, 0.1, 0.2]

    Reference:
        Zadrozny and Elkan 2002, Transforming classifier scores into accurate
        multiclass probability estimates, section 3.2.
    """

    predicted: np.ndarray
    corrected: np.ndarray
    num_rows: int = 0
    method = "isotonic"

    def __post_init__(self) -> None:
        for name in ("predicted", "corrected"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))

    @classmethod
    def apply(
        cls, curves: Sequence["IsotonicCorrection"], places: tf.Tensor, p: tf.Tensor
    ) -> tf.Tensor:
        places = tf.cast(places, tf.int32)
        sizes = np.array([len(curve.predicted) for curve in curves], np.int32)
        ends = np.cumsum(sizes, dtype=np.int32)
        x = np.concatenate([curve.predicted for curve in curves])
        y = np.concatenate([curve.corrected for curve in curves])
        # Find the last knot of its curve at or below p by bisection: other runtimes of
        # SavedModels have no `tf.searchsorted`.
        left, last = tf.gather(ends - sizes, places), tf.gather(ends - 1, places)
        for power in reversed(range(int(sizes.max() - 1).bit_length())):
            knot = tf.minimum(left + 2**power, last)
            left = tf.where(tf.gather(x, knot) <= p, knot, left)
        right = tf.minimum(left + 1, last)
        low, high = tf.gather(x, left), tf.gather(x, right)
        share = tf.math.divide_no_nan(p - low, high - low)
        share = tf.clip_by_value(share, tf.zeros_like(p), tf.ones_like(p))
        low, high = tf.gather(y, left), tf.gather(y, right)
        return low + share * (high - low)

    def describe(self) -> dict[str, Any]:
        facts = {"num_rows": self.num_rows, "num_knots": len(self.predicted)}
        return facts | {"method": self.method}


def like(probabilities: Any, correct: Any) -> Any:
    """Apply a function of float64 `(n,)` to probabilities of any form.

    Args:
        probabilities: A tensor or an array.
        correct: The function.

    Returns:
        The result in the shape and dtype of the probabilities, a tensor for a tensor.
    """
    if not tf.is_tensor(probabilities):
        probabilities = np.asarray(probabilities)
    p = tf.convert_to_tensor(probabilities)
    flat = correct(tf.cast(tf.reshape(p, (-1,)), tf.float64))
    result = tf.cast(tf.reshape(flat, tf.shape(p)), p.dtype)
    return result if tf.is_tensor(probabilities) else result.numpy()
