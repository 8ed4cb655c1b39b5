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
FOLDERS = {
    "SGD, batch 2048": "kaggle_sgd",
    "Adagrad, batch 2048": "kaggle_adagrad",
    "SGD, batch 128": "kaggle_128_sgd",
    "Adagrad, batch 128": "kaggle_128_adagrad",
}
ARMS = {"tf_dlrm": "#d9480f", "torch": "#9fb3c8", "torchrec": "#627d98"}
NAMES = {"torch": "PyTorch"}
HEIGHT = 0.26  # of a bar; a group of three has the height 1


def read_amx() -> dict[str, dict[str, float]]:
    """Return thousand rows/s by workload and arm, measured with AMX."""
    speeds = {}
    for workload, folder in FOLDERS.items():
        summary = json.loads(
            (RESULTS / folder / "results.jsonl").read_text().splitlines()[-1]
        )
        speeds[workload] = {
            arm: summary["arms"][arm]["samples_per_s"] / 1000 for arm in ARMS
        }
    return speeds


def read_avx2() -> dict[str, dict[str, float]]:
    """Return thousand rows/s by workload and arm, measured with AVX2."""
    return json.loads((RESULTS / "kaggle_avx2.json").read_text())[
        "thousand_samples_per_s"
    ]


def draw() -> None:
    """Draw the chart."""
    figure = pictures.start(11, 4.4)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.08)
    machines = {
        "AVX-512 and AMX, 2 cores": read_amx(),
        "AVX2, 2 cores": read_avx2(),
    }
    for axes, (title, speeds) in zip(
        figure.subplots(1, 2, sharey=True), machines.items()
    ):
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
        values = [speeds[workload][arm] for workload in FOLDERS]
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
    axes.set_yticks(range(len(FOLDERS)), FOLDERS)
    axes.set_ylim(len(FOLDERS) - 0.5, -0.5)
    axes.set_xlim(0, 1.12 * max(max(speeds[name].values()) for name in FOLDERS))
    axes.grid(axis="x", color=GRID)


if __name__ == "__main__":
    draw()
