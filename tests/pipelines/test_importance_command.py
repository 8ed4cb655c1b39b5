"""`tf-dlrm importance`: files and messages."""

import csv
import json

import pytest
from helpers.run_folders import size_of

import pipelines
from pipelines import cli
from pipelines.schema import Dense, Sparse
from pipelines.synthetic import SchemaLog


def run(*words, code=0):
    assert cli.main([str(word) for word in words]) == code


SMALL = [
    "--bottom-mlp-dims", "8", "4", "--top-mlp-dims", "8", "1", "--embedding-dim", "4",
    "--batch-size", "256", "--learning-rate", "0.05", "--jit-compile", "off",
    "--initial-accumulator-value", "1e-6",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    schema = pipelines.Schema(
        "click", Dense("price", "log1p"), ["item", Sparse("tags", separator="|")]
    )
    log = SchemaLog(schema, num_values=200)
    schema.save(folder / "log.json")
    log.write(folder / "train.csv", 4000)
    log.write(folder / "valid.csv", 2000, 4000)
    options = ["--schema", folder / "log.json", "--min-count", "2", *SMALL]
    run("train", "--train", folder / "train.csv", "--out", folder / "run", *options)
    return folder


@pytest.mark.integration
def test_importance_of_a_run(trained, tmp_path, capsys):
    command = ["importance", "--model", trained / "run", "--repeats", "2"]
    command += ["--groups", "both=item,tags"]
    valid = trained / "valid.csv"
    run(*command, "--input", valid, "--dry-run")
    printed = capsys.readouterr().out
    assert "2 times for each of 3 features and 1 groups" in printed
    assert not (trained / "run" / "importance.json").exists()
    run(*command, "--input", valid)
    printed = capsys.readouterr().out
    facts = json.loads((trained / "run" / "importance.json").read_text())
    assert facts["num_rows"] == 2000 and facts["repeats"] == 2 and facts["seed"] == 0
    assert {f["name"] for f in facts["features"]} == {"price", "item", "tags"}
    assert facts["groups"][0]["features"] == ["item", "tags"]
    for entry in facts["features"]:
        assert f"\n{entry['name']}" in printed
        assert f"{entry['log_loss_increase']:+.5f}" in printed
    with open(trained / "run" / "importance.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["name"] for line in lines[:3]] == [
        f["name"] for f in facts["features"]
    ]
    assert float(lines[0]["auc_decrease"]) == facts["features"][0]["auc_decrease"]
    assert size_of(trained / "run" / "importance.png")[0] > 1000
    # The same rows as records give the same numbers, as do those of another folder.
    vocabulary = ["--vocabulary", trained / "run" / "vocabulary.tsv"]
    vocabulary += ["--schema", trained / "log.json"]
    run("prepare", "--input", valid, "--out", tmp_path / "records", *vocabulary)
    out = tmp_path / "results"
    run(*command, "--input", tmp_path / "records", "--split", "train", "--out", out)
    records = json.loads((out / "importance.json").read_text())
    assert records["features"] == facts["features"]
    assert records["log_loss"] == facts["log_loss"]


@pytest.mark.integration
@pytest.mark.parametrize(
    "options, message",
    [
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--features", "pric"], "--features must name features of the model"),
        (["--groups", "item,tags"], "--groups must have the form NAME=FEATURE"),
        (["--groups", "a=item,tag"], "Group 'a' in --groups must contain features"),
        (["--groups", "a=item", "a=tags"], "--groups names a group twice: a"),
        (["--rows", "1"], "--rows must be at least 2"),
    ],
)
def test_mistakes_are_one_line(trained, capsys, options, message):
    capsys.readouterr()
    command = ["importance", "--model", trained / "run", "--input"]
    run(*command, trained / "valid.csv", *options, code=2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
