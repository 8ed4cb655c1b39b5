"""Is it as good? DLRM by tf_dlrm and by plain PyTorch, trees, logistic regression.

    python benchmarks/quality.py criteo_kaggle_sample.tsv.gz

Trains the same network on the same rows with the recipe of published records (dense
Adam, L2 penalty on whole tables, rates cut on a plateau, best model), and with lazy
Adam. All models train on the first six sevenths of the training rows, with the rest as
validation rows. Prints a table, and writes it to `benchmarks/results/quality.json`.
Needs torch and the extra `test`; LightGBM is left out if it is not installed. The file
is Criteo's, not part of this project.
"""

import argparse
import contextlib
import dataclasses
import gzip
import importlib.util
import io
import json
import math
import os
import pathlib
import tempfile
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction import FeatureHasher
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from pipelines import runs
from pipelines.criteo import Parser, read
from pipelines.synthetic import Planted
from pipelines.vocabulary import Vocabulary

RESULTS = pathlib.Path(__file__).parent / "results" / "quality.json"
SAMPLE_ROWS = 8_000
SAMPLE_TESTS = {
    "Kaggle, rows 8,001 to 10,000": slice(8_000, 10_000),
    "Kaggle, rows 10,110 to 14,017": slice(10_109, None),
}
PLANTED_TEST_ROWS = 20_000
RATE, PENALTY, PATIENCE, MOST_EPOCHS = 1e-3, 1e-5, 2, 20
CONFIG = dataclasses.replace(
    runs.get("demo"),
    optimizer="adam",
    learning_rate=RATE,
    embedding_learning_rate=RATE,
    learning_rate_decay="plateau",
    l2=PENALTY,
    adam_epsilon=1e-8,
    patience=PATIENCE,
    epochs=MOST_EPOCHS,
    batch_size=128,
)
LAZY = dataclasses.replace(CONFIG, l2=0.0)


class Rows:
    """The rows of a file as arrays."""

    def __init__(self, path, parser):
        batches = [*read(path, parser, 1 << 16)]
        self.labels = np.concatenate([label.numpy() for _, label in batches])
        self.dense = np.concatenate([x["dense_features"].numpy() for x, _ in batches])
        ids = [x["sparse_features"].flat_values.numpy() for x, _ in batches]
        self.ids = np.concatenate(ids).reshape(len(self.labels), -1)


def score(labels, probabilities):
    """Returns AUC and log loss of predictions."""
    p = np.clip(np.asarray(probabilities, np.float64), 1e-7, 1 - 1e-7)
    return float(roc_auc_score(labels, p)), float(log_loss(labels, p))


def train_ours(config, files, folder, seed):
    """Returns predictions of a run for the test rows, and the epoch of its model."""
    config = dataclasses.replace(config, seed=seed)
    with contextlib.redirect_stdout(io.StringIO()):
        run, results = runs.train(config, files["train"], files["valid"], folder)
        parser = run.load_parser()
        rows = read(files["test"], parser, 4096).map(lambda x, _: x)
        probabilities = run.load_model(parser).predict(rows, verbose=0)[:, 0]
    return probabilities, results["best"]["epoch"]


class TorchDLRM(torch.nn.Module):
    """The network of `CONFIG`, with the initial values of the paper's code."""

    def __init__(self, num_dense, sizes):
        super().__init__()
        width, count = CONFIG.embedding_dim, len(sizes) + 1
        self.tables = torch.nn.ModuleList(torch.nn.Embedding(n, width) for n in sizes)
        for table in self.tables:
            limit = table.num_embeddings**-0.5
            torch.nn.init.uniform_(table.weight, -limit, limit)
        pairs = count * (count - 1) // 2
        self.bottom = make_mlp([num_dense, *CONFIG.bottom_mlp_dims], True)
        self.top = make_mlp([width + pairs, *CONFIG.top_mlp_dims], False)
        self.rows, self.columns = torch.tril_indices(count, count, offset=-1)

    def forward(self, dense, ids):
        x = self.bottom(dense)
        rows = [table(ids[:, i]) for i, table in enumerate(self.tables)]
        z = torch.stack([x, *rows], 1)
        products = torch.bmm(z, z.transpose(1, 2))[:, self.rows, self.columns]
        return self.top(torch.cat([x, products], 1))[:, 0]


