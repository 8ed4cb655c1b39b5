"""The chart of times: a step by operation, and a run by activity."""

import dataclasses

from pipelines import pictures
from pipelines.benchmark.charts import PARTS
from pipelines.pictures import GRID, INK
from pipelines.reports import times
from pipelines.reports.runs import Run
from pipelines.reports.times import Times

_RUN_COLORS = {
    times.STEPS: "#1864ab",
    times.WAITING: "#e67700",
    times.VALIDATION: "#2b8a3e",
    times.CHECKPOINTS: "#862e9c",
    times.REST: "#dee2e6",
}
_LABELLED = 0.045  # share of the longest bar that has room for a number
_BAR, _LEGEND_ROW, _AROUND = 0.48, 0.2, 1.15  # inches
_BELOW = 0.34  # distance of a legend below the axis
_COLUMNS = 5
_UNITS = (("h", 3600.0, 5 * 3600.0), ("min", 60.0, 300.0), ("s", 1.0, 0.0))


def draw(
    runs: list[Run], measured: list[Times], profiles: dict[int, dict], path
) -> None:
    """Draw stacked bars: ms of a step by operation, and minutes of a run by activity.

    Args:
        runs: The runs.
        measured: The `Times` of each run.
        profiles: Results of `benchmark.breakdown.read_trace`, by number of the run.
        path: PNG file to write.
    """
    timed = [i for i, each in enumerate(measured) if each.parts()]
    panels = []
    if profiles:
        panels.append(_describe_steps(runs, profiles))
    if timed:
        panels.append(_describe_times(timed, runs, measured))
    heights = [
        _BAR * len(panel.names) + _LEGEND_ROW * -(-len(panel.colors) // _COLUMNS)
        for panel in panels
    ]
    figure = pictures.start(10, sum(heights) + _AROUND * len(panels))
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    bars = [_BAR * len(panel.names) for panel in panels]
    found = figure.subplots(len(panels), 1, height_ratios=bars, squeeze=False)
    for (axes,), panel in zip(found, panels):
        _draw_panel(figure, axes, panel)
    pictures.save(figure, path)


@dataclasses.dataclass(frozen=True)
class _Panel:
    """Bars of one unit, with their names and the lengths of their parts by color."""

    title: str
    unit: str
    names: list[str]
    parts: dict[str, list[float]]
    colors: dict[str, str]


def _describe_steps(runs, profiles):
    sizes = sorted({runs[i].batch_size for i in profiles})
    names = [
        runs[i].label + (f"\nbatch {runs[i].batch_size:,}" if len(sizes) > 1 else "")
        for i in profiles
    ]
    parts = {
        part: [found["ms_per_step"][part] for found in profiles.values()]
        for part in PARTS
    }
    batch = f" (batch {sizes[0]:,})" if len(sizes) == 1 else ""
    return _Panel(f"Time of a step by operation{batch}", "ms", names, parts, PARTS)


def _describe_times(timed, runs, measured):
    longest = max(measured[i].total for i in timed)
    unit, size = next((u, size) for u, size, least in _UNITS if longest >= least)
    parts = {
        part: [measured[i].parts()[part] / size for i in timed] for part in _RUN_COLORS
    }
    names = [
        runs[i].label + ("" if runs[i].is_finished else "\n(not finished)")
        for i in timed
    ]
    return _Panel("Time of a run by activity", unit, names, parts, _RUN_COLORS)


def _draw_panel(figure, axes, panel):
    from matplotlib.transforms import ScaledTranslation

    totals = [sum(lengths) for lengths in zip(*panel.parts.values())]
    longest = max(totals) or 1.0
    pictures.stack_bars(
        axes,
        [pictures.plain(name) for name in panel.names],
        panel.parts,
        panel.colors,
        lambda length: f"{length:.1f}" if length >= _LABELLED * longest else "",
    )
    for i, total in enumerate(totals):
        axes.annotate(
            f"{total:,.1f} {panel.unit}",
            (total, i),
            (6, 0),
            textcoords="offset points",
            va="center",
            color=INK,
            weight="bold",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    axes.set_xlim(0, longest * 1.12)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axes.grid(axis="x", color=GRID)
    pictures.finish(axes, panel.title)
    below = ScaledTranslation(0, -_BELOW, figure.dpi_scale_trans)
    axes.legend(
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=axes.transAxes + below,
        borderaxespad=0,
        ncols=_COLUMNS,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1,
        handleheight=1,
    )
