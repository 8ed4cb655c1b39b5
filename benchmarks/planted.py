"""How near to the best possible score? Logistic regression and DLRM on planted clicks.

    python benchmarks/planted.py --rows 100000 300000 1000000

Prints a table and writes it, with the settings, to `benchmarks/results/planted.json`.
Needs the extra `test` (scikit-learn).
"""

import argparse
import json
import os
import pathlib
import tempfile
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import scipy.sparse
import tensorflow as tf
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from pipelines import evaluation, runs
from pipelines.criteo import Parser, read
from pipelines.synthetic import Planted
from pipelines.vocabulary import Vocabulary

RESULTS = pathlib.Path(__file__).parent / "results" / "planted.json"
PENALTIES = (0.005, 0.02, 0.1)  # inverse strength C, chosen on the validation rows


def matrix(path, parser):
    """Dense features, their squares, flags for 0, and one-hot ids: main effects."""
    sizes = np.array(parser.vocabulary.sizes)
    offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    parts, labels = [], []
    for features, label in read(path, parser, 65536):
        dense = features["dense_features"].numpy()
        ids = features["sparse_features"].flat_values.numpy().reshape(-1, 26) + offsets
        one_hot = scipy.sparse.csr_matrix(
            (
                np.ones(ids.size, np.float32),
                ids.reshape(-1).astype(np.int32),
                np.arange(0, ids.size + 1, 26),
            ),
            shape=(len(ids), int(sizes.sum())),
        )
        main = np.hstack([dense, dense**2 / 10, (dense == 0).astype(np.float32)])
        parts.append(scipy.sparse.hstack([scipy.sparse.csr_matrix(main), one_hot]))
        labels.append(label.numpy())
    return scipy.sparse.vstack(parts).tocsr(), np.concatenate(labels)


def logistic_regression(paths, parser):
    """Test AUC and log loss of the best penalty by validation log loss."""
    # 200 iterations are enough: the validation score moves in its fifth digit.
    warnings.simplefilter("ignore", ConvergenceWarning)
    data = {name: matrix(path, parser) for name, path in paths.items()}
    fitted = []
    for c in PENALTIES:
        model = LogisticRegression(C=c, max_iter=200).fit(*data["train"])
        x, y = data["valid"]
        fitted.append((log_loss(y, model.predict_proba(x)[:, 1]), c, model))
    _, c, model = min(fitted, key=lambda each: each[0])
    x, y = data["test"]
    p = model.predict_proba(x)[:, 1]
    return {"auc": roc_auc_score(y, p), "log_loss": log_loss(y, p), "C": c}


def dlrm(paths, folder, seed):
    """Test AUC and log loss of the named run `demo`."""
    run, results = runs.train(
        runs.get("demo"), paths["train"], paths["valid"], folder / f"run-{seed}"
    )
    parser = run.load_parser()
    found = evaluation.evaluate(run.load_model(parser), parser, paths["test"])
    return {
        "auc": found["auc"],
        "log_loss": found["log_loss"],
        "samples_per_second": results["samples_per_second"],
    }


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, nargs="+", default=[100_000])
    arguments.add_argument("--seed", type=int, default=0)
    arguments = arguments.parse_args()
    planted, results = Planted(seed=arguments.seed), []
    largest = max(arguments.rows)
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            paths = {n: folder / f"{n}.tsv" for n in ("train", "valid", "test")}
            planted.write(paths["train"], rows)
            planted.write(paths["valid"], 50_000, first_row=largest)
            best = planted.write(paths["test"], 200_000, first_row=largest + 50_000)
            parser = Parser(Vocabulary.build(paths["train"], min_count=10))
            start = time.perf_counter()
            entry = {
                "rows": rows,
                "logistic_regression": logistic_regression(paths, parser),
                "dlrm": dlrm(paths, folder, arguments.seed),
                "best_possible": {"auc": best.best_auc, "log_loss": best.best_log_loss},
                "seconds": time.perf_counter() - start,
            }
        results.append(entry)
        print(json.dumps(entry), flush=True)
    header = "| rows | logistic regression | DLRM | best possible | DLRM behind |"
    print(f"\nTest AUC:\n\n{header}\n| ---: | ---: | ---: | ---: | ---: |")
    for e in results:
        aucs = [e[k]["auc"] for k in ("logistic_regression", "dlrm", "best_possible")]
        cells = " | ".join(f"{auc:.4f}" for auc in aucs)
        print(f"| {e['rows']:,} | {cells} | {aucs[2] - aucs[1]:.4f} |")
    RESULTS.parent.mkdir(exist_ok=True)
    content = {"tensorflow": tf.__version__, "seed": arguments.seed, "results": results}
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
