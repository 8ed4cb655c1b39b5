"""Draw the chart at the top of the README from the measured results.

    python benchmarks/speed_chart.py

Training speed on two kinds of processors, beside PyTorch and torchrec; the picture is
`docs/images/speed.png`.
"""

import json
import pathlib

from pipelines import pictures
from pipelines.pictures import GRID, INK, MUTED

RESULTS = pathlib.Path(__file__).with_name("results")
PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "images" / "speed.png"
WORKLOADS = (
    "SGD, batch 2048",
    "Adagrad, batch 2048",
    "SGD, batch 128",
    "Adagrad, batch 128",
)
NUM_MACHINES = 2  # the first ones of the results
ARMS = {"tf_dlrm": "#d9480f", "torch": "#9fb3c8", "torchrec": "#627d98"}
NAMES = {"torch": "PyTorch"}
HEIGHT = 0.26  # of a bar; a group of three has the height 1


def read_speeds() -> dict[str, dict[str, dict[str, float]]]:
    """Return thousand rows/s by machine, workload and arm."""
    content = json.loads((RESULTS / "machines.json").read_text())
    return {m["title"]: m["thousand_rows_per_s"] for m in content["machines"]}


def draw() -> None:
    """Draw the chart."""
    figure = pictures.start(11, 4.4)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.08)
    machines = list(read_speeds().items())[:NUM_MACHINES]
    for axes, (title, speeds) in zip(figure.subplots(1, 2, sharey=True), machines):
        draw_machine(axes, speeds)
        pictures.finish(axes, title)
    pictures.put_legend(figure, 3, figure.axes[0].containers)
    figure.suptitle(
        "Training the Criteo Kaggle shape: thousand rows/s in float32",
        x=0.01,
        ha="left",
        fontsize=11,
        color=MUTED,
    )
    pictures.save(figure, PICTURE)


def draw_machine(axes, speeds: dict[str, dict[str, float]]) -> None:
    """Draw the bars of one machine."""
    for position, (arm, color) in enumerate(ARMS.items()):
        values = [speeds[workload][arm] for workload in WORKLOADS]
        places = [place + (position - 1) * HEIGHT for place in range(len(values))]
        axes.barh(
            places, values, height=HEIGHT * 0.9, color=color, label=NAMES.get(arm, arm)
        )
        for place, value in zip(places, values):
            axes.text(
                value,
                place,
                f" {value:.1f}",
                va="center",
                fontsize=9,
                color=INK,
                weight="bold" if arm == "tf_dlrm" else "normal",
            )
    axes.set_yticks(range(len(WORKLOADS)), WORKLOADS)
    axes.set_ylim(len(WORKLOADS) - 0.5, -0.5)
    axes.set_xlim(0, 1.12 * max(max(speeds[name].values()) for name in WORKLOADS))
    axes.grid(axis="x", color=GRID)


if __name__ == "__main__":
    draw()
