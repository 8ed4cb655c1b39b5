"""Reliability diagrams: charts of observed against predicted click rates.

Axes of click rates are in logits, so that rates near 0 can be distinguished.
"""

from collections.abc import Sequence

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
_OUTSIDE = 5e-4  # share of rows at each end that the chart leaves out
_NUM_BARS = 80
_TICKS = (
    1e-6, 1e-5, 1e-4, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8,
    0.9, 0.95, 0.98, 0.99, 0.997, 0.999, 0.9999, 0.99999, 0.999999,
)  # fmt: skip
_TITLE, _LEGEND = "Predicted and observed click rate", "calibration (1 is right)"
_WIDTH, _LETTER = 6.7, 0.068  # inches: width without legend, width of its letters
_MARGIN, _LEAST_SPAN = 0.25, 3.0  # in logits


def draw(reliability: Reliability, metrics: dict, path) -> None:
    """Draw observed against predicted click rates, above a histogram of predictions.

    Axes are in logits, so that rates near 0 can be distinguished.

    Args:
        reliability: The reliability to draw.
        metrics: Results of the evaluation, for the caption.
        path: PNG file to write.
    """
    figure = pictures.start(7, 7.6)
    upper, lower = figure.subplots(
        2, sharex=True, gridspec_kw={"height_ratios": [4, 1], "hspace": 0.03}
    )
    draw_rates(upper, reliability)
    _draw_predictions(lower, reliability, _limits_of_rows(reliability))
    for axes in (upper, lower):
        pictures.finish(axes)
        axes.tick_params(labelsize=9)
    upper.set_title(_TITLE, loc="left", color=INK, weight="bold", fontsize=13, pad=12)
    shown = [f"{reliability.num_rows.sum():,.0f} rows"]
    shown += [f"{t} {metrics[name]:.4f}" for name, t in _CAPTION if name in metrics]
    pictures.put_caption(figure, ", ".join(shown))
    pictures.save(figure, path)


def compare(models: Sequence[tuple[str, str, list[dict]]], path) -> None:
    """Draw observed against predicted click rates of several models.

    Args:
        models: Name, color and bins of each model, with the values of a `Bin` as dict.
        path: PNG file to write.
    """
    letters = max(len(_LEGEND), *(len(name) for name, _, _ in models))
    figure = pictures.start(_WIDTH + _LETTER * letters, 6.4)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes = figure.add_subplot()
    limits = _limits([rate for _, _, bins in models for rate in _rates(bins)])
    _draw_diagonal(axes, limits)
    for name, color, bins in models:
        _draw_bins(axes, bins, limits, color, pictures.plain(name))
    axes.set_xlabel("predicted click probability", color=MUTED)
    axes.set_aspect("equal")
    pictures.finish(axes, _TITLE)
    axes.tick_params(labelsize=9)
    legend = figure.legend(
        frameon=False,
        loc="outside right upper",
        fontsize=9,
        labelcolor=INK,
        title=_LEGEND,
        title_fontsize=9,
        alignment="left",
    )
    legend.get_title().set_color(MUTED)
    rows = {f"{sum(b['num_rows'] for b in bins):,.0f}" for _, _, bins in models}
    caption = f"{' or '.join(sorted(rows))} rows in bins of equal size; bars: 95%"
    pictures.put_caption(figure, f"{caption} intervals")
    pictures.save(figure, path)


def _logit(rates: npt.ArrayLike) -> np.ndarray:
    """Return the logits of rates, which are infinite for 0 and 1."""
    rates = np.asarray(rates, np.float64)
    with np.errstate(divide="ignore"):
        return np.log(rates) - np.log1p(-rates)


def _rates(bins):
    return [rate for b in bins for rate in (b["predicted"], b["observed"])]


def _draw_diagonal(axes, limits):
    """Prepare axes of predicted and observed rates, with the line of equal rates."""
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
        set_ticks(_logit(ticks), [f"{100 * tick:.10g}%" for tick in ticks])
    axes.set_ylabel("observed click rate", color=MUTED)
    axes.grid(color=GRID)


def _limits(rates, logits=()):
    """Return limits of axes that leave room for these rates and logits."""
    logits = [*_logit([rate for rate in rates if 0 < rate < 1] or [0.5]), *logits]
    margin = max(_MARGIN, (_LEAST_SPAN - (max(logits) - min(logits))) / 2)
    return min(logits) - margin, max(logits) + margin


def _limits_of_rows(reliability):
    """Return limits of axes that contain all bins and nearly all rows."""
    share = np.cumsum(reliability.num_rows) / reliability.num_rows.sum()
    inside = reliability.logits[(share > _OUTSIDE) & (share <= 1 - _OUTSIDE)]
    shift = -np.log(reliability.negative_sampling_rate)  # room for uncorrected rates
    highest = _logit(reliability.bins[-1].predicted) + shift
    return _limits(_rates(map(vars, reliability.bins)), [*inside, highest])


def draw_rates(axes, reliability: Reliability) -> None:
    """Draw observed against predicted click rates.

    Args:
        axes: Where to draw.
        reliability: The rates.
    """
    limits = _limits_of_rows(reliability)
    _draw_diagonal(axes, limits)
    bins = [vars(b) for b in reliability.bins]
    label = f"{len(bins)} bins of equal size, 95 % intervals"
    predicted, observed = _draw_bins(axes, bins, limits, MODEL, label)
    if reliability.negative_sampling_rate < 1:
        axes.plot(
            predicted - np.log(reliability.negative_sampling_rate),
            observed,
            "o",
            markersize=5,
            markerfacecolor="white",
            color=BEFORE,
            zorder=1.5,
            label="without the correction for sampled negatives",
        )
    axes.legend(frameon=False, loc="upper left", fontsize=9, labelcolor=INK)


def _draw_bins(axes, bins, limits, color, label):
    predicted, observed, low, high = (
        _logit([b[name] for b in bins])
        for name in ("predicted", "observed", "observed_low", "observed_high")
    )
    predicted = np.clip(predicted, *limits)  # of rows that are all corrected to 0 or 1
    # For bins with only clicks or no clicks, draw only the interval.
    observed[~np.isfinite(observed)] = np.nan
    ends = np.clip(low, *limits), np.clip(high, *limits)
    axes.vlines(predicted, *ends, color=color, alpha=0.35, linewidth=2.2)
    style = {"color": color, "markersize": 5, "linewidth": 1.2}
    axes.plot(predicted, observed, "o-", label=label, **style)
    return predicted, observed


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
