"""Logs of many layouts through every command, guessed schema to scores.

The rows are generated with a planted signal. A run's scores equal those of its export,
in other ways of asking, too.
"""

import csv
import json

import numpy as np
import pytest
import tensorflow as tf
from helpers import generated_logs

from pipelines import Schema, cli
from pipelines.runs.folder import RunFolder

SMALL = [
    "--bottom-mlp-dims", "16", "4", "--top-mlp-dims", "8", "1", "--embedding-dim", "4",
    "--batch-size", "128", "--epochs", "2", "--interaction", "cat",
]  # fmt: skip


def run(*words):
    assert cli.main([str(word) for word in words]) == 0


def scores_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=list(generated_logs.LAYOUTS))
def log(request, tmp_path_factory):
    """Folder, training and validation files, with a guessed schema and a run."""
    name = request.param
    folder = tmp_path_factory.mktemp(name.replace(" ", "_"))
    num_rows = 300 if name == "wide" else 1500
    writer, schema = generated_logs.LAYOUTS[name]
    train = writer(folder / "train", num_rows, 1)
    valid = writer(folder / "valid", num_rows // 2, 2)
    run("schema", "--input", *train, "--out", folder / "guess.json")
    guess = Schema.load(folder / "guess.json")
    assert guess.label.column == schema.label.column
    run(
        *("train", "--schema", folder / "guess.json", "--train", *train),
        *("--valid", *valid, "--out", folder / "run", "--min-count", "2", *SMALL),
    )
    return folder, train, valid, guess


@pytest.mark.integration
def test_training_learns_and_evaluates(log):
    folder, _, valid, schema = log
    feature = schema.sparse_features[0]
    run("evaluate", "--model", folder / "run", "--input", *valid, "--slices", feature)
    metrics = json.loads((folder / "run" / "evaluation.json").read_text())
    assert metrics["num_bad_rows"] == 0
    # 300 rows are too few to learn 2,000 columns from.
    assert metrics["auc"] > 0.52 or len(schema.dense) > 1000
    with open(folder / "run" / "evaluation_slices.csv") as file:
        rows = [int(line["num_rows"]) for line in csv.DictReader(file)]
    assert sum(rows) >= metrics["num_rows"]
    if isinstance(schema.group, str):
        run(
            *("evaluate", "--model", folder / "run", "--input", *valid),
            *("--group", schema.group, "--output", folder / "grouped.json"),
        )
        assert "gauc_by" in json.loads((folder / "grouped.json").read_text())


@pytest.mark.integration
@pytest.mark.parametrize("log", ["criteo", "parquet", "weighted_bags"], indirect=True)
def test_importance_and_tables(log):
    folder, _, valid, schema = log
    names = [*schema.dense_features[:2], *schema.sparse_features]
    out = folder / "importance"
    run(
        *("importance", "--model", folder / "run", "--input", *valid, "--out", out),
        *("--features", *names, "--groups", f"all={','.join(names)}", "--repeats", 1),
    )
    found = json.loads((out / "importance.json").read_text())
    assert {entry["name"] for entry in found["features"]} == set(names)
    losses = [entry["log_loss_increase"] for entry in found["features"]]
    assert np.ptp(losses) > 0 and found["groups"][0]["log_loss_increase"] != 0
    run("tables", "--model", folder / "run", "--out", out)
    found = json.loads((out / "tables.json").read_text())["tables"]
    assert {table["name"] for table in found} == set(schema.tables)
    assert any(table["dead_rows"] < table["num_rows"] for table in found)


@pytest.mark.integration
def test_exports_score_as_the_run_does(log):
    folder, _, valid, _ = log
    run("export", "--model", folder / "run", "--output", folder / "saved")
    outputs = []
    for model in ("run", "saved"):
        output = folder / f"{model}.csv"
        run("predict", "--model", folder / model, "--input", *valid, "--output", output)
        outputs.append(scores_of(output))
    assert outputs[0] == outputs[1]
    found = np.array([float(row["probability"]) for row in outputs[0]])
    assert len(found) >= 150 and np.ptp(found) > 0
    # The parser's lines and messages, through the loaded model.
    parser = RunFolder(folder / "run").load_parser()
    lines = parser.sample_lines(8)
    loaded = tf.saved_model.load(str(folder / "saved" / "1"))
    name = parser.lines_signature
    of_lines = loaded.signatures[name](lines=tf.constant(lines))["probabilities"]
    examples = tf.constant(parser.to_examples(lines))
    signature = loaded.signatures["serving_examples"]
    of_examples = signature(examples=examples)["probabilities"]
    np.testing.assert_array_equal(of_lines, of_examples)


@pytest.mark.integration
def test_records_hold_the_rows_of_the_files(log):
    folder, train, valid, _ = log
    records = folder / "records"
    run(
        *("prepare", "--schema", folder / "guess.json", "--input", *train),
        *("--valid", *valid, "--out", records, "--min-count", "2"),
    )
    prepared = (records / "vocabulary.tsv").read_bytes()
    assert prepared == (folder / "run" / "vocabulary.tsv").read_bytes()
    of_records, of_files = folder / "of_records.json", folder / "of_files.json"
    model = ("evaluate", "--model", folder / "run")
    run(*model, "--input", records, "--split", "valid", "--output", of_records)
    run(*model, "--input", *valid, "--output", of_files)
    first, second = (json.loads(path.read_text()) for path in (of_records, of_files))
    for metric in ("auc", "log_loss", "num_rows"):
        assert first[metric] == pytest.approx(second[metric], rel=1e-6)
