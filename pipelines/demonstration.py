"""`tf-dlrm demo`: the whole job on generated data with a known best result."""

import pathlib
import time

import tensorflow as tf

from pipelines import evaluation, runs, scoring
from pipelines.evaluation import reliability, reliability_chart
from pipelines.progress import bar
from pipelines.runs import saving
from pipelines.runs.folder import RunFolder, write_json
from pipelines.runs.printing import print_metrics
from pipelines.runtime import UserError, locks
from pipelines.synthetic import Planted
from pipelines.whole_files import write_text


def run(out, num_rows: int = 1_000_000, seed: int = 0) -> dict:
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
    print("1. Data: click logs in Criteo's format, with planted click probabilities")
    reports = _generate(out / "data", num_rows, seed)
    paths = {name: report.path for name, report in reports.items()}
    print("\n2. Train")
    config = runs.get(None)  # for a million rows, the config of the named run `demo`
    folder, results = runs.train(config, paths["train"], paths["valid"], out / "run")
    print(saving.describe(results))
    print("\n3. Evaluate, against the best that any model could reach on these rows")
    parser = folder.load_parser()
    model = folder.load_model(parser)
    metrics = evaluation.evaluate(model, parser, paths["test"])
    best = {
        "best_auc": reports["test"].best_auc,
        "best_log_loss": reports["test"].best_log_loss,
    }
    print_metrics(metrics, best)
    diagram = reliability.of_model(model)
    picture = folder.path / "evaluation_reliability.png"
    reliability_chart.draw(diagram, metrics | diagram.describe(), picture)
    write_json(folder.path / "evaluation.json", metrics | {"best_possible": best})
    print("\n4. Export, and predict one raw line with the exported model")
    exported = runs.export(folder, out / "saved_model")
    with open(paths["test"], "rb") as file:
        line = file.readline().rstrip(b"\n")
    probability = scoring.load(exported).score(tf.constant([line]))[0]
    print(f"{line.decode()[:60]}...  ->  click probability {probability:.4f}")
    _print_summary(out, folder, exported, metrics, best, results, start)
    return {"metrics": metrics, "best_possible": best}


def _generate(data, num_rows, seed):
    data.mkdir(parents=True, exist_ok=True)
    planted, first, reports = Planted(seed=seed), 0, {}
    parts = (("train", num_rows), ("valid", num_rows // 10), ("test", num_rows // 10))
    for name, rows in parts:
        path = data / f"{name}.tsv"
        with bar(f"Generating {path}", rows) as update:
            reports[name] = planted.write(
                path, rows, first, progress=lambda done, total: update(done)
            )
        report_path = pathlib.Path(f"{path}.json")
        write_text(report_path, reports[name].to_json() + "\n", "the report")
        first += rows
    return reports


def _print_summary(out, folder, exported, metrics, best, results, start):
    seconds = time.perf_counter() - start
    gap = best["best_auc"] - metrics["auc"]
    print(
        f"""
Done in {seconds:.0f} s: test AUC {metrics["auc"]:.4f}, {gap:.4f} below the best \
possible {best["best_auc"]:.4f};
trained at {results["samples_per_second"]:,.0f} samples/s.

  data          {out / "data"}
  run           {folder.path}  (config, vocabulary, model, metrics)
  reliability   {folder.path / "evaluation_reliability.png"}
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
