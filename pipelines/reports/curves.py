"""The chart of learning curves: loss and AUC against the number of rows."""

from pipelines import pictures
from pipelines.pictures import GRID, LINES, MUTED
from pipelines.reports.runs import Run
from pipelines.text_tables import shorten_count

_PANELS = (("loss", "Loss"), ("auc", "AUC"))
_START = 0.05  # first share of the rows, whose values do not set the scale
_MARGIN = 0.06  # relative to the scale
_LEGEND_LETTERS = 120
_VALIDATION = {
    "marker": "o",
    "markersize": 6.5,
    "markeredgecolor": "white",
    "linestyle": (0, (4, 2)),
    "linewidth": 1.5,
}


def has_curves(runs: list[Run]) -> bool:
    """Return True if any run has values to draw."""
    return any(
        run.scalars(part, metric)
        for run in runs
        for part in ("train", "validation")
        for metric, _ in _PANELS
    )


def draw(runs: list[Run], path) -> None:
    """Draw the learning curves of runs, in one color each.

    Args:
        runs: The runs, at most as many as there are colors.
        path: PNG file to write.
    """
    figure = pictures.start(11, 5)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.08)
    for axes, (metric, title) in zip(figure.subplots(1, 2), _PANELS):
        draw_metric(axes, runs, metric)
        pictures.finish(axes, title)
    _explain(figure, runs)
    pictures.save(figure, path)


def draw_metric(axes, runs: list[Run], metric: str) -> None:
    """Draw one metric of runs against the rows they were trained on.

    Args:
        axes: Where to draw.
        runs: The runs, at most as many as there are colours.
        metric: Name of the metric, such as `"auc"`.
    """
    last = max((run.last_step - run.first_step) * run.batch_size for run in runs)
    scale = []
    for run, color in zip(runs, LINES):
        training = _in_rows(run, "train", metric)
        validation = _in_rows(run, "validation", metric)
        marker = "." if len(training[0]) == 1 else ""  # a line needs two points
        axes.plot(*training, marker + "-", color=color, linewidth=1.1, alpha=0.75)
        axes.plot(
            *validation,
            color=color,
            zorder=3,
            **_VALIDATION,
        )
        scale += validation[1]
        scale += [y for x, y in zip(*training) if x >= _START * last]
    scale = [value for value in scale if value == value]  # without NaN
    if scale:
        margin = _MARGIN * (max(scale) - min(scale)) or 0.01
        axes.set_ylim(min(scale) - margin, max(scale) + margin)
    axes.set_xlim(0, last * 1.02 or 1)
    axes.xaxis.set_major_formatter(lambda value, _: shorten_count(value))
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("rows trained on", color=MUTED)
    axes.grid(axis="y", color=GRID)


def _in_rows(run, part, metric):
    curve = run.scalars(part, metric)
    steps = sorted(curve)
    rows = [(step - run.first_step) * run.batch_size for step in steps]
    return rows, [curve[step] for step in steps]


def _explain(figure, runs):
    """Add two legends: runs below, kinds of lines above."""
    from matplotlib.lines import Line2D

    names = [pictures.plain(run.label) for run in runs]
    handles = [
        Line2D([], [], color=color, linewidth=4, label=name)
        for name, color in zip(names, LINES)
    ]
    columns = max(1, _LEGEND_LETTERS // (max(map(len, names)) + 4))
    pictures.put_legend(figure, min(len(runs), columns), handles)
    kinds = [
        Line2D([], [], color=MUTED, linewidth=1.1, label="training, epoch so far"),
        Line2D([], [], color=MUTED, label="validation", **_VALIDATION),
    ]
    pictures.put_legend(figure, 2, kinds, "outside upper right", handlelength=3.2)
