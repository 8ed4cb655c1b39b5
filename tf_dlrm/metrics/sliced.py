"""Exact metrics of groups of rows, and GAUC, from eight bytes per row.

A row is stored as one 64-bit number: its group, its prediction in an order-preserving
form, and its label. After sorting, the rows of a group are adjacent and ordered by
prediction, and all metrics follow from runs of equal numbers.

# n rows, G groups, R runs of rows of one group and one prediction
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_BLOCK_ROWS = 1 << 18
_MAX_GROUPS = 1 << 31
_SIGN = np.uint32(1 << 31)
_EPSILON = 1e-7  # as in the metric LogLoss


@dataclasses.dataclass(frozen=True)
class Slices:
    """Metrics of groups of rows.

    Attributes:
        groups: Names of the groups, `(G,)`.
        num_rows: Number of rows, int64 `(G,)`.
        num_clicks: Number of clicks, int64 `(G,)`.
        auc: Probability that a click ranks above a non-click, where ties count half,
            float64 `(G,)`; NaN for a group without clicks or without non-clicks.
        log_loss: Mean log loss (natural logarithm) with probabilities clipped to
            `[1e-7, 1 - 1e-7]`, float64 `(G,)`; NaN for a group without rows.
        mean_prediction: Mean prediction, float64 `(G,)`; NaN for a group without rows.
        calibration: Mean prediction divided by click rate, float64 `(G,)`; NaN for a
            group without clicks.
    """

    groups: np.ndarray
    num_rows: np.ndarray
    num_clicks: np.ndarray
    auc: np.ndarray
    log_loss: np.ndarray
    mean_prediction: np.ndarray
    calibration: np.ndarray

    def __len__(self) -> int:
        return len(self.num_rows)

    def take(self, places: npt.ArrayLike) -> "Slices":
        """Return some of the groups, in the order of `places`."""
        columns = (getattr(self, field.name) for field in dataclasses.fields(self))
        return Slices(*(column[places] for column in columns))


class GroupAUC(NamedTuple):
    """GAUC, and the share of the rows that it covers.

    Attributes:
        value: Mean AUC of the groups with clicks and non-clicks, weighted by rows; NaN
            if there is no such group.
        share_of_rows: Share of all rows that belong to such groups.
        num_groups: Number of such groups.
        num_groups_left_out: Number of groups without clicks or without non-clicks.
    """

    value: float
    share_of_rows: float
    num_groups: int
    num_groups_left_out: int


class GroupedRows:
    """Collection of rows, added batch by batch, for metrics by group.

    It takes 8 bytes per row (10 while it grows) and, for the results, 40 bytes per
    group. Rows are sorted in place.

    Example:

    >>> from tf_dlrm.metrics.sliced import GroupedRows
    >>> rows = GroupedRows()
    >>> rows.add([0, 1, 1], [0.1, 0.8, 0.3], [0, 0, 1])
    >>> rows.add([0], [0.6], [1])
    >>> rows.slices().auc
    array([1., 0.])
    """

    def __init__(self) -> None:
        self._keys, self._size = np.empty(1 << 16, np.uint64), 0
        self._num_groups = 0

    def add(
        self, labels: npt.ArrayLike, predictions: npt.ArrayLike, groups: npt.ArrayLike
    ) -> None:
        """Add rows.

        Args:
            labels: Labels, 0 or 1, `(n,)`.
            predictions: Finite numbers, `(n,)`, converted to float32.
            groups: Group numbers, integers from 0, `(n,)`. Memory grows with the
                largest number.

        Raises:
            ValueError: If an array breaks these rules.
        """
        labels, predictions = np.asarray(labels), np.asarray(predictions, np.float32)
        groups = np.asarray(groups)
        _check(labels, predictions, groups)
        if not len(labels):
            return
        lowest, highest = int(groups.min()), int(groups.max())
        if lowest < 0 or highest >= _MAX_GROUPS:
            raise ValueError(
                "`groups` must be integers from 0 to 2^31 - 1. Received: values from "
                f"{lowest} to {highest}"
            )
        self._num_groups = max(self._num_groups, highest + 1)
        keys = groups.astype(np.uint64) << np.uint64(33)
        keys |= _ordered(predictions).astype(np.uint64) << np.uint64(1)
        keys |= labels.astype(np.uint64)
        end = self._size + len(keys)
        if end > len(self._keys):
            self._keys.resize(max(end, len(self._keys) * 5 // 4), refcheck=False)
        self._keys[self._size : end] = keys
        self._size = end

    def slices(self, names: npt.ArrayLike | None = None) -> Slices:
        """Return the metrics of the groups; predictions must be probabilities.

        Args:
            names: Names of the groups, `(G,)`. Default: the group numbers.

        Raises:
            ValueError: If a prediction is outside [0, 1].
        """
        totals = self._totals()
        num_groups = self._num_groups
        with np.errstate(divide="ignore", invalid="ignore"):
            return Slices(
                np.arange(num_groups) if names is None else np.asarray(names),
                totals.num_rows,
                totals.num_clicks,
                totals.auc(),
                totals.loss / totals.num_rows,
                totals.prediction / totals.num_rows,
                np.where(
                    totals.num_clicks > 0,
                    totals.prediction / totals.num_clicks,
                    np.nan,
                ),
            )

    def gauc(self) -> GroupAUC:
        """Return the mean AUC of the groups, weighted by rows."""
        totals = self._totals(are_probabilities=False)
        return _mean_auc(totals.num_rows, totals.auc())

    def _totals(self, are_probabilities: bool = True) -> "_Totals":
        keys = self._keys[: self._size]
        keys.sort()
        if are_probabilities:
            _check_probabilities(keys)
        totals = _Totals(self._num_groups)
        for runs, negatives, positives in _runs(keys):
            totals.add(runs, negatives, positives, are_probabilities)
        return totals


def sliced_metrics(
    labels: npt.ArrayLike, predictions: npt.ArrayLike, groups: npt.ArrayLike
) -> Slices:
    """Return the metrics of each group of rows, to find where a model is weak.

    Args:
        labels: Labels, 0 or 1, `(n,)`.
        predictions: Probabilities, `(n,)`, converted to float32.
        groups: Names or numbers of the groups, `(n,)`, of any sortable type.

    Returns:
        The `Slices`, with the groups in ascending order.

    Raises:
        ValueError: If the lengths differ, a label is not 0 or 1, or a prediction is not
            a probability.

    Example:

    >>> import tf_dlrm
    >>> slices = tf_dlrm.metrics.sliced_metrics(
    ...     [1, 0, 1, 0], [0.9, 0.2, 0.4, 0.6], ["de", "de", "fr", "fr"])
    >>> slices.groups.tolist(), slices.auc.tolist()
    (['de', 'fr'], [1.0, 0.0])
    >>> slices.calibration.round(2).tolist()
    [1.1, 1.0]
    """
    names, rows = _collect(labels, predictions, groups)
    return rows.slices(names)


def gauc(
    labels: npt.ArrayLike, predictions: npt.ArrayLike, groups: npt.ArrayLike
) -> GroupAUC:
    """Return GAUC, the mean AUC within groups such as users, weighted by rows.

    `sum(n_g AUC_g) / sum(n_g)` over all groups g that have both clicks and non-clicks,
    where n_g is the number of rows of group g.

    Args:
        labels: Labels, 0 or 1, `(n,)`.
        predictions: Finite numbers, `(n,)`, converted to float32; only their order
            matters.
        groups: The user, session or query of each row, `(n,)`.

    Returns:
        The value, and the share of the rows that it covers.

    Raises:
        ValueError: If the lengths differ, a label is not 0 or 1, or a prediction is
            not finite.

    Example:

    >>> import tf_dlrm
    >>> tf_dlrm.metrics.gauc(
    ...     [1, 0, 1, 0, 0], [0.9, 0.2, 0.4, 0.6, 0.7], [1, 1, 2, 2, 3])
    GroupAUC(value=0.5, share_of_rows=0.8, num_groups=2, num_groups_left_out=1)

    Reference:
        Zhu et al. 2017, Optimized cost per click in Taobao display advertising,
        section 4.1; Zhou et al. 2018, Deep interest network, arXiv 1706.06978, section
        6.1, equation 1.
    """
    _, rows = _collect(labels, predictions, groups)
    return rows.gauc()


def _collect(
    labels: npt.ArrayLike, predictions: npt.ArrayLike, groups: npt.ArrayLike
) -> tuple[np.ndarray, GroupedRows]:
    groups = np.asarray(groups)
    if groups.ndim != 1:
        raise ValueError(f"`groups` must be (n,). Received shape: {groups.shape}")
    names, numbers = np.unique(groups, return_inverse=True)
    rows = GroupedRows()
    rows.add(labels, predictions, numbers)
    return names, rows


def _check(labels: np.ndarray, predictions: np.ndarray, groups: np.ndarray) -> None:
    shapes = [array.shape for array in (labels, predictions, groups)]
    if labels.ndim != 1 or len(set(shapes)) > 1:
        raise ValueError(
            "`labels`, `predictions` and `groups` must be (n,). Received shapes: "
            f"{', '.join(map(str, shapes))}"
        )
    if not ((labels == 0) | (labels == 1)).all():
        raise ValueError("`labels` must be 0 or 1.")
    if not np.isfinite(predictions).all():
        raise ValueError("`predictions` must be finite.")
    if len(groups) and groups.dtype.kind not in "iu":
        raise ValueError(f"`groups` must be integers. Received: {groups.dtype}")


def _check_probabilities(keys: np.ndarray) -> None:
    """Raise an error unless all predictions of sorted keys are in [0, 1]."""
    for first in range(0, len(keys), _BLOCK_ROWS):
        predictions = _predictions(keys[first : first + _BLOCK_ROWS] >> np.uint64(1))
        wrong = (predictions < 0) | (predictions > 1)
        if wrong.any():
            raise ValueError(
                "`predictions` must be probabilities, from 0 to 1. Received: "
                f"{predictions[wrong][0]}"
            )


def _ordered(predictions: np.ndarray) -> np.ndarray:
    """Convert float32 to uint32 values with the same order."""
    bits = (predictions + np.float32(0.0)).view(np.uint32)  # -0.0 becomes 0.0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _predictions(run_keys: np.ndarray) -> np.ndarray:
    """Return the float32 predictions of runs, the inverse of `_ordered`."""
    ordered = run_keys.astype(np.uint32)  # the lower half
    bits = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered)
    return bits.astype(np.uint32).view(np.float32)


def _runs(keys: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the runs of sorted keys in blocks.

    The last run of a block may continue in the next block, so it is yielded with that
    one.

    Yields:
        Group and prediction of the runs, uint64 `(R,)`, and their numbers of rows
        without and with a click, int64 `(R,)`.
    """
    waiting = None
    for first in range(0, len(keys), _BLOCK_ROWS):
        block = keys[first : first + _BLOCK_ROWS]
        runs = block >> np.uint64(1)
        starts = np.flatnonzero(np.append(True, runs[1:] != runs[:-1]))
        runs, sizes = runs[starts], np.diff(np.append(starts, len(block)))
        clicks = np.add.reduceat((block & np.uint64(1)).astype(np.int64), starts)
        columns = [runs, sizes - clicks, clicks]
        if waiting is not None:
            if waiting[0] == runs[0]:
                for column, count in zip(columns[1:], waiting[1:], strict=True):
                    column[0] += count
            else:
                pairs = zip(waiting, columns, strict=True)
                columns = [np.append(value, column) for value, column in pairs]
        waiting = [column[-1] for column in columns]
        yield tuple(column[:-1] for column in columns)
    if waiting is not None:
        yield tuple(np.array([value]) for value in waiting)