def make_mlp(dims, relu_at_end):
    """Linear layers of these dims with ReLU between."""
    layers = []
    for inputs, outputs in zip(dims, dims[1:]):
        layer = torch.nn.Linear(inputs, outputs)
        torch.nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / (inputs + outputs)))
        torch.nn.init.normal_(layer.bias, 0.0, math.sqrt(1 / outputs))
        layers += [layer, torch.nn.ReLU()]
    return torch.nn.Sequential(*(layers if relu_at_end else layers[:-1]))


def train_torch(rows, sizes, seed):
    """Returns predictions of the recipe in PyTorch, and the best epoch."""
    torch.manual_seed(seed)
    model = TorchDLRM(rows["train"].dense.shape[1], sizes)
    tables = [*model.tables.parameters()]
    mlps = [*model.bottom.parameters(), *model.top.parameters()]
    groups = [{"params": tables, "weight_decay": PENALTY}, {"params": mlps}]
    optimizer = torch.optim.Adam(groups, lr=RATE, eps=1e-8)
    arrays = {
        name: [torch.from_numpy(a) for a in (part.dense, part.ids, part.labels)]
        for name, part in rows.items()
    }
    dense, ids, labels = arrays["train"]
    best, best_epoch, failures, probabilities = -1.0, 0, 0, None
    for epoch in range(1, MOST_EPOCHS + 1):
        for batch in torch.randperm(len(labels)).split(CONFIG.batch_size):
            optimizer.zero_grad()
            logits = model(dense[batch], ids[batch])
            torch.nn.functional.binary_cross_entropy_with_logits(
                logits, labels[batch]
            ).backward()
            optimizer.step()
        with torch.no_grad():
            valid, test = (
                torch.sigmoid(model(*arrays[name][:2])).numpy()
                for name in ("valid", "test")
            )
        auc, _ = score(rows["valid"].labels, valid)
        if auc > best:
            best, best_epoch, failures, probabilities = auc, epoch, 0, test
            continue
        failures += 1
        for group in optimizer.param_groups:
            group["lr"] *= 0.1
        if failures == PATIENCE:
            break
    return probabilities, best_epoch


def train_trees(rows, seed):
    """Returns predictions of LightGBM, and its number of trees."""
    import lightgbm

    columns = {n: np.hstack([part.dense, part.ids]) for n, part in rows.items()}
    num_dense = rows["train"].dense.shape[1]
    model = lightgbm.LGBMClassifier(
        n_estimators=1000,
        learning_rate=0.03,
        num_leaves=15,
        min_child_samples=50,
        cat_smooth=50.0,
        cat_l2=50.0,
        colsample_bytree=0.3,
        subsample=0.8,
        subsample_freq=1,
        random_state=seed,
        n_jobs=2,
        verbose=-1,
    ).fit(
        columns["train"],
        rows["train"].labels,
        eval_set=[(columns["valid"], rows["valid"].labels)],
        eval_metric="auc",
        categorical_feature=[*range(num_dense, columns["train"].shape[1])],
        callbacks=[lightgbm.early_stopping(50, verbose=False)],
    )
    return model.predict_proba(columns["test"])[:, 1], model.best_iteration_


def hashed(path):
    """Rows of a file: hashed values, logarithms of integers, flags for missing ones."""
    rows = []
    for line in pathlib.Path(path).read_text().splitlines():
        fields, row = line.split("\t"), {}
        for i, text in enumerate(fields[1:14]):
            row[f"I{i}"] = math.log1p(max(int(text), 0)) if text else 0.0
            row[f"I{i} missing"] = float(not text)
        row |= {f"C{i}={text}": 1.0 for i, text in enumerate(fields[14:]) if text}
        rows.append(row)
    return FeatureHasher(1 << 18).transform(rows)


