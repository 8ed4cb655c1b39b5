"""Charts of a benchmark: speed by arm, cost by table size, and parts of a step."""

from pipelines import pictures
from pipelines.benchmark import breakdown, results
from pipelines.benchmark.workloads import SCALING_ROWS
from pipelines.pictures import GRID, INK, LINES, MUTED
from pipelines.text_tables import shorten_count

OWN, PEER = "#d9480f", "#9fb3c8"
PARTS = {
    "embedding lookup": "#1864ab",
    "embedding update": "#4dabf7",
    "bottom MLP": "#e67700",
    "top MLP": "#ffc078",
    "interaction": "#2b8a3e",
    "loss and metrics": "#8ce99a",
    "dense optimizer": "#862e9c",
    breakdown.IDLE: "#adb5bd",
    breakdown.OTHER: "#dee2e6",
}


def draw_summary(summary: dict, path) -> None:
    """Draw rows/s by arm, or for the scaling workload, ms by number of rows."""
    draw = _draw_lines if "optimizers" in summary else _draw_bars
    draw(summary, path)


def _draw_bars(summary, path):
    arms = {k: v for k, v in summary["arms"].items() if "samples_per_s" in v}
    arms = dict(sorted(arms.items(), key=lambda item: item[1]["samples_per_s"]))
    figure, axes = _start(8, 1.5 + 0.5 * len(arms))
    speeds = [values["samples_per_s"] for values in arms.values()]
    colors = [OWN if name.startswith("tf_dlrm") else PEER for name in arms]
    axes.barh(list(arms), speeds, color=colors, height=0.66)
    for i, (name, speed) in enumerate(zip(arms, speeds)):
        weight = "bold" if name.startswith("tf_dlrm") else "normal"
        text = f" {speed:,.0f}"
        axes.text(speed, i, text, va="center", color=INK, weight=weight, fontsize=10)
    for label in axes.get_yticklabels():
        if label.get_text().startswith("tf_dlrm"):
            label.set_weight("bold")
    axes.set_xlim(0, max(speeds) * 1.15)
    axes.set_ylim(-0.6, len(arms) - 0.4)
    axes.set_xlabel("rows/s, median of rounds (longer is better)", color=MUTED)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.grid(axis="x", color=GRID)
    pictures.finish(axes, "Training" if summary["mode"] == "train" else "Inference")
    _save(figure, summary, path)


def _draw_lines(summary, path):
    sizes = {shorten_count(rows): rows for rows in SCALING_ROWS}
    figure, axes = _start(8, 4.2)
    highest = 0
    for color, (name, figures) in zip(LINES, summary["optimizers"].items()):
        rows = [sizes[size] for size in figures["ms"]]
        times = list(figures["ms"].values())
        axes.plot(rows, times, "o-", color=color, label=name, linewidth=2)
        highest = max(highest, *times, 0)
    axes.set_xscale("log")
    axes.set_xticks(list(sizes.values()), list(sizes))
    axes.minorticks_off()
    axes.set_ylim(0, highest * 1.15 or 1)
    axes.set_xlabel("rows of the table", color=MUTED)
    axes.set_ylabel("ms per step", color=MUTED)
    axes.grid(axis="y", color=GRID)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    pictures.finish(axes, "A step's cost as the table grows")
    _save(figure, summary, path)


def draw_breakdown(breakdowns: dict[str, dict], job, path) -> None:
    """Draw a stacked bar for each arm: shares of a step by operation.

    Args:
        breakdowns: Results of `breakdown.read_trace` by arm.
        job: The `Job` that was profiled.
        path: File to write.
    """
    figure, axes = _start(9, 1.9 + 0.75 * len(breakdowns))
    shares = {
        part: [100 * step["share"][part] for step in breakdowns.values()]
        for part in PARTS
    }
    pictures.stack_bars(
        axes, list(breakdowns), shares, PARTS, lambda x: f"{x:.0f}%" if x >= 4 else ""
    )
    for i, step in enumerate(breakdowns.values()):
        whole = sum(step["ms_per_step"].values())
        axes.text(101, i, f"{whole:,.1f} ms", va="center", color=INK, weight="bold")
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0f}%")
    pictures.put_legend(figure, 5)
    pictures.finish(
        axes,
        f"Parts of a training step: {job.workload.name}, {job.optimizer}, batch "
        f"{job.batch_size:,}",
    )
    pictures.save(figure, path)


def _start(width, height):
    figure = pictures.start(width, height)
    return figure, figure.add_subplot()


def _save(figure, summary, path):
    pictures.put_caption(figure, results.describe_run(summary))
    pictures.save(figure, path)
