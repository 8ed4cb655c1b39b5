"""Print slices as a table: the largest slices, the rest combined, the worst ones."""

import math
from collections.abc import Iterator

import numpy as np

from pipelines.text_tables import align
from tf_dlrm.metrics import Slices

OTHER = "(other)"
_NUM_SHOWN, _NUM_PERIODS, _NUM_WORST = 12, 31, 3
_WORST_SHARE = 0.01
METRICS = (
    "num_rows",
    "num_clicks",
    "auc",
    "log_loss",
    "mean_prediction",
    "calibration",
)


def sum_up(slices: Slices) -> tuple[int, int, float, float, float, float]:
    """Return the combined metrics of several slices.

    The AUC is NaN: it cannot be computed from the AUCs of the slices.
    """
    rows, num_clicks = slices.num_rows, int(slices.num_clicks.sum())
    used = rows > 0
    loss, prediction = (
        float(np.average(values[used], weights=rows[used]))
        for values in (slices.log_loss, slices.mean_prediction)
    )
    num_rows = int(rows.sum())
    calibration = prediction * num_rows / num_clicks if num_clicks else math.nan
    return num_rows, num_clicks, math.nan, loss, prediction, calibration


def table(name: str, slices: Slices, by_time: bool = False) -> Iterator[str]:
    """Yield the lines of the table: the largest slices, and the lowest AUCs.

    Args:
        name: Name of the column.
        slices: The slices, the largest first.
        by_time: Whether they are periods in order of time, of which to show the last.
    """
    own = slices.groups != OTHER
    no_click = int((own & (slices.num_clicks == 0)).sum())
    clicks_alone = int((own & (slices.num_clicks == slices.num_rows)).sum())
    order = "in order of time" if by_time else "the largest first"
    values = "1 value" if own.sum() == 1 else f"{int(own.sum()):,} values"
    yield (
        f"{name}: {values}, {order}. AUC is undefined for "
        f"{no_click:,} without clicks and {clicks_alone:,} with only clicks."
    )
    rows = [["value", "rows", "clicks", "auc", "log_loss", "calibration"]]
    places = np.arange(len(slices))
    shown, limit = places, _NUM_PERIODS if by_time else _NUM_SHOWN
    if len(places) > limit + 1:
        shown = np.flatnonzero(own)[-limit:] if by_time else places[:limit]
    for i in shown:
        values = (getattr(slices, metric)[i] for metric in METRICS)
        rows.append(_row(slices.groups[i], *values))
    if len(shown) < len(places):
        rest = slices.take(np.setdiff1d(places, shown))
        rows.append(_row(OTHER, *sum_up(rest)))
    yield from align(rows)
    large = own & (slices.num_rows >= _WORST_SHARE * slices.num_rows.sum())
    large &= ~np.isnan(slices.auc)
    if large.sum() > 1:
        places = np.flatnonzero(large)
        lowest = places[np.argsort(slices.auc[places], kind="stable")][:_NUM_WORST]
        named = (f"{_cut(slices.groups[i])} {slices.auc[i]:.5f}" for i in lowest)
        yield (
            f"lowest AUC among values with at least {_WORST_SHARE:.0%} of the rows: "
            f"{', '.join(named)}"
        )


def _row(value, rows, clicks, auc, log_loss, _, calibration):
    numbers = [auc, log_loss, calibration]
    texts = ["-" if math.isnan(number) else f"{number:.5f}" for number in numbers]
    return [_cut(value), f"{int(rows):,}", f"{int(clicks):,}", *texts]


def _cut(text):
    return text if len(text) < 24 else f"{text[:20]}..."
