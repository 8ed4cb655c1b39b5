"""The picture of how far predictions can be trusted, of all runs with an evaluation."""

import numpy as np

from pipelines import pictures
from pipelines.evaluation.reliability_chart import draw_diagonal, logit, widen
from pipelines.pictures import INK, LINES, MUTED
from pipelines.reports.runs import Run

_COLUMNS = ("num_rows", "predicted", "observed", "observed_low", "observed_high")
_TITLE = "calibration (1 is right)"
_WIDTH, _LETTER = 6.7, 0.068  # inches: without the legend's letters, and each of them


def has_bins(run: Run) -> bool:
    """Return whether a run has something to draw."""
    return bool(run.bins) and all(name in run.bins[0] for name in _COLUMNS)


def draw(runs: list[Run], path) -> None:
    """Draw observed against predicted click rates, in logits, a colour for each run.

    Args:
        runs: The runs, also those without an evaluation: they keep their colours.
        path: PNG file to write.
    """
    shown = [(run, color) for run, color in zip(runs, LINES) if has_bins(run)]
    letters = max(len(_TITLE), *(len(_label(run)) for run, _ in shown))
    figure = pictures.start(_WIDTH + _LETTER * letters, 6.4)
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    axes = figure.add_subplot()
    limits = _limits([run for run, _ in shown])
    draw_diagonal(axes, limits)
    for run, color in shown:
        _draw_run(axes, run, color, limits)
    axes.set_xlabel("predicted click probability", color=MUTED)
    axes.set_aspect("equal")
    pictures.finish(axes, "Predicted and observed click rate")
    axes.tick_params(labelsize=9)
    legend = figure.legend(
        frameon=False,
        loc="outside right upper",
        fontsize=9,
        labelcolor=INK,
        title=_TITLE,
        title_fontsize=9,
        alignment="left",
    )
    legend.get_title().set_color(MUTED)
    rows = sorted({f"{sum(b['num_rows'] for b in run.bins):,.0f}" for run, _ in shown})
    figure.supxlabel(
        f"{' or '.join(rows)} rows in bins of equal size; bars: 95 % intervals",
        x=0.01,
        ha="left",
        fontsize=8,
        color=MUTED,
    )
    figure.savefig(path, dpi=150, facecolor="white", format="png")


def _draw_run(axes, run, color, limits):
    found = {name: np.array([b[name] for b in run.bins]) for name in _COLUMNS}
    places = logit(found["predicted"])
    observed = logit(found["observed"])
    # Without a click, or without anything else, only the interval has a place.
    observed[~np.isfinite(observed)] = np.nan
    ends = [
        np.clip(logit(found[f"observed_{end}"]), *limits) for end in ("low", "high")
    ]
    axes.vlines(places, *ends, color=color, alpha=0.28, linewidth=2)
    axes.plot(
        places,
        observed,
        "o-",
        color=color,
        markersize=4.5,
        linewidth=1.2,
        label=_label(run),
    )


def _label(run):
    value = (run.evaluation or {}).get("calibration")
    known = "" if value is None else f"{value:.3f}  "
    return known + pictures.plain(run.label)


def _limits(runs):
    rates = [b[name] for run in runs for b in run.bins for name in _COLUMNS[1:3]]
    logits = logit([rate for rate in rates if 0 < rate < 1] or [0.5])
    return widen(min(logits), max(logits))
