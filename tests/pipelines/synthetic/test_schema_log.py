"""Logs with the columns of any schema: valid rows, known probabilities, a signal."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import log_loss, roc_auc_score

import pipelines
from pipelines import cli
from pipelines.schema import Dense, Label, Parquet, Schema, Sparse, Text, layouts
from pipelines.synthetic import SchemaLog

SCHEMAS = {
    "csv": Schema("click", ["price"], ["country", "item"]),
    "labels": Schema(Label("y", ("yes",), ("no",)), (), ["a", "b"]),
    "any other label": Schema(Label("y", ("1",), None), (), ["a"]),
    "threshold": Schema(Label("rating", threshold=4), (), ["user", "movie"]),
    "soft": Schema(Label("p", soft=True), ["x"], ["a"]),
    "bags": Schema(
        "click",
        [Dense("n", integer=True)],
        [
            "item",
            Sparse("seen", separator="|", weight_separator=":", table="item"),
            Sparse("tags", separator=" ", max_values=2),
            Sparse("n", name="bucket", buckets="log2"),
            Sparse("big", hash_buckets=100),
        ],
        weight="w",
        time="t",
        group="user",
    ),
    "tabs, no header": Schema(
        "click",
        ["x"],
        ["v"],
        format=Text("\t", header=False, columns=("v", "unread", "x", "click")),
    ),
    "positions": Schema(
        0,
        Dense(2, name="x"),
        [Sparse(1, name="a"), Sparse(4, name="b")],
        format=Text(";", header=False),
    ),
    "marks": Schema("c", ["x"], ["v", "w"], format=Text("|", missing=("NULL", "-"))),
    "quoted": Schema(
        "c", ["x"], [Sparse("v", separator=",")], format=Text(",", quoted=True)
    ),
    "values like separators": Schema("c", (), [Sparse("s", separator="v"), "u"]),
    "parquet": Schema(
        "click", ["x"], ["v", Sparse("b", separator=",")], format=Parquet()
    ),
}


@pytest.mark.parametrize("name", [*SCHEMAS, *layouts.NAMES])
def test_all_rows_are_valid_and_the_scores_are_true(name, tmp_path):
    schema = SCHEMAS.get(name) or layouts.get(name)
    is_parquet = isinstance(schema.format, Parquet)
    path = tmp_path / ("log.parquet" if is_parquet else "log.csv.gz")
    log = SchemaLog(schema, seed=1, click_rate=0.3, num_values=50)
    report = log.write(path, 5000, probabilities_path=tmp_path / "p.npy")
    vocabulary = pipelines.Vocabulary.build(str(path), schema=schema)
    parser = pipelines.Parser(vocabulary)
    batches = pipelines.read(str(path), parser, batch_size=5000)
    labels = np.concatenate([batch[1].numpy().ravel() for batch in batches])
    probabilities = np.load(tmp_path / "p.npy")
    assert len(labels) == 5000 and set(labels) == {0.0, 1.0}
    assert abs(probabilities.mean() - 0.3) < 0.03
    assert report.best_auc == pytest.approx(
        roc_auc_score(labels, probabilities), abs=1e-4
    )
    assert report.best_log_loss == pytest.approx(log_loss(labels, probabilities))
    assert report.best_auc > 0.6
    assert all(size <= 2 + 50 or size == 100 for size in vocabulary.sizes)


def test_a_row_depends_on_its_number_only(tmp_path):
    log = SchemaLog(SCHEMAS["bags"], seed=3)
    whole, parts = tmp_path / "whole.csv", []
    log.write(whole, 40_000)
    for first, count in ((0, 10_000), (10_000, 30_000)):
        path = tmp_path / f"{first}.csv"
        log.write(path, count, first)
        parts += path.read_text().splitlines()[1:]
    assert whole.read_text().splitlines()[1:] == parts
    other = tmp_path / "other.csv"
    SchemaLog(SCHEMAS["bags"], seed=4).write(other, 100)
    assert other.read_text() != whole.read_text()[: len(other.read_text())]


def test_cells_are_as_the_schema_says(tmp_path):
    path = tmp_path / "log.csv"
    SchemaLog(SCHEMAS["bags"]).write(path, 3000)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == list(SCHEMAS["bags"].columns)
    bags = [row["seen"].split("|") for row in rows if row["seen"]]
    assert {len(bag) for bag in bags} == {1, 2, 3, 4, 5}
    assert all(float(value.split(":")[1]) > 0 for bag in bags for value in bag)
    assert max(len(row["tags"].split(" ")) for row in rows) == 2
    assert all(row["n"] == "" or row["n"].isdigit() for row in rows)
    assert 0.07 < np.mean([row["n"] == "" for row in rows]) < 0.13
    times = [float(row["t"]) for row in rows]
    assert times == sorted(times)
    marks = tmp_path / "marks.csv"
    SchemaLog(SCHEMAS["marks"]).write(marks, 300)
    assert "|NULL" in marks.read_text() and "||" not in marks.read_text()
    table = tmp_path / "log.parquet"
    SchemaLog(SCHEMAS["parquet"]).write(table, 300)
    assert pq.read_table(table).column("x").null_count > 0


def test_frequent_values_have_effects(tmp_path):
    """The click rate of the rows of a value differs from that of the others."""
    path = tmp_path / "log.csv"
    SchemaLog(SCHEMAS["csv"], num_values=5).write(path, 20_000)
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    rates = [
        np.mean([row["click"] == "1" for row in rows if row["item"] == f"v{n}"])
        for n in range(5)
    ]
    assert max(rates) - min(rates) > 0.1


def test_wrong_arguments():
    digits = Text(";", missing=("v", "x", "k"))
    with pytest.raises(ValueError, match="No generated value is free of"):
        SchemaLog(Schema("c", (), [Sparse("s", separator="1")], format=digits))
    with pytest.raises(
        ValueError, match="`num_values` must be an integer of at least 2"
    ):
        SchemaLog(SCHEMAS["csv"], num_values=1)
    with pytest.raises(ValueError, match="written in the schema's format"):
        SchemaLog(SCHEMAS["csv"]).write_binary("folder", 10)


def test_the_command_writes_a_log_of_a_schema(tmp_path, capsys):
    SCHEMAS["csv"].save(tmp_path / "clicks.json")
    command = ["generate", "--schema", str(tmp_path / "clicks.json"), "--rows", "500"]
    path = tmp_path / "a.csv"
    assert cli.main([*command, "--output", str(path)]) == 0
    assert "500 rows" in capsys.readouterr().out
    assert path.read_text().startswith("click,price,country,item\n")
    assert json.loads((tmp_path / "a.csv.json").read_text())["num_rows"] == 500
    for options, message in {
        ("--source", "random"): "--schema has no effect with --source random",
        ("--format", "binary"): "run `tf-dlrm prepare` on them",
        ("--vocabulary-sizes", "5"): "--vocabulary-sizes has no effect with --schema",
        ("--schema", "nothing.json"): "There is no schema file 'nothing.json'",
    }.items():
        arguments = [*command, "--output", str(tmp_path / "b.csv"), *options]
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err


def test_criteo_is_what_the_command_writes_without_a_schema(tmp_path):
    for name, options in {"a": [], "b": ["--schema", "criteo"]}.items():
        path = str(tmp_path / name)
        assert cli.main(["generate", "--output", path, "--rows", "99", *options]) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
