"""`fit_correction`: corrections fitted on labelled rows, by NumPy in float64.

# n rows, U distinct predictions, K knots
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tf_dlrm.calibration.corrections import (
    HIGHEST,
    LOWEST,
    Correction,
    IsotonicCorrection,
    PlattCorrection,
)
from tf_dlrm.calibration.slices import SlicedCorrection
from tf_dlrm.runtime.errors import UserError

METHODS = ("isotonic", "platt")
_MOST_STEPS = 100
_SMALL_STEP = 1e-12
_NO_ORDER = (
    "The clicks do not become more frequent as the predicted probabilities rise, so "
    "there is nothing to fit a correction on. Received: {} rows"
)


class _Rows(NamedTuple):
    """Rows that count: labels in [0, 1], predictions and positive weights, `(n,)`."""

    labels: np.ndarray
    predictions: np.ndarray
    weights: np.ndarray

    def take(self, which: np.ndarray) -> "_Rows":
        return _Rows(*(column[which] for column in self))


def fit_correction(
    labels: Any,
    probabilities: Any,
    method: str = "isotonic",
    sample_weight: Any = None,
    slice_feature: str | None = None,
    slice_ids: Any = None,
    min_slice_rows: int = 10_000,
) -> Correction | SlicedCorrection:
    """Fit a correction of predicted click probabilities on labelled rows.

    Use rows that the model was not trained on: on training rows its predictions look
    better than they are. Pass the result to `export_saved_model(calibration=...)`; the
    model itself does not change.

    Args:
        labels: Labels in [0, 1], `(n,)` or `(n, 1)`.
        probabilities: The model's predictions of these rows, in the same shape.
        method: `"isotonic"`, the increasing curve with the least squared error, equal
            to scikit-learn's `IsotonicRegression(out_of_bounds="clip")`; or `"platt"`,
            a logistic regression on the logit, equal to
            `LogisticRegression(penalty=None)`, which needs fewer rows and keeps the
            order of rows. (scikit-learn's `"sigmoid"` is Platt's method on smoothed
            labels.)
        sample_weight: Weights of the rows, `(n,)`, not negative. Default: 1 each.
        slice_feature: Name of a categorical feature whose values get a correction
            each. Default: none.
        slice_ids: The id of this feature in each row, as `first_ids` returns them,
            int `(n,)`.
        min_slice_rows: Rows that a value needs for a correction of its own. Values
            with fewer rows, with only one label, or whose clicks do not become more
            frequent as the predictions rise, share one: that of their rows together,
            or of all rows if these are too few as well. A number that is fitted on n
            rows costs about 1 / (2 n) of log loss, so 10,000 rows keep the cost of
            Platt's two numbers at 0.0001.

    Returns:
        A `PlattCorrection` or `IsotonicCorrection`, or with slices a
        `SlicedCorrection`.

    Raises:
        ValueError: If an argument is out of range, all labels are equal, no curve that
            rises fits, the labels are separable (Platt), or no value has enough rows.

    Example:

    >>> from tf_dlrm import calibration
    >>> labels, predictions = [0, 1, 0, 1, 1, 0], [0.1, 0.1, 0.2, 0.3, 0.4, 0.4]
    >>> correction = calibration.fit_correction(labels, predictions)
    >>> correction([0.1, 0.3, 0.9]).round(2).tolist()
    [0.33, 0.67, 0.67]
    """
    if method not in METHODS:
        raise UserError(f"`method` must be one of {METHODS}. Received: {method!r}")
    if (slice_feature is None) != (slice_ids is None):
        raise UserError("Pass `slice_feature` and `slice_ids` together, or neither.")
    if min_slice_rows < 1:
        raise UserError(
            f"`min_slice_rows` must be at least 1. Received: {min_slice_rows}"
        )
    rows, is_used = _check(labels, probabilities, sample_weight)
    fit = _fit_platt if method == "platt" else _fit_isotonic
    whole = fit(rows)
    if slice_feature is None:
        return whole
    ids = np.asarray(slice_ids)
    if ids.shape != is_used.shape or ids.dtype.kind not in "iu":
        raise UserError(
            "`slice_ids` must be an array of one integer for each row. Received: shape "
            f"{ids.shape}, dtype {ids.dtype}, for {len(is_used)} rows"
        )
    ids = np.maximum(ids[is_used].astype(np.int64), -1)
    order = np.argsort(ids, kind="stable")
    values, starts, counts = np.unique(
        ids[order], return_index=True, return_counts=True
    )
    by_id: dict[int, Correction] = {}
    for value, start, count in zip(values, starts, counts):
        curve = _try(fit, rows.take(order[start : start + count]), min_slice_rows)
        if curve is not None:
            by_id[int(value)] = curve
    if not by_id:
        raise UserError(
            f"No value of {slice_feature} has `min_slice_rows={min_slice_rows}` rows "
            "in which clicks become more frequent as the predictions rise; the most "
            f"frequent value has {counts.max():,} rows. Pass more rows or a smaller "
            "`min_slice_rows`, or correct all values together, without slices."
        )
    rest = rows.take(~np.isin(ids, list(by_id)))
    other = _try(fit, rest, min_slice_rows) or whole
    return SlicedCorrection(slice_feature, other, by_id, len(ids))


def _try(
    fit: Callable[[_Rows], Correction], rows: _Rows, min_rows: int
) -> Correction | None:
    """Return the correction of some rows, or `None` if it cannot be fitted."""
    if len(rows.labels) < min_rows:
        return None
    try:
        return fit(rows)
    except UserError:
        return None


def _check(labels: Any, probabilities: Any, weight: Any) -> tuple[_Rows, np.ndarray]:
    """Return the rows with a positive weight, and which of all rows they are."""
    y, p = (_column(values) for values in (labels, probabilities))
    w = np.ones(len(y)) if weight is None else _column(weight)
    if not len(y) == len(p) == len(w):
        raise UserError(
            "A correction needs a label, a probability and a weight for each row. "
            f"Received: {len(y)} labels, {len(p)} probabilities, {len(w)} weights"
        )
    for name, values in (("labels", y), ("probabilities", p)):
        wrong = values[~((values >= 0) & (values <= 1))]  # NaN, too
        if len(wrong):
            raise UserError(
                f"`{name}` must be between 0 and 1. Received: {wrong[0]} and "
                f"{len(wrong) - 1} more such values"
            )
    if not (np.isfinite(w) & (w >= 0)).all():
        raise UserError("`sample_weight` must be finite and not negative.")
    is_used = w > 0
    rows = _Rows(y, p, w).take(is_used)
    if not len(rows.labels):
        raise UserError(
            f"A correction cannot be fitted on no rows. Received: {len(y)} rows, none "
            "with a positive weight"
        )
    return rows, is_used


def _column(values: Any) -> np.ndarray:
    array = np.asarray(values, np.float64)
    return array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array.reshape(-1)


def _check_labels(rows: _Rows) -> None:
    lowest, highest = rows.labels.min(), rows.labels.max()
    if highest == 0 or lowest == 1:
        raise UserError(
            f"All {len(rows.labels):,} rows have the label {lowest:g}; a correction "
            "needs rows with and without a click."
        )


def _fit_isotonic(rows: _Rows) -> IsotonicCorrection:
    _check_labels(rows)
    x, inverse = np.unique(rows.predictions, return_inverse=True)
    weights = np.bincount(inverse, rows.weights)
    means = np.bincount(inverse, rows.weights * rows.labels) / weights
    starts, values = pool_adjacent_violators(means, weights)
    if len(values) == 1:
        raise UserError(_NO_ORDER.format(f"{len(rows.labels):,}"))
    lasts = np.append(starts[1:], len(x)) - 1
    # A block of one prediction has one knot, and any other has two.
    knots = np.stack([starts, lasts], axis=1).reshape(-1)
    is_first = np.append(True, knots[1:] > knots[:-1])
    corrected = np.clip(np.repeat(values, 2), 0.0, 1.0)
    return IsotonicCorrection(x[knots[is_first]], corrected[is_first], len(rows.labels))


def pool_adjacent_violators(
    means: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pool neighbours until their weighted means rise.

    Args:
        means: `(U,)`.
        weights: Positive weights `(U,)`.

    Returns:
        The first position of each block, and the mean of each block, which rise.
    """
    starts, sums, totals = np.arange(len(means)), means * weights, weights
    while True:  # whole runs that do not rise at a time, as long as there are many
        values = sums / totals
        is_first = np.append(True, values[1:] > values[:-1])
        if is_first.all():
            return starts, values
        heads = np.flatnonzero(is_first)
        is_slow = len(heads) > 0.9 * len(starts)
        starts = starts[heads]
        sums, totals = (np.add.reduceat(each, heads) for each in (sums, totals))
        if is_slow:
            break
    blocks: list[tuple[int, float, float]] = []
    for start, total, weight in zip(starts.tolist(), sums.tolist(), totals.tolist()):
        while blocks and blocks[-1][1] * weight >= total * blocks[-1][2]:
            start, before, weight_before = blocks.pop()
            total, weight = total + before, weight + weight_before
        blocks.append((start, total, weight))
    first, total, weight = (np.array(column) for column in zip(*blocks))
    return first, total / weight


