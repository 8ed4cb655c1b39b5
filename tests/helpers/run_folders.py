"""Hand-made folders of runs, whose numbers are known."""

import csv
import json

from pipelines import cli
from pipelines.reports.comparison import make_report
from pipelines.runs.config import RunConfig

ROWS, BATCH = 1000, 100  # ten steps an epoch
PNG = b"\x89PNG\r\n\x1a\n"
TIMES = {
    "seconds": 90.0,
    "training_seconds": 60.0,
    "waiting_seconds": 6.0,
    "validation_seconds": 20.0,
    "num_rows": 120_000,
    "checkpoint_seconds": 3.0,
    "checkpoint_seconds_within_epochs": 0.0,
}
METRICS = {
    "loss": 0.41,
    "auc": 0.8,
    "val_loss": 0.45,
    "val_auc": 0.77,
    "val_log_loss": 0.45,
    "val_normalized_entropy": 0.81,
    "val_calibration": 0.98,
}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_run(folder, epochs=2, metrics=METRICS, data=None, results=None, **options):
    """The folder of a run; without metrics it is not finished."""
    config = RunConfig(batch_size=BATCH, epochs=epochs, **options)
    data = {"train": ["/far/a.tsv"], "valid": ["/far/v.tsv"], **(data or {})}
    content = {
        "tf_dlrm": "1.0",
        "config": json.loads(config.to_json()),
        "data": {"rows_by_epoch": [ROWS] * epochs, **data},
        "vocabulary_digest": "0",
    }
    write_json(folder / "config.json", content)
    if metrics is None:
        return folder
    known = {
        "metrics": metrics,
        "num_rows": ROWS,
        "num_valid_rows": 100,
        "seconds": 90.0,
        "training_seconds": 60.0,
        "validation_seconds": 20.0,
        "samples_per_second": 2000.0,
        "checkpoint_seconds": [1.0, 2.0],
    }
    write_json(folder / "metrics.json", known | (results or {}))
    lines = [",".join(["epoch", *metrics])]
    for epoch in range(1, epochs + 1):
        values = [value + 0.01 * (epochs - epoch) for value in metrics.values()]
        lines.append(",".join(map(str, [epoch, *values])))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_steps(folder, *rows, cut=""):
    """The file `steps.csv`; `rows` are `(step, training loss)`, the AUC is 1 - loss."""
    lines = ["step,loss,auc,val_loss,val_auc"]
    lines += [f"{step},{loss},{1 - loss},," for step, loss in rows]
    (folder / "steps.csv").write_text("\n".join(lines) + "\n" + cut)


def write_times(folder, *processes):
    """The file `times.jsonl`: 60 s of training, or what a process says instead."""
    lines = [json.dumps(TIMES | {"began": i} | p) for i, p in enumerate(processes)]
    (folder / "times.jsonl").write_text("\n".join(lines) + "\n")


def evaluate(folder, auc, rows=4000, calibration=1.02, bins=8):
    content = {"auc": auc, "calibration": calibration, "num_rows": rows}
    write_json(folder / "evaluation.json", content)
    names = ("num_rows", "predicted", "observed", "observed_low", "observed_high")
    with open(folder / "evaluation_reliability.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for i in range(bins):  # the first bin has no click
            rate = (i + 0.5) / (2 * bins)
            observed = rate if i else 0.0
            writer.writerow([rows / bins, rate, observed, 0.9 * observed, rate * 1.1])


def report(*words, code=0):
    assert cli.main(["report", *map(str, words)]) == code


def values_of(*folders):
    return make_report(folders).values


def size_of(path):
    """Width and height by the header of a PNG."""
    content = path.read_bytes()
    assert content.startswith(PNG)
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")
