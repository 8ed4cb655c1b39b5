"""The picture of a `Reliability`: observed against predicted click rates."""

import numpy as np

from pipelines import pictures
from pipelines.pictures import GRID, INK, MUTED
from pipelines.runs import click_rates
from pipelines.runs.click_rates import logit
from pipelines.runs.reliability import Reliability

MODEL, BEFORE, ROWS = "#d9480f", "#9fb3c8", "#9fb3c8"
_CAPTION = (
    ("calibration", "calibration"),
    ("log_loss", "log loss"),
    ("normalized_entropy", "normalized entropy"),
    ("auc", "AUC"),
)
_OUTSIDE = 5e-4  # share of rows at either end that the picture leaves out
_NUM_BARS = 80


def draw(reliability: Reliability, metrics: dict, path) -> None:
    """Draws observed against predicted click rates, above how predictions spread.

    Axes are in logits, so that rates near 0 can be told apart.

    Args:
        reliability: What to draw.
        metrics: Results of the evaluation, for the caption.
        path: PNG file to write.
    """
    figure = pictures.start(7, 7.6)
    upper, lower = figure.subplots(
        2, sharex=True, gridspec_kw={"height_ratios": [4, 1], "hspace": 0.03}
    )
    limits = _limits(reliability)
    _draw_rates(upper, reliability, limits)
    _draw_predictions(lower, reliability, limits)
    for axes in (upper, lower):
        pictures.finish(axes)
        axes.tick_params(labelsize=9)
    title = "Predicted and observed click rate"
    upper.set_title(title, loc="left", color=INK, weight="bold", fontsize=13, pad=12)
    shown = [f"{reliability.num_rows.sum():,.0f} rows"]
    shown += [f"{t} {metrics[name]:.4f}" for name, t in _CAPTION if name in metrics]
    caption = ", ".join(shown)
    figure.supxlabel(caption, x=0.01, ha="left", fontsize=8, color=MUTED)
    pictures.save(figure, path)


def _limits(reliability):
    """Logits between which all bins lie, and nearly all rows."""
    share = np.cumsum(reliability.num_rows) / reliability.num_rows.sum()
    inside = reliability.logits[(share > _OUTSIDE) & (share <= 1 - _OUTSIDE)]
    rates = [rate for b in reliability.bins for rate in (b.predicted, b.observed)]
    logits = [*logit([rate for rate in rates if 0 < rate < 1]), *inside]
    shift = -np.log(reliability.negative_sampling_rate)  # room for the others
    highest = max(max(logits), logit(reliability.bins[-1].predicted) + shift)
    return click_rates.widen(min(logits), highest)


def _draw_rates(axes, reliability, limits):
    click_rates.draw_diagonal(axes, limits)
    bins = reliability.bins
    predicted = logit([b.predicted for b in bins])
    # Without a click, or without anything else, only the interval has a place.
    observed = np.array([logit(b.observed) for b in bins])
    observed[~np.isfinite(observed)] = np.nan
    low = np.clip(logit([b.observed_low for b in bins]), *limits)
    high = np.clip(logit([b.observed_high for b in bins]), *limits)
    if reliability.negative_sampling_rate < 1:
        axes.plot(
            predicted - np.log(reliability.negative_sampling_rate),
            observed,
            "o",
            markersize=5,
            markerfacecolor="white",
            color=BEFORE,
            label="without the correction for sampled negatives",
        )
    axes.vlines(predicted, low, high, color=MODEL, alpha=0.45, linewidth=2.5)
    axes.plot(
        predicted,
        observed,
        "o-",
        color=MODEL,
        markersize=6,
        linewidth=1.2,
        label=f"equally large bins ({len(bins)}), 95 % intervals",
    )
    axes.legend(frameon=False, loc="upper left", fontsize=9, labelcolor=INK)


def _draw_predictions(axes, reliability, limits):
    counts, edges = np.histogram(
        reliability.logits, _NUM_BARS, limits, weights=reliability.num_rows
    )
    shares = 100 * counts / reliability.num_rows.sum()
    axes.bar(edges[:-1], shares, np.diff(edges) * 0.88, align="edge", color=ROWS)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}%")
    axes.set_ylabel("rows", color=MUTED)
    axes.set_xlabel("predicted click probability", color=MUTED)
    axes.grid(axis="y", color=GRID)
