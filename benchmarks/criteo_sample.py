"""The named run `criteo_sample` on real rows of the Criteo Kaggle set.

    python benchmarks/criteo_sample.py criteo_kaggle_sample.tsv.gz

Trains on rows 1 .. 8,000 of the file, tests on the next 2,000 and on rows 10,110 and
after, with three seeds; prints a table and writes
`benchmarks/results/criteo_sample.json`. The file is Criteo's, not part of this project.
"""

import argparse
import gzip
import json
import os
import pathlib
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import dataclasses

import numpy as np

from pipelines import evaluation, runs

RESULTS = pathlib.Path(__file__).parent / "results" / "criteo_sample.json"
PARTS = {"train": (0, 8_000), "test": (8_000, 10_000), "later": (10_109, None)}


def split(path, folder) -> dict[str, pathlib.Path]:
    """Writes the parts of the sample as files of lines, and returns their paths."""
    with gzip.open(path, "rb") as file:
        lines = file.read().splitlines(keepends=True)
    files = {}
    for name, (first, last) in PARTS.items():
        files[name] = pathlib.Path(folder) / f"{name}.tsv"
        files[name].write_bytes(b"".join(lines[first:last]))
    return files


def train(path, folder, seed: int):
    """Trains the named run with a seed, and returns its folder."""
    config = dataclasses.replace(runs.get("criteo_sample"), seed=seed)
    run, _ = runs.train(config, path, None, pathlib.Path(folder) / f"run-{seed}")
    return run


def measure(path, folder, seeds=(0, 1, 2)) -> dict:
    """Returns AUC and log loss on `test` and `later`, a list with one for each seed.

    Args:
        path: The sample, gzip.
        folder: A folder for files and runs.
        seeds: Seeds of the runs.
    """
    files = split(path, folder)
    found = {name: {"auc": [], "log_loss": []} for name in ("test", "later")}
    for seed in seeds:
        run = train(files["train"], folder, seed)
        parser = run.load_parser()
        model = run.load_model(parser)
        for name, scores in found.items():
            metrics = evaluation.evaluate(model, parser, files[name])
            for score, values in scores.items():
                values.append(metrics[score])
    return found


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("sample")
    path = arguments.parse_args().sample
    with tempfile.TemporaryDirectory() as folder:
        found = measure(path, folder)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    print("| rows | AUC | log loss |\n| --- | ---: | ---: |")
    for name, scores in found.items():
        means = [f"{np.mean(v):.4f} ± {np.std(v):.4f}" for v in scores.values()]
        print(f"| {name} | {' | '.join(means)} |")


if __name__ == "__main__":
    main()
