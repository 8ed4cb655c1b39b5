"""Predicted and observed click rates, in bins with equal numbers of rows.

They are computed from the histogram of logits in `ClickAUC`, so memory does not grow
with the number of rows. Its buckets are 0.0005 wide in the logit, so a mean prediction
is exact to 0.03%.
"""

import dataclasses

import numpy as np

from pipelines.runtime import UserError
from pipelines.whole_files import write_csv

NUM_BINS = 20
_Z = 1.959964  # for a 95 % confidence interval


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return 1 / (1 + exp(-logits))."""
    return 1.0 / (1.0 + np.exp(-logits))


@dataclasses.dataclass(frozen=True)
class Bin:
    """Rows with similar predictions.

    Attributes:
        num_rows: Number of rows.
        num_clicks: Number of clicks.
        lowest: Lowest prediction.
        highest: Highest prediction.
        predicted: Mean prediction.
        observed: Click rate.
        observed_low: Lower end of the 95 % confidence interval (Wilson) of the click
            rate.
        observed_high: Upper end of this interval.
    """

    num_rows: float
    num_clicks: float
    lowest: float
    highest: float
    predicted: float
    observed: float
    observed_low: float
    observed_high: float


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Predicted and observed click rates of a model on some rows.

    Attributes:
        bins: The `Bin`s in order of increasing prediction.
        logits: Logits `(n,)` of the non-empty buckets of the histogram.
        num_rows: Number of rows `(n,)` in each of these buckets.
        uncorrected_calibration: Mean prediction divided by click rate, without the
            correction for sampled negatives; `None` if they were not sampled.
        negative_sampling_rate: Share of the negatives that the model was trained on.
    """

    bins: list[Bin]
    logits: np.ndarray
    num_rows: np.ndarray
    uncorrected_calibration: float | None
    negative_sampling_rate: float

    @property
    def expected_calibration_error(self) -> float:
        """Mean absolute difference of predicted and observed rates over all rows."""
        sizes = [b.num_rows for b in self.bins]
        distances = [abs(b.predicted - b.observed) for b in self.bins]
        return float(np.average(distances, weights=sizes))

    def describe(self) -> dict:
        """Return JSON-safe figures for `evaluation.json`, without the bins."""
        figures = {"expected_calibration_error": self.expected_calibration_error}
        if self.negative_sampling_rate < 1:
            figures["negative_sampling_rate"] = self.negative_sampling_rate
            figures["uncorrected_calibration"] = self.uncorrected_calibration
        return figures

    def write_csv(self, path) -> None:
        """Write a line for each bin."""
        names = [field.name for field in dataclasses.fields(Bin)]
        write_csv(path, [names, *map(dataclasses.astuple, self.bins)])


def of_model(model, num_bins: int = NUM_BINS) -> Reliability:
    """Return the reliability of a model on the rows that it was last evaluated on.

    Args:
        model: A `DLRM`, compiled with `ClickAUC`.
        num_bins: Maximum number of bins; equal predictions share one.

    Raises:
        ValueError: If the model has no `ClickAUC`.
    """
    from tf_dlrm.metrics import find_click_auc  # imports TensorFlow; charts do not

    histogram = find_click_auc(model).histogram()
    return from_histogram(*histogram, num_bins, model.negative_sampling_rate)


def from_histogram(
    logits: np.ndarray,
    negatives: np.ndarray,
    positives: np.ndarray,
    num_bins: int = NUM_BINS,
    negative_sampling_rate: float = 1.0,
) -> Reliability:
    """Merge the buckets of a histogram into bins with about equal numbers of rows.

    Args:
        logits: Increasing logits `(n,)` of the buckets.
        negatives: Number of rows without a click in each bucket.
        positives: Number of rows with a click in each bucket.
        num_bins: Maximum number of bins.
        negative_sampling_rate: The rate for which the logits are corrected.

    Raises:
        ValueError: If there are no rows.
    """
    rows = negatives + positives
    if not rows.sum():
        raise UserError("There are no rows with predictions to evaluate.")
    used = rows > 0
    logits, positives, rows = logits[used], positives[used], rows[used]
    predictions = sigmoid(logits)
    # Each bucket goes to the bin that contains its middle row.
    middles = (np.cumsum(rows) - 0.5 * rows) / rows.sum()
    places = np.minimum((middles * num_bins).astype(int), num_bins - 1)
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    ends = np.append(starts[1:], len(rows)) - 1
    sizes, clicks = np.add.reduceat(rows, starts), np.add.reduceat(positives, starts)
    means = np.add.reduceat(rows * predictions, starts) / sizes
    columns = (
        sizes,
        clicks,
        predictions[starts],
        predictions[ends],
        means,
        clicks / sizes,
        *_wilson(clicks, sizes),
    )
    bins = [Bin(*map(float, values)) for values in zip(*columns, strict=True)]
    uncorrected = None
    if negative_sampling_rate < 1 and clicks.sum():
        before = sigmoid(logits - np.log(negative_sampling_rate))
        uncorrected = float((rows * before).sum() / clicks.sum())
    return Reliability(bins, logits, rows, uncorrected, negative_sampling_rate)


def _wilson(clicks, sizes):
    """Return the ends of the 95 % confidence intervals of click rates."""
    rates, z = clicks / sizes, _Z * _Z / sizes
    middle = (rates + z / 2) / (1 + z)
    half = np.sqrt(z * rates * (1 - rates) + z * z / 4) / (1 + z)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)
