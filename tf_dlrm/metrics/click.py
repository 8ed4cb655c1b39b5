"""Metrics for clicks, exact enough to rank models and cheap enough for every step."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from tf_dlrm.runtime import accelerators, xla

_NUM_BUCKETS = 1 << 16
_LARGEST_LOGIT = 17.0  # beyond it, float32 probabilities are 0 or 1
_EPSILON = 1e-7  # probabilities are clipped to it, as in Keras' losses


def _flat(
    y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return labels, predictions and weights as `(B,)`; default weights are 1."""
    y_true = tf.reshape(tf.cast(y_true, tf.float32), (-1,))
    y_pred = tf.reshape(tf.cast(y_pred, tf.float32), (-1,))
    if sample_weight is None:
        return y_true, y_pred, tf.ones_like(y_true)
    weight = tf.reshape(tf.cast(sample_weight, tf.float32), (-1,))
    return y_true, y_pred, tf.broadcast_to(weight, tf.shape(y_true))


class _RowMetric(keras.metrics.Metric):
    """Base class of metrics that sum over rows, in one small XLA kernel.

    A subclass defines `add_rows(y_true, y_pred, weight)` for float32 tensors `(B,)`, in
    which padding has weight 0.
    """

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self._kernel = xla.Kernel(self.add_rows, "metrics")

    def update_state(
        self,
        y_true: tf.Tensor,
        y_pred: tf.Tensor,
        sample_weight: tf.Tensor | None = None,
    ) -> None:
        rows = _flat(y_true, y_pred, sample_weight)
        if tf.distribute.has_strategy() or not xla.enabled():
            self.add_rows(*rows)
        else:
            self._kernel(*[xla.pad_rows(row) for row in rows], compiled=True)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name, "dtype": self.dtype}