def _fit_platt(rows: _Rows) -> PlattCorrection:
    _check_labels(rows)
    p = np.clip(rows.predictions, LOWEST, HIGHEST)
    x, y = np.log(p) - np.log1p(-p), rows.labels
    w = rows.weights / rows.weights.sum()
    if x.min() == x.max():
        raise UserError(_NO_ORDER.format(f"{len(y):,}"))
    if x[y > 0].min() >= x[y < 1].max() or x[y > 0].max() <= x[y < 1].min():
        raise UserError(
            "One probability separates all rows with a click from all others, so "
            "Platt's method would correct every row to 0 or 1: use more rows. "
            f"Received: {len(y):,} rows"
        )
    center, scale = np.average(x, weights=w), x.std()
    z = (x - center) / scale  # slope and intercept are nearly independent

    def loss(a: float, b: float) -> float:
        t = a * z + b
        return float(np.sum(w * (np.logaddexp(0.0, t) - y * t)))

    a, b = 0.0, 0.0
    current = loss(a, b)
    for _ in range(_MOST_STEPS):  # Newton's method
        q = 1.0 / (1.0 + np.exp(-(a * z + b)))
        error, curvature = w * (q - y), w * q * (1.0 - q)
        gradient = np.array([np.sum(error * z), np.sum(error)])
        mixed = np.sum(curvature * z)
        hessian = [[np.sum(curvature * z * z), mixed], [mixed, np.sum(curvature)]]
        step = np.linalg.solve(hessian, gradient)
        for _ in range(50):  # halve a step that goes too far
            after = loss(a - step[0], b - step[1])
            if after <= current:
                break
            step /= 2
        a, b, current = float(a - step[0]), float(b - step[1]), after
        if np.abs(step).max() < _SMALL_STEP:
            break
    slope = float(a / scale)
    if slope <= 0:
        raise UserError(_NO_ORDER.format(f"{len(y):,}"))
    return PlattCorrection(slope, float(b - slope * center), len(y))
