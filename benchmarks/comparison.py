"""The paper's comparison: DLRM against DCN of equal size, with SGD and with Adagrad.

    python benchmarks/comparison.py [--sample criteo_kaggle_sample.tsv.gz] [--rows N]

One pass over planted rows, and three over the first 8,000 real rows if a file is given
(see `experiments.py`). Accuracy in training and on rows not trained on goes to
`benchmarks/results/comparison.json`, the picture, as figure 5 of arXiv 1906.00091, to
`docs/images/comparison.png`. `--draw` only draws what was measured.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import experiments
import keras
import numpy as np
import tensorflow as tf

from pipelines import evaluation, runs
from pipelines.criteo import Parser, read
from pipelines.vocabulary import Vocabulary

RESULTS = experiments.RESULTS.with_name("comparison.json")
PICTURE = pathlib.Path(__file__).parents[1] / "docs" / "images" / "comparison.png"
MODELS = {"DLRM": "dlrm_kaggle", "DCN": "paper_dcn"}
OPTIMIZERS = {
    "SGD": {},  # what the runs have: 0.1
    "Adagrad": {  # torch's
        "optimizer": "adagrad",
        "learning_rate": 0.01,
        "initial_accumulator_value": 0.0,
        "adagrad_epsilon": 1e-20,
    },
}
VALID_ROWS, VALID_BATCH = 50_000, 5_000
NUM_POINTS = 20

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
COLORS = {"DLRM": "#d9480f", "DCN": "#1c7ed6"}


class Curves(keras.callbacks.Callback):
    """Accuracy since the last point, and on other rows, at points of the training.

    Args:
        valid: Batches `(features, label)` of the other rows.
        every_steps: Steps between two points.
        batch_size: Rows of a training step.
    """

    def __init__(self, valid, every_steps, batch_size):
        super().__init__()
        self._valid, self._every, self._batch_size = valid, every_steps, batch_size
        self._step = 0
        self.points = []

    def set_model(self, model):
        super().set_model(model)
        self._predict = tf.function(lambda features: model(features, training=False))

    def on_epoch_begin(self, epoch, logs=None):
        self._of_epoch, self._before = 0, (0, 0.0)

    def on_train_batch_end(self, batch, logs=None):
        self._step += 1
        self._of_epoch += 1
        if self._step % self._every:
            return
        # Keras' metric is that of the epoch so far.
        steps, sum_before = self._before
        total = logs["accuracy"] * self._of_epoch
        recent = (total - sum_before) / (self._of_epoch - steps)
        self._before = self._of_epoch, total
        hits = rows = 0
        for features, label in self._valid:
            guessed = self._predict(features).numpy()[:, 0] >= 0.5
            hits += int((guessed == (label.numpy() > 0.5)).sum())
            rows += len(guessed)
        point = {
            "rows": self._step * self._batch_size,
            "training": round(float(recent), 5),
            "validation": round(hits / rows, 5),
        }
        self.points.append(point)


def measure(files, folder, epochs=1, valid_rows=None) -> dict:
    """Trains all four and returns their curves and final results.

    Args:
        files: `train` and `test`, paths.
        folder: Folder for the runs.
        epochs: Passes over the training rows.
        valid_rows: Most rows for the curves of validation.
    """
    vocabulary = Vocabulary.build(files["train"], min_count=1)
    parser = Parser(vocabulary)
    valid = list(read(files["test"], parser, VALID_BATCH))
    valid = valid[: valid_rows and valid_rows // VALID_BATCH]
    clicks = np.mean(np.concatenate([label for _, label in valid]))
    arms = []
    for model_name, name in MODELS.items():
        for optimizer, changes in OPTIMIZERS.items():
            config = dataclasses.replace(runs.get(name), epochs=epochs, **changes)
            steps = vocabulary.num_rows // config.batch_size * epochs
            curves = Curves(valid, max(steps // NUM_POINTS, 1), config.batch_size)
            out = pathlib.Path(folder) / f"{model_name}-{optimizer}"
            made, trained = runs.train(
                config, files["train"], None, out, vocabulary, [curves]
            )
            model = made.load_model(parser)
            found = evaluation.evaluate(model, parser, files["test"])
            arms.append(
                {
                    "model": model_name,
                    "optimizer": optimizer,
                    "parameters_of_tables": sum(
                        table.num_parameters for table in model.spec.tables
                    ),
                    "other_parameters": sum(
                        int(v.shape.num_elements()) for v in model.dense_variables
                    ),
                    **{k: round(found[k], 5) for k in ("accuracy", "auc", "log_loss")},
                    "training_seconds": round(trained["training_seconds"], 1),
                    "curve": curves.points,
                }
            )
            print(json.dumps({k: v for k, v in arms[-1].items() if k != "curve"}))
    return {
        "train_rows": vocabulary.num_rows,
        "test_rows": found["num_rows"],
        "epochs": epochs,
        "accuracy_of_no_clicks": round(1 - float(clicks), 5),
        "arms": arms,
    }


def draw(content, path) -> None:
    """Draws the curves: a row of panels for the data, a column for the optimizer."""
    from matplotlib.figure import Figure

    found = content["data"]
    figure = Figure(figsize=(9.6, 3.9 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), 2, squeeze=False, sharey="row")
    for row, (name, data) in zip(grid, found.items(), strict=True):
        for axes, optimizer in zip(row, OPTIMIZERS, strict=True):
            _draw_panel(axes, data, optimizer)
            title = f"{name}: {optimizer}"
            axes.set_title(title, loc="left", color=INK, weight="bold", fontsize=11)
        row[0].set_ylabel("accuracy", color=MUTED)
        for axes in row:
            axes.set_xlabel("rows trained on", color=MUTED)
    figure.legend(
        *grid[0][0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    figure.savefig(path, dpi=150, facecolor="white")


def _draw_panel(axes, data, optimizer):
    for arm in data["arms"]:
        if arm["optimizer"] != optimizer:
            continue
        rows = [point["rows"] for point in arm["curve"]]
        for part, style in (("training", "-"), ("validation", "--")):
            axes.plot(
                rows,
                [point[part] for point in arm["curve"]],
                style,
                color=COLORS[arm["model"]],
                linewidth=1.8 if part == "training" else 1.4,
                label=f"{arm['model']}, {part}",
            )
    level = data["accuracy_of_no_clicks"]
    axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (1, 3)))
    axes.annotate(
        "always no click",
        (0.99, level),
        (0, -3),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        ha="right",
        va="top",
        color=MUTED,
        fontsize=8,
    )
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.4g}%")
    axes.xaxis.set_major_formatter(
        lambda value, _: f"{value / 1e6:g}M" if rows[-1] >= 1e6 else f"{value:,.0f}"
    )
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, colors=INK, labelsize=9)
    for side in axes.spines.values():
        side.set_visible(False)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sample", help="rows of Criteo Kaggle, gzip")
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--draw", action="store_true", help="only draw the picture")
    arguments = arguments.parse_args()
    if arguments.draw:
        draw(json.loads(RESULTS.read_text()), PICTURE)
        return
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        files, best = experiments.make_planted(arguments.rows, folder)
        name = f"{arguments.rows:,} planted rows"
        found[name] = measure(files, f"{folder}/planted", valid_rows=VALID_ROWS)
        found[name]["best_possible"] = best
        if arguments.sample:
            files = experiments.split_sample(arguments.sample, folder)
            found["8,000 real rows"] = measure(files, f"{folder}/real", epochs=3)
    content = {"date": datetime.date.today().isoformat(), "data": found}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n")
    draw(content, PICTURE)


if __name__ == "__main__":
    main()
