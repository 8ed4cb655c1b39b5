"""Click rates on the axes of a picture, in logits: rates near 0 can be told apart."""

import numpy as np

from pipelines.pictures import GRID, MUTED

_TICKS = (
    1e-6, 1e-5, 1e-4, 0.001, 0.003, 0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8,
    0.9, 0.95, 0.98, 0.99, 0.997, 0.999, 0.9999, 0.99999, 0.999999,
)  # fmt: skip
_MARGIN, _LEAST_SPAN = 0.25, 3.0  # of logits


def sigmoid(logits):
    """1 / (1 + exp(-logits))."""
    return 1.0 / (1.0 + np.exp(-logits))


def logit(rates) -> np.ndarray:
    """The logits of rates; infinite for 0 and 1."""
    rates = np.asarray(rates, np.float64)
    with np.errstate(divide="ignore"):
        return np.log(rates) - np.log1p(-rates)


def widen(lowest: float, highest: float) -> tuple[float, float]:
    """Limits of an axis that shows logits from `lowest` to `highest`."""
    margin = max(_MARGIN, (_LEAST_SPAN - (highest - lowest)) / 2)
    return lowest - margin, highest + margin


def draw_diagonal(axes, limits: tuple[float, float]) -> None:
    """Prepares axes of predicted and observed rates, with the line of equal ones."""
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