@keras.saving.register_keras_serializable(package="tf_dlrm")
class ClickAUC(_RowMetric):
    """Area under the ROC curve, from a histogram of the predictions' logits.

    This is the probability that a click ranks above a non-click, where ties count half.
    Buckets are 0.0005 wide in the logit, so the metric is exact at any click rate.
    (Keras' AUC spaces its thresholds evenly in the probability; with 0.75 % clicks its
    error is 0.017.) Predictions in the same bucket count as ties, which only matters
    for models whose logits spread over less than 0.01 or lie beyond ±17. A row is a
    click if its label is above 0.5. Without clicks or without non-clicks, the AUC is
    NaN.

    Args:
        name: Name of the metric.

    Reference:
        Fawcett 2006, An introduction to ROC analysis, section 7.
    """

    def __init__(self, name: str = "auc", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        # float64 counts are exact beyond 2^24 rows.
        self.counts = self.add_variable(
            shape=(2 * _NUM_BUCKETS,),
            initializer="zeros",
            dtype="float64",
            name="counts",
        )
        self._area_kernel = xla.Kernel(self._area, "metrics")

    def add_rows(self, y_true: tf.Tensor, y_pred: tf.Tensor, weight: tf.Tensor) -> None:
        logit = tf.math.log(y_pred) - tf.math.log1p(-y_pred)
        logit = tf.clip_by_value(logit, -_LARGEST_LOGIT, _LARGEST_LOGIT)
        scale = (_NUM_BUCKETS - 1) / (2.0 * _LARGEST_LOGIT)
        dtype = accelerators.index_dtype()
        bucket = tf.cast(tf.round((logit + _LARGEST_LOGIT) * scale), dtype)
        # NaN has no rank: do not count such predictions. The loss shows them.
        weight = tf.where(tf.math.is_nan(y_pred), 0.0, weight)
        bucket = tf.where(tf.math.is_nan(y_pred), tf.zeros_like(bucket), bucket)
        place = bucket + _NUM_BUCKETS * tf.cast(y_true > 0.5, dtype)
        size = 2 * _NUM_BUCKETS
        counts = tf.math.unsorted_segment_sum(tf.cast(weight, tf.float64), place, size)
        self.counts.assign_add(counts)

    def histogram(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the histogram: logits of the buckets, and the rows in each.

        Returns:
            Three float64 arrays `(65536,)`: logits of the centers of the buckets,
            number of rows without a click, number of rows with a click.
        """
        logits = np.linspace(-_LARGEST_LOGIT, _LARGEST_LOGIT, _NUM_BUCKETS)
        counts = ops.convert_to_numpy(self.counts).reshape(2, _NUM_BUCKETS)
        return logits, counts[0], counts[1]

    def result(self) -> tf.Tensor:
        counts = tf.convert_to_tensor(self.counts)
        if tf.distribute.has_strategy():
            return self._area(counts)
        return self._area_kernel(counts)

    def _area(self, counts: tf.Tensor) -> tf.Tensor:
        counts = tf.reshape(counts, (2, _NUM_BUCKETS))
        negatives, positives = counts[0], counts[1]
        below = tf.cumsum(negatives, exclusive=True)
        wins = tf.reduce_sum(positives * (below + 0.5 * negatives))
        pairs = tf.reduce_sum(positives) * tf.reduce_sum(negatives)
        return tf.cast(wins / pairs, tf.float32)  # 0 / 0 is NaN


class _WeightedSums(_RowMetric):
    """Base class of metrics from weighted float64 sums over rows, named in `sums`."""

    sums: tuple[str, ...] = ()

    def __init__(self, name: str, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        self.totals = [
            self.add_variable(
                shape=(), initializer="zeros", dtype="float64", name=total
            )
            for total in self.sums
        ]

    def add_rows(self, y_true: tf.Tensor, y_pred: tf.Tensor, weight: tf.Tensor) -> None:
        rows = {
            "weight": weight,
            "label": weight * y_true,
            "prediction": weight * y_pred,
        }
        if "loss" in self.sums:
            rows["loss"] = weight * _log_loss(y_true, y_pred)
        for total, name in zip(self.totals, self.sums):
            total.assign_add(tf.reduce_sum(tf.cast(rows[name], tf.float64)))


def _log_loss(y_true: tf.Tensor, y_pred: tf.Tensor) -> tf.Tensor:
    p = tf.clip_by_value(y_pred, _EPSILON, 1.0 - _EPSILON)
    return -(y_true * tf.math.log(p) + (1.0 - y_true) * tf.math.log1p(-p))


@keras.saving.register_keras_serializable(package="tf_dlrm")
class LogLoss(_WeightedSums):
    """Mean of `-(y log p + (1 - y) log(1 - p))`, with the natural logarithm.

    Probabilities are clipped to `[1e-7, 1 - 1e-7]`. Sums are float64.

    Args:
        name: Name of the metric.
    """

    sums = ("loss", "weight")

    def __init__(self, name: str = "log_loss", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def result(self) -> tf.Tensor:
        loss, weight = self.totals
        return ops.cast(tf.math.divide_no_nan(loss.value, weight.value), "float32")


@keras.saving.register_keras_serializable(package="tf_dlrm")
class NormalizedEntropy(_WeightedSums):
    """Log loss divided by the entropy of the click rate.

    `log loss / -(r log r + (1 - r) log(1 - r))`, where r is the mean label. A model
    that always predicts r has the value 1. The value is 0 while all labels are equal.

    Args:
        name: Name of the metric.

    Reference:
        He et al. 2014, Practical lessons from predicting clicks on ads at Facebook,
        equation 2.
    """

    sums = ("loss", "label", "weight")

    def __init__(self, name: str = "normalized_entropy", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def result(self) -> tf.Tensor:
        loss, label, weight = (total.value for total in self.totals)
        rate = tf.math.divide_no_nan(label, weight)
        entropy = -(tf.math.xlogy(rate, rate) + tf.math.xlogy(1 - rate, 1 - rate))
        mean_loss = tf.math.divide_no_nan(loss, weight)
        return ops.cast(tf.math.divide_no_nan(mean_loss, entropy), "float32")


@keras.saving.register_keras_serializable(package="tf_dlrm")
class Calibration(_WeightedSums):
    """Mean prediction divided by mean label, which is 1 for a calibrated model.

    The value is 0 while there are no clicks.

    Args:
        name: Name of the metric.

    Reference:
        He et al. 2014, Practical lessons from predicting clicks on ads at Facebook,
        section 2.
    """

    sums = ("prediction", "label")

    def __init__(self, name: str = "calibration", **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)

    def result(self) -> tf.Tensor:
        prediction, label = (total.value for total in self.totals)
        return ops.cast(tf.math.divide_no_nan(prediction, label), "float32")


def click_metrics() -> list[keras.metrics.Metric]:
    """Return new objects of all click metrics and accuracy, for `compile`."""
    return [
        ClickAUC(),
        LogLoss(),
        NormalizedEntropy(),
        Calibration(),
        keras.metrics.BinaryAccuracy(name="accuracy"),
    ]


def find_click_auc(model: keras.Model) -> ClickAUC:
    """Return the `ClickAUC` that a model was compiled with.

    Raises:
        ValueError: If the model was compiled without one.
    """
    for metric in model.metrics:
        for inner in getattr(metric, "metrics", [metric]):
            if isinstance(inner, ClickAUC):
                return inner
    raise ValueError("The model must be compiled with tf_dlrm.metrics.ClickAUC.")
