"""Metrics of groups of rows, and GAUC: exact, from eight bytes a row.

A row is one 64-bit number: its group, its prediction in an order-preserving form, its
label. Sorted, the rows of a group lie together by rising prediction, and all that is
asked of them is a matter of runs of equal numbers.

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
    """Metrics of the groups of some rows.

    Attributes:
        groups: `(G,)` names of the groups.
        num_rows: int64 `(G,)`.
        num_clicks: int64 `(G,)`.
        auc: float64 `(G,)`: probability that a click is ranked above a non-click, ties
            counting half; NaN where a group lacks one of them.
        log_loss: float64 `(G,)`, natural logarithm, of probabilities that are clipped
            to `[1e-7, 1 - 1e-7]`. NaN for a group without rows.
        mean_prediction: float64 `(G,)`; NaN for a group without rows.
        calibration: float64 `(G,)`: mean prediction over click rate; NaN without a
            click.
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
        columns = (getattr(self, each.name) for each in dataclasses.fields(self))
        return Slices(*(column[places] for column in columns))


class GroupAUC(NamedTuple):
    """GAUC, and the rows that it is computed from.

    Attributes:
        value: Mean AUC of the groups that have both classes, by their rows; NaN where
            there is none.
        share_of_rows: Share of all rows that lie in such groups.
        num_groups: Number of such groups.
        num_groups_left_out: Number of groups without a click, or with clicks alone.
    """

    value: float
    share_of_rows: float
    num_groups: int
    num_groups_left_out: int


class GroupedRows:
    """Rows, collected batch by batch, for metrics by group.

    Takes 8 bytes a row (10 while it grows) and, at the end, 40 a group; rows are
    sorted in place.

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
            labels: `(n,)`, 0 or 1.
            predictions: `(n,)` finite numbers, taken as float32.
            groups: `(n,)` numbers of their groups: integers from 0, few of them
                unused.

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
                "`groups` must be numbers from 0 to 2^31 - 1. Received: numbers from "
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
            names: `(G,)` names of the groups. Default: their numbers.

        Raises:
            ValueError: If a prediction is outside of [0, 1].
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
        """Return the mean AUC of the groups."""
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
    """Return the metrics of each group of rows: where a model is good and where not.

    Args:
        labels: `(n,)`, 0 or 1.
        predictions: `(n,)` probabilities, taken as float32.
        groups: `(n,)` names or numbers of any kind that can be sorted.

    Returns:
        The `Slices`, with the groups in rising order.

    Raises:
        ValueError: If the lengths differ, a label is not 0 or 1, or a prediction is not
            a probability.

    Example:

    >>> import tf_dlrm
    >>> found = tf_dlrm.metrics.sliced_metrics(
    ...     [1, 0, 1, 0], [0.9, 0.2, 0.4, 0.6], ["de", "de", "fr", "fr"])
    >>> found.groups.tolist(), found.auc.tolist(), found.calibration.round(2).tolist()
    (['de', 'fr'], [1.0, 0.0], [1.1, 1.0])
    """
    names, rows = _collect(labels, predictions, groups)
    return rows.slices(names)


def gauc(
    labels: npt.ArrayLike, predictions: npt.ArrayLike, groups: npt.ArrayLike
) -> GroupAUC:
    """Return the mean AUC within groups, weighted by rows: how well users' items rank.

    `sum(n_g AUC_g) / sum(n_g)` over the groups g of n_g rows that have both clicks and
    non-clicks.

    Args:
        labels: `(n,)`, 0 or 1.
        predictions: `(n,)` finite numbers, taken as float32; only their order matters.
        groups: `(n,)` the user, session or query of each row.

    Returns:
        The value, and the share of the rows that it is computed from.

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
    """Raise unless all predictions of sorted keys are in [0, 1]."""
    for first in range(0, len(keys), _BLOCK_ROWS):
        predictions = _predictions(keys[first : first + _BLOCK_ROWS] >> np.uint64(1))
        wrong = (predictions < 0) | (predictions > 1)
        if wrong.any():
            raise ValueError(
                "`predictions` must be probabilities, from 0 to 1. Received: "
                f"{predictions[wrong][0]}"
            )


def _ordered(predictions: np.ndarray) -> np.ndarray:
    """float32 -> uint32 in the same order."""
    bits = (predictions + np.float32(0.0)).view(np.uint32)  # -0.0 becomes 0.0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _predictions(run_keys: np.ndarray) -> np.ndarray:
    """The predictions of runs, back from what `_ordered` made of them: float32."""
    ordered = run_keys.astype(np.uint32)  # the lower half
    bits = np.where(ordered & _SIGN, ordered ^ _SIGN, ~ordered)
    return bits.astype(np.uint32).view(np.float32)


def _runs(keys: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the runs of sorted keys, some at a time.

    A run is cut where a block of rows ends; its last part waits for the next block.

    Returns:
        uint64 `(R,)` group and prediction, int64 `(R,)` rows without and with a click.
    """
    waiting = None
    for first in range(0, len(keys), _BLOCK_ROWS):
        block = keys[first : first + _BLOCK_ROWS]
        runs = block >> np.uint64(1)
        starts = np.flatnonzero(np.append(True, runs[1:] != runs[:-1]))
        runs, sizes = runs[starts], np.diff(np.append(starts, len(block)))
        clicks = np.add.reduceat((block & np.uint64(1)).astype(np.int64), starts)
        found = [runs, sizes - clicks, clicks]
        if waiting is not None:
            if waiting[0] == runs[0]:
                for of_block, count in zip(found[1:], waiting[1:], strict=True):
                    of_block[0] += count
            else:
                columns = zip(waiting, found, strict=True)
                found = [np.append(each, column) for each, column in columns]
        waiting = [column[-1] for column in found]
        yield tuple(column[:-1] for column in found)
    if waiting is not None:
        yield tuple(np.array([each]) for each in waiting)


class _Totals:
    """Sums by group of runs that come by rising group and prediction."""

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
        of_runs = (runs >> np.uint64(32)).astype(np.int64)
        starts = np.flatnonzero(np.append(True, of_runs[1:] != of_runs[:-1]))
        groups = of_runs[starts]

        def add_up(total: np.ndarray, values: np.ndarray) -> None:
            total[groups] += np.add.reduceat(values, starts)

        # Negatives of the group below each run: in this block, and in those before.
        before = np.cumsum(negatives) - negatives
        counts = np.diff(np.append(starts, len(runs)))
        below = before - np.repeat(before[starts], counts)
        seen = self.num_rows[groups[0]] - self.num_clicks[groups[0]]
        below[: counts[0]] += seen
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
        """float64 `(G,)`, from sums of integers."""
        pairs = self.num_clicks * (self.num_rows - self.num_clicks)
        with np.errstate(invalid="ignore"):
            return np.where(pairs > 0, self._twice_wins / (2.0 * pairs), np.nan)


def _mean_auc(num_rows: np.ndarray, auc: np.ndarray) -> GroupAUC:
    used = ~np.isnan(auc)
    rows_used, num_all = int(num_rows[used].sum()), int(num_rows.sum())
    value, share = float("nan"), 0.0
    if rows_used:
        value = float(np.average(auc[used], weights=num_rows[used]))
        share = rows_used / num_all
    left_out = int(((num_rows > 0) & ~used).sum())
    return GroupAUC(value, share, int(used.sum()), left_out)
