"""`tf-dlrm demo`: the whole job on generated data with a known best result."""

import pathlib
import time

import tensorflow as tf

import tf_dlrm
from pipelines import evaluation, pictures, runs, scoring
from pipelines.evaluation import reliability, reliability_chart
from pipelines.log_data import are_worth_compiling_for
from pipelines.progress import bar
from pipelines.reports import curves
from pipelines.reports.runs import read_runs
from pipelines.runs import saving
from pipelines.runs.folder import RunFolder, write_json
from pipelines.runs.printing import print_metrics
from pipelines.runtime import UserError, locks
from pipelines.synthetic import Planted
from pipelines.synthetic.distributions import VOCABULARY_SIZES
from pipelines.whole_files import write_text

# So that some hundred thousand rows show each value often enough to learn it.
_MOST_VALUES = 1000


def run(out, num_rows: int = 300_000, seed: int = 0) -> dict:
    """Generate data, train, evaluate, export and predict; print the steps.

    Args:
        out: Folder for everything that the demo writes.
        num_rows: Number of training rows; validation and test have a tenth each.
        seed: Random seed of the data and the training.

    Returns:
        The test metrics and the best possible ones.

    Raises:
        ValueError: If there are fewer than 1,000 rows, or another process is writing to
            `out`.
        FileExistsError: If `out` contains a finished demo.
    """
    if num_rows < 1000:
        raise UserError(f"`num_rows` must be at least 1000. Received: {num_rows}")
    out = pathlib.Path(out)
    with locks.locked(out), locks.locked(out / "run"):
        return _run(out, num_rows, seed)


def _run(out, num_rows, seed):
    start = time.perf_counter()
    RunFolder(out / "run").start()
    print("1. Generate click logs in Criteo's format, with known click probabilities")
    written = _generate(out / "data", num_rows, seed)
    paths = {name: report.path for name, report in written.items()}

    print("\n2. Train")
    folder, results = runs.train(
        runs.get(None), paths["train"], paths["valid"], out / "run"
    )
    print(saving.describe(results))

    print("\n3. Evaluate, beside the best that any model could reach on these rows")
    parser = folder.load_parser()
    model = folder.load_model(parser)
    model.use_xla(are_worth_compiling_for(paths["test"]))
    metrics = evaluation.evaluate(model, parser, paths["test"])
    best = {
        "best_auc": written["test"].best_auc,
        "best_log_loss": written["test"].best_log_loss,
    }
    print_metrics(metrics, best)
    write_json(folder.path / "evaluation.json", metrics | {"best_possible": best})
    picture = out / "demo.png"
    _draw(
        folder, reliability.of_model(model), metrics["auc"], best["best_auc"], picture
    )

    print("\n4. Export, and predict one raw line with the exported model")
    exported = tf_dlrm.export_saved_model(
        model, out / "saved_model", preprocessor=parser
    )
    with open(paths["test"], "rb") as file:
        line = file.readline().rstrip(b"\n")
    probability = scoring.load(exported).score(tf.constant([line]))[0]
    print(f"{line.decode()[:60]}...  ->  click probability {probability:.4f}")
    _print_summary(out, folder, exported, metrics, best, results, start)
    return {"metrics": metrics, "best_possible": best}


def _generate(data, num_rows, seed):
    data.mkdir(parents=True, exist_ok=True)
    sizes = tuple(min(size, _MOST_VALUES) for size in VOCABULARY_SIZES)
    planted, first, written = Planted(seed, vocabulary_sizes=sizes), 0, {}
    parts = {"train": num_rows, "valid": num_rows // 10, "test": num_rows // 10}
    with bar("Generating", sum(parts.values())) as update:
        for name, rows in parts.items():
            path = data / f"{name}.tsv"
            written[name] = planted.write(
                path,
                rows,
                first,
                progress=lambda done, _, first=first: update(first + done),
            )
            write_text(f"{path}.json", written[name].to_json() + "\n", "the report")
            first += rows
    return written


def _draw(folder, diagram, auc, best_auc, path):
    """Draw the learning curve beside the calibration."""
    figure = pictures.start(12, 5.2)
    figure.get_layout_engine().set(w_pad=0.15, h_pad=0.1)
    left, right = figure.subplots(1, 2)
    curves.draw_metric(left, read_runs([folder.path]), "auc")
    left.axhline(best_auc, color=pictures.MUTED, linewidth=1, linestyle=(0, (4, 3)))
    low, high = left.get_ylim()
    left.set_ylim(low, max(high, best_auc + 0.1 * (best_auc - low)))
    left.annotate(
        f"best possible on the test rows: {best_auc:.4f}",
        (1, best_auc),
        (-4, 4),
        xycoords=left.get_yaxis_transform(),
        textcoords="offset points",
        ha="right",
        color=pictures.MUTED,
        fontsize=9,
    )
    left.plot(
        left.get_xlim()[1] / 1.02,
        auc,
        "D",
        color=pictures.LINES[1],
        zorder=4,
        label=f"test: {auc:.4f}",
    )
    left.lines[0].set_label("training so far")
    left.lines[1].set_label("validation")
    left.legend(frameon=False, loc="lower right", fontsize=9, labelcolor=pictures.INK)
    reliability_chart.draw_rates(right, diagram)
    right.set_xlabel("predicted click probability", color=pictures.MUTED)
    pictures.finish(left, "AUC while training")
    pictures.finish(right, "Predicted and observed click rate")
    pictures.save(figure, path)


def _print_summary(out, folder, exported, metrics, best, results, start):
    seconds = time.perf_counter() - start
    gap = best["best_auc"] - metrics["auc"]
    print(
        f"""
Done in {seconds:.0f} s: test AUC {metrics["auc"]:.4f}, {gap:.4f} below the best \
possible {best["best_auc"]:.4f};
trained at {results["samples_per_second"]:,.0f} rows/s.

  picture       {out / "demo.png"}  (learning curve, calibration)
  data          {out / "data"}
  run           {folder.path}  (config, vocabulary, model, metrics)
  TensorBoard   tensorboard --logdir {folder.log_dir}
  SavedModel    {exported}

Next, with your own click logs, whatever their columns:

  tf-dlrm schema --input day_0.csv --out clicks.json
  tf-dlrm train --schema clicks.json --train day_0.csv --valid day_1.csv \\
      --out runs/mine
  tf-dlrm evaluate --model runs/mine --input day_2.csv
  tf-dlrm export --model runs/mine --output saved_models/ctr
  tf-dlrm predict --model saved_models/ctr --input day_3.csv --output scores.csv"""
    )
