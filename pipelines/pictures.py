"""The style of charts: colors, titles, stacked bars."""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.whole_files import replacing

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
LINES = (
    "#d9480f", "#1864ab", "#2b8a3e", "#862e9c", "#e67700", "#1098ad", "#e64980",
    "#495057",
)  # fmt: skip


def start(width: float, height: float):
    """Return a figure of this size in inches, without window system or global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure, path) -> None:
    """Write a figure; the file appears complete or not at all."""
    kind = pathlib.Path(path).suffix.removeprefix(".") or "png"
    with replacing(path, "the picture") as file:
        figure.savefig(file, dpi=150, facecolor="white", format=kind)


def plain(text: str) -> str:
    """Return a text that matplotlib shows literally, even with "$" or "_"."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def finish(axes, title: str = "") -> None:
    """Add a title to axes, and remove the frame and the ticks."""
    if title:
        axes.set_title(title, loc="left", color=INK, weight="bold", fontsize=13, pad=10)
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, colors=INK, labelsize=10)
    axes.set_axisbelow(True)


def stack_bars(
    axes,
    names: Sequence[str],
    parts: dict[str, Sequence[float]],
    colors: dict[str, str],
    describe: Callable[[float], str],
) -> None:
    """Draw a stacked bar for each name, the first on top.

    Args:
        axes: Axes to draw in.
        names: Names of the bars.
        parts: Lengths of the parts of each bar, by name of the part.
        colors: Color of each part, in the order of the parts.
        describe: Function that returns the text in a part of some length, or "".
    """
    left = [0.0] * len(names)
    for part, color in colors.items():
        places = range(len(names))
        axes.barh(places, parts[part], left=left, color=color, height=0.6, label=part)
        for i, length in enumerate(parts[part]):
            axes.text(
                left[i] + length / 2,
                i,
                describe(length),
                ha="center",
                va="center",
                color="white" if _is_dark(color) else INK,
                fontsize=9,
            )
            left[i] += length
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def put_legend(
    figure, columns: int, handles=None, loc: str = "outside lower center", **style: Any
) -> None:
    """Put a legend below the figure, with as many columns as have room.

    Args:
        figure: The figure.
        columns: Maximum number of entries in a row.
        handles: Handles of the entries; default: everything with a label.
    """
    figure.legend(
        **({} if handles is None else {"handles": handles}),
        ncols=columns,
        loc=loc,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        **{"handlelength": 1, "handleheight": 1, **style},
    )


def put_caption(figure, text: str) -> None:
    """Put small text below a figure."""
    figure.supxlabel(text, x=0.01, ha="left", fontsize=8, color=MUTED)


def _is_dark(color):
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue < 140
