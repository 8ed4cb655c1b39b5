"""Slices as a table for a person: the largest, the rest as one, the worst."""

import math
from collections.abc import Iterator

import numpy as np

from pipelines.text_tables import align
from tf_dlrm.metrics import Slices

OTHER = "(other)"
_NUM_SHOWN, _NUM_WORST = 12, 3
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
    """The metrics of several slices as one. The AUC of their rows is not a function of
    theirs, so there is none."""
    rows, num_clicks = slices.num_rows, int(slices.num_clicks.sum())
    used = rows > 0
    loss, prediction = (
        float(np.average(values[used], weights=rows[used]))
        for values in (slices.log_loss, slices.mean_prediction)
    )
    num_rows = int(rows.sum())
    calibration = prediction * num_rows / num_clicks if num_clicks else math.nan
    return num_rows, num_clicks, math.nan, loss, prediction, calibration


def table(name: str, slices: Slices) -> Iterator[str]:
    """Lines for a person: the largest slices, and those with the lowest AUC."""
    own = slices.groups != OTHER
    no_click = int((own & (slices.num_clicks == 0)).sum())
    clicks_alone = int((own & (slices.num_clicks == slices.num_rows)).sum())
    yield (
        f"{name}: {int(own.sum()):,} values, the largest first. No AUC exists of "
        f"{no_click:,} without a click, {clicks_alone:,} with nothing but clicks."
    )
    rows = [["value", "rows", "clicks", "auc", "log_loss", "calibration"]]
    places = np.arange(len(slices))
    shown = places if len(places) <= _NUM_SHOWN + 1 else places[:_NUM_SHOWN]
    for i in shown:
        values = (getattr(slices, each)[i] for each in METRICS)
        rows.append(_row(slices.groups[i], *values))
    if len(shown) < len(places):
        rest = slices.take(places[len(shown) :])
        rows.append(_row(OTHER, *sum_up(rest)))
    yield from align(rows)
    large = own & (slices.num_rows >= _WORST_SHARE * slices.num_rows.sum())
    large &= ~np.isnan(slices.auc)
    if large.sum() > 1:
        places = np.flatnonzero(large)
        lowest = places[np.argsort(slices.auc[places], kind="stable")][:_NUM_WORST]
        named = (f"{_cut(slices.groups[i])} {slices.auc[i]:.5f}" for i in lowest)
        yield (
            f"lowest AUC where there are {_WORST_SHARE:.0%} of the rows: "
            f"{', '.join(named)}"
        )


def _row(value, rows, clicks, auc, log_loss, _, calibration):
    numbers = [auc, log_loss, calibration]
    texts = ["-" if math.isnan(number) else f"{number:.5f}" for number in numbers]
    return [_cut(value), f"{int(rows):,}", f"{int(clicks):,}", *texts]


def _cut(text):
    return text if len(text) < 24 else f"{text[:20]}..."
