"""Published configurations on rows that everybody can have.

    python benchmarks/experiments.py [--sample criteo_kaggle_sample.tsv.gz] [--rows N]

Trains `dlrm_kaggle`, `paddlerec` and `criteo_x1_dlrm` on planted rows, whose best
possible AUC is known, and on the first 8,000 real rows if a file is given; prints
what they reach on test rows, and writes `benchmarks/results/experiments.json`. The rows
are a fortieth of those that the settings are for, and a five thousandth. `--rows 0`
leaves the planted ones out; what is not measured stays in the file.
"""

import argparse
import dataclasses
import datetime
import gzip
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from pipelines import evaluation, runs
from pipelines.synthetic import Planted

RESULTS = pathlib.Path(__file__).parent / "results" / "experiments.json"
NAMES = ("dlrm_kaggle", "paddlerec", "criteo_x1_dlrm")
# There are no validation rows: the rate falls when it did in the published log, or not
# at all in one epoch, and tables train without the penalty, lazily.
LAZY = {"l2": 0.0, "adam_epsilon": None, "patience": None}
CHANGES = {
    ("planted", "criteo_x1_dlrm"): {**LAZY, "learning_rate_decay": "none", "epochs": 1},
    ("real", "criteo_x1_dlrm"): {
        **LAZY,
        "learning_rate_decay": "epochs",
        "reduce_after_epochs": (12,),
        "epochs": 15,
    },
}
TEST_ROWS = 200_000


def split_sample(path, folder) -> dict[str, pathlib.Path]:
    """Writes rows 1 .. 8,000 and 8,001 .. 10,000 of a sample (gzip) to files."""
    with gzip.open(path, "rb") as file:
        lines = [file.readline() for _ in range(10_000)]
    files = {}
    for name, part in (("train", lines[:8_000]), ("test", lines[8_000:])):
        files[name] = pathlib.Path(folder) / f"sample-{name}.tsv"
        files[name].write_bytes(b"".join(part))
    return files


def make_planted(num_rows, folder, num_test=TEST_ROWS, seed=0):
    """Writes planted rows to files; returns them and the best possible metrics."""
    planted, folder = Planted(seed=seed), pathlib.Path(folder)
    files = {name: folder / f"planted-{name}.tsv" for name in ("train", "test")}
    planted.write(files["train"], num_rows)
    best = planted.write(files["test"], num_test, first_row=num_rows)
    return files, {"auc": best.best_auc, "log_loss": best.best_log_loss}


def run(name, files, folder, **changes) -> dict:
    """Trains a named run and measures it on the test rows."""
    config = dataclasses.replace(runs.get(name), **changes)
    made, trained = runs.train(config, files["train"], None, folder)
    parser = made.load_parser()
    model = made.load_model(parser)
    found = evaluation.evaluate(model, parser, files["test"])
    return {
        "run": name,
        "changes": changes,
        "train_rows": trained["num_rows"],
        "test_rows": found["num_rows"],
        "parameters": sum(table.num_parameters for table in model.spec.tables)
        + sum(int(v.shape.num_elements()) for v in model.dense_variables),
        **{k: round(found[k], 5) for k in ("auc", "log_loss", "accuracy")},
        "training_seconds": round(trained["training_seconds"], 1),
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--sample", help="rows of Criteo Kaggle, gzip")
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--runs", nargs="+", choices=NAMES, default=NAMES)
    arguments = arguments.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        sources = {}
        if arguments.sample:
            sources["real"] = split_sample(arguments.sample, folder), None
        if arguments.rows:
            sources["planted"] = make_planted(arguments.rows, folder)
        for data, (files, best) in sources.items():
            for name in arguments.runs:
                changes = CHANGES.get((data, name), {})
                out = pathlib.Path(folder) / f"{data}-{name}"
                entry = {"data": data, "best_possible": best}
                entry |= run(name, files, out, **changes)
                found.append(entry)
                print(json.dumps(entry), flush=True)
    if RESULTS.exists():
        new = {(entry["data"], entry["run"]) for entry in found}
        kept = json.loads(RESULTS.read_text())["results"]
        found += [entry for entry in kept if (entry["data"], entry["run"]) not in new]
        found.sort(key=lambda entry: (entry["data"], NAMES.index(entry["run"])))
    content = {"date": datetime.date.today().isoformat(), "results": found}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