class _Totals:
    """Sums by group over runs in ascending order of group and prediction."""

    def __init__(self, num_groups: int) -> None:
        self.num_rows = np.zeros(num_groups, np.int64)
        self.num_clicks = np.zeros(num_groups, np.int64)
        self.prediction = np.zeros(num_groups)
        self.loss = np.zeros(num_groups)
        self._twice_wins = np.zeros(num_groups, np.int64)

    def add(
        self,
        runs: np.ndarray,
        negatives: np.ndarray,
        positives: np.ndarray,
        are_probabilities: bool,
    ) -> None:
        if not len(runs):
            return
        run_groups = (runs >> np.uint64(32)).astype(np.int64)
        starts = np.flatnonzero(np.append(True, run_groups[1:] != run_groups[:-1]))
        groups = run_groups[starts]

        def add_up(total: np.ndarray, values: np.ndarray) -> None:
            total[groups] += np.add.reduceat(values, starts)

        # Negatives of the group below each run, in this block and in earlier blocks.
        before = np.cumsum(negatives) - negatives
        counts = np.diff(np.append(starts, len(runs)))
        below = before - np.repeat(before[starts], counts)
        num_earlier = self.num_rows[groups[0]] - self.num_clicks[groups[0]]
        below[: counts[0]] += num_earlier
        add_up(self._twice_wins, positives * (2 * below + negatives))
        add_up(self.num_rows, negatives + positives)
        add_up(self.num_clicks, positives)
        if not are_probabilities:
            return
        predictions = _predictions(runs).astype(np.float64)
        add_up(self.prediction, (negatives + positives) * predictions)
        clipped = np.clip(predictions, _EPSILON, 1 - _EPSILON)
        losses = positives * np.log(clipped) + negatives * np.log1p(-clipped)
        add_up(self.loss, -losses)

    def auc(self) -> np.ndarray:
        """Return the AUC of each group, float64 `(G,)`, from sums of integers."""
        pairs = self.num_clicks * (self.num_rows - self.num_clicks)
        with np.errstate(invalid="ignore"):
            return np.where(pairs > 0, self._twice_wins / (2.0 * pairs), np.nan)


def _mean_auc(num_rows: np.ndarray, auc: np.ndarray) -> GroupAUC:
    has_auc = ~np.isnan(auc)
    num_used, num_all = int(num_rows[has_auc].sum()), int(num_rows.sum())
    value, share = float("nan"), 0.0
    if num_used:
        value = float(np.average(auc[has_auc], weights=num_rows[has_auc]))
        share = num_used / num_all
    num_left_out = int(((num_rows > 0) & ~has_auc).sum())
    return GroupAUC(value, share, int(has_auc.sum()), num_left_out)
