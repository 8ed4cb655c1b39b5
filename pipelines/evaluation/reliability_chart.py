"""The picture of a `Reliability`: observed against predicted click rates.

Axes of click rates are in logits, so that rates near 0 can be told apart.
"""

import numpy as np
import numpy.typing as npt

from pipelines import pictures
from pipelines.evaluation.reliability import Reliability, sigmoid
from pipelines.pictures import GRID, INK, MUTED

MODEL, BEFORE, ROWS = "#d9480f", "#9fb3c8", "#9fb3c8"
_CAPTION = (
    ("calibration", "calibration"),
    ("log_loss", "log loss"),
    ("normalized_entropy", "normalized entropy"),
    ("auc", "AUC"),
)
_OUTSIDE = 5e-4  # share of rows at either end that the picture leaves out
_NUM_BARS = 80
_TICKS = (
    1e-6, 1e-5, 1e-4, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8,
    0.9, 0.95, 0.98, 0.99, 0.997, 0.999, 0.9999, 0.99999, 0.999999,
)  # fmt: skip
_MARGIN, _LEAST_SPAN = 0.25, 3.0  # of logits


def draw(reliability: Reliability, metrics: dict, path) -> None:
    """Draw observed against predicted click rates, above how predictions spread.

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


def logit(rates: npt.ArrayLike) -> np.ndarray:
    """Return the logits of rates; infinite for 0 and 1."""
    rates = np.asarray(rates, np.float64)
    with np.errstate(divide="ignore"):
        return np.log(rates) - np.log1p(-rates)


def widen(lowest: float, highest: float) -> tuple[float, float]:
    """Return the limits of an axis that shows logits from `lowest` to `highest`."""
    margin = max(_MARGIN, (_LEAST_SPAN - (highest - lowest)) / 2)
    return lowest - margin, highest + margin


def draw_diagonal(axes, limits: tuple[float, float]) -> None:
    """Prepare axes of predicted and observed rates, with the line of equal ones."""
    axes.plot(limits, limits, color=MUTED, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        "as predicted",
        (limits[1], limits[1]),
        (-16, -22),
        textcoords="offset points",
        ha="right",
        va="top",
        color=MUTED,
        fontsize=9,
        rotation=45,
        rotation_mode="anchor",
    )
    axes.set_xlim(limits)
    axes.set_ylim(limits)
    low, high = sigmoid(np.array(limits))
    ticks = [tick for tick in _TICKS if low <= tick <= high]
    for set_ticks in (axes.set_xticks, axes.set_yticks):
        set_ticks(logit(ticks), [f"{100 * tick:.10g}%" for tick in ticks])
    axes.set_ylabel("observed click rate", color=MUTED)
    axes.grid(color=GRID)


def _limits(reliability):
    """Logits between which all bins lie, and nearly all rows."""
    share = np.cumsum(reliability.num_rows) / reliability.num_rows.sum()
    inside = reliability.logits[(share > _OUTSIDE) & (share <= 1 - _OUTSIDE)]
    rates = [rate for b in reliability.bins for rate in (b.predicted, b.observed)]
    logits = [*logit([rate for rate in rates if 0 < rate < 1]), *inside]
    shift = -np.log(reliability.negative_sampling_rate)  # room for the others
    highest = max(max(logits), logit(reliability.bins[-1].predicted) + shift)
    return widen(min(logits), highest)


def _draw_rates(axes, reliability, limits):
    draw_diagonal(axes, limits)
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
