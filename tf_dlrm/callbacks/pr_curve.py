"""`PRCurveLogger`: precision and recall at each validation."""

import numpy as np
import tensorflow as tf
from tensorboard.plugins.pr_curve import summary

from tf_dlrm.callbacks.watcher import VALIDATION, Watcher
from tf_dlrm.metrics.click import find_click_auc
from tf_dlrm.runtime.types import Logs

NUM_THRESHOLDS = 1001  # many, because clicks are rare and most predictions are small


class PRCurveLogger(Watcher):
    """Write the precision-recall curve of each validation, with 1,001 thresholds.

    The curve is computed from the histogram of `ClickAUC`, so no predictions are stored
    and steps do no extra work.

    Args:
        log_dir: Folder of the run's logs.

    Raises:
        ValueError: If the model was not compiled with `tf_dlrm.metrics.ClickAUC`.
    """

    def on_test_end(self, logs: Logs = None) -> None:
        points = pr_points(*find_click_auc(self.model).histogram())
        curve = summary.raw_data_pb(
            "precision_recall", *points, num_thresholds=NUM_THRESHOLDS
        )
        with self._events(VALIDATION):
            tf.summary.experimental.write_raw_pb(curve.SerializeToString())


def pr_points(
    logits: np.ndarray,
    negatives: np.ndarray,
    positives: np.ndarray,
    num_thresholds: int = NUM_THRESHOLDS,
) -> tuple[np.ndarray, ...]:
    """Return the points of a precision-recall curve, as TensorBoard draws it.

    Args:
        logits: Ascending logits of buckets, `(n,)`.
        negatives: Number of rows without a click in each bucket, `(n,)`.
        positives: Number of rows with a click in each bucket, `(n,)`.
        num_thresholds: Number of thresholds, evenly spaced from 0 to 1.

    Returns:
        True positives, false positives, true negatives, false negatives, precision
        and recall, each `(num_thresholds,)`. If no row is predicted as a click,
        precision is 1, as in scikit-learn.
    """
    thresholds = np.linspace(0.0, 1.0, num_thresholds)
    with np.errstate(divide="ignore"):
        lowest = np.log(thresholds) - np.log1p(-thresholds)
    # The first bucket at or above each threshold.
    first = np.searchsorted(logits, lowest)

    def count_from(counts):
        below = np.concatenate([[0.0], np.cumsum(counts)])
        return below[-1] - below[first]

    true_positives, false_positives = count_from(positives), count_from(negatives)
    num_positives, num_negatives = positives.sum(), negatives.sum()
    num_predicted = true_positives + false_positives
    precision = np.divide(
        true_positives,
        num_predicted,
        out=np.ones(num_thresholds),
        where=num_predicted > 0,
    )
    return (
        true_positives,
        false_positives,
        num_negatives - false_positives,
        num_positives - true_positives,
        precision,
        true_positives / max(num_positives, 1.0),
    )