def train_regression(files, rows):
    """Returns predictions of a logistic regression, and its penalty C."""
    warnings.simplefilter("ignore", ConvergenceWarning)
    matrices, fitted = {name: hashed(path) for name, path in files.items()}, []
    for penalty in (0.01, 0.03, 0.1, 0.3):
        model = LogisticRegression(C=penalty, max_iter=100)
        model.fit(matrices["train"], rows["train"].labels)
        valid = model.predict_proba(matrices["valid"])[:, 1]
        fitted.append((score(rows["valid"].labels, valid)[1], penalty, model))
    _, penalty, model = min(fitted, key=lambda each: each[0])
    return model.predict_proba(matrices["test"])[:, 1], penalty


def measure(files, tests, folder, seeds):
    """Returns `[AUC, log loss, other]` of each model for each test and seed."""
    vocabulary = Vocabulary.build([files["train"]], CONFIG.min_count)
    parser = Parser(vocabulary)
    rows = {name: Rows(path, parser) for name, path in files.items()}
    results = {name: {} for name in tests}

    def add(model, probabilities, other):
        for name, places in tests.items():
            found = score(rows["test"].labels[places], probabilities[places])
            results[name].setdefault(model, []).append([*found, other])
            print(f"  {name}, {model}: {results[name][model][-1]}", flush=True)

    add("logistic regression", *train_regression(files, rows))
    for seed in seeds:
        for name, config in (("recipe", CONFIG), ("lazy Adam", LAZY)):
            run = train_ours(config, files, folder / f"{name}-{seed}", seed)
            add(f"tf_dlrm, {name}", *run)
        add("torch, recipe", *train_torch(rows, vocabulary.sizes, seed))
        if importlib.util.find_spec("lightgbm"):
            add("LightGBM", *train_trees(rows, seed))
    return results


def split(lines, test, folder):
    """Writes training, validation and test rows as files, and returns their paths."""
    cut = len(lines) * 6 // 7
    parts = {"train": lines[:cut], "valid": lines[cut:], "test": test}
    files = {name: pathlib.Path(folder) / f"{name}.tsv" for name in parts}
    for name, part in parts.items():
        files[name].write_bytes(b"".join(part))
    return files


def planted_lines(num_rows):
    """Returns rows with planted click probabilities, and others to test on."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "rows.tsv"
        with contextlib.redirect_stdout(io.StringIO()):
            Planted(seed=1).write(path, num_rows + PLANTED_TEST_ROWS)
        lines = path.read_bytes().splitlines(keepends=True)
    return lines[:num_rows], lines[num_rows:]


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("sample")
    arguments.add_argument(
        "--planted", type=int, nargs="*", default=[5000, 20000, 80000]
    )
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = arguments.parse_args()
    with gzip.open(options.sample, "rb") as file:
        lines = file.read().splitlines(keepends=True)
    test = lines[SAMPLE_ROWS:]
    tests = {
        name: slice(rows.start - SAMPLE_ROWS, rows.stop and rows.stop - SAMPLE_ROWS)
        for name, rows in SAMPLE_TESTS.items()
    }
    data = [(lines[:SAMPLE_ROWS], test, tests)]
    for num_rows in options.planted:
        data.append((*planted_lines(num_rows), {f"planted, {num_rows:,}": slice(None)}))
    results = {}
    for train, test, tests in data:
        with tempfile.TemporaryDirectory() as folder:
            files = split(train, test, folder)
            results |= measure(files, tests, pathlib.Path(folder), options.seeds)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print_table(results)


def print_table(results):
    """Prints means and deviations of AUC, and means of log loss."""
    models = list(dict.fromkeys(m for scores in results.values() for m in scores))
    print("| rows |", " | ".join(models), "|")
    print("| --- |", " | ".join("---:" for _ in models), "|")
    for name, scores in results.items():
        cells = []
        for model in models:
            if model not in scores:
                cells.append("")
                continue
            aucs, losses, _ = zip(*scores[model], strict=True)
            spread = f" ± {np.std(aucs):.4f}" if len(aucs) > 1 else ""
            cells.append(f"{np.mean(aucs):.4f}{spread} / {np.mean(losses):.4f}")
        print(f"| {name} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
