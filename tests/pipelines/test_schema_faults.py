"""What broke when others tried logs of their own, by kind."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss

from pipelines import Dense, Label, Quarantine, Schema, Sparse, Text, cli
from pipelines.formats.scanning import scan
from pipelines.vocabulary import Vocabulary

SMALL = [
    "--bottom-mlp-dims", "8", "4", "--top-mlp-dims", "8", "1", "--embedding-dim", "4",
    "--batch-size", "64", "--epochs", "2", "--jit-compile", "off", "--min-count", "1",
]  # fmt: skip


def run(*words, code=0):
    assert cli.main([str(word) for word in words]) == code


def rows_of(path, schema):
    quarantine = Quarantine(max_bad_share=1)
    return [block.rows for block in scan([str(path)], quarantine, schema)]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_bad_cell_leaves_the_other_columns_in_line(tmp_path, kind):
    """Categories before a bad one in the same row are left out with it."""
    bad = ["x\ny" if i % 10 == 3 else f"b{i % 5}" for i in range(100)]
    frame = pd.DataFrame({
        "click": [0, 1] * 50, "a": [f"a{i % 10}" for i in range(100)], "b": bad,
    })  # fmt: skip
    schema = Schema("click", sparse=["a", "b"], format=Text(quoted=True))
    path = tmp_path / f"log.{kind}"
    getattr(frame, f"to_{kind}")(path, index=False)
    (rows,) = rows_of(path, schema)
    assert len(rows.bad) == 10
    assert [len(values.codes) for values in rows.values] == [90, 90]
    quarantine = Quarantine(max_bad_share=1)
    vocabulary = Vocabulary.build(path, 1, quarantine=quarantine, schema=schema)
    assert vocabulary.sizes == [10, 6]  # a3 is in bad rows alone


def test_weighted_bags_stay_in_line(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("click,a,b\n0,a1:1,b1:1\n1,a2:1,b2:zzz\n1,a3:1,b3:1\n")
    bag = {"separator": "|", "weight_separator": ":"}
    schema = Schema("click", sparse=[Sparse("a", **bag), Sparse("b", **bag)])
    (rows,) = rows_of(path, schema)
    assert [len(values.codes) for values in rows.values] == [2, 2]


def test_marks_of_missing_numbers_hold_in_tables(tmp_path):
    frame = pd.DataFrame(
        {"click": [0, 1, 0, 1], "x": [-1, 2, -1, 5], "c": list("abab")}
    )
    frame["y"] = frame["x"].astype(float)
    schema = Schema(
        "click",
        [Dense("x", missing=100.0), Dense("y", missing=7.0)],
        ["c"],
        format=Text(missing=("", "-1", "-1.0")),
    )
    frame.to_csv(tmp_path / "log.csv", index=False)
    frame.to_parquet(tmp_path / "log.parquet", index=False)
    for name in ("log.csv", "log.parquet"):
        (rows,) = rows_of(tmp_path / name, schema)
        for column in rows.numbers:
            assert np.isnan(column).tolist() == [True, False, True, False], name


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    """A log with sample weights, its schema, and a run on it."""
    folder = tmp_path_factory.mktemp("weighted")
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({
        "click": rng.integers(0, 2, 600), "x": rng.normal(size=600).round(3),
        "c": rng.integers(0, 9, 600), "w": rng.integers(0, 5, 600),
    })  # fmt: skip
    frame.to_csv(folder / "log.csv", index=False)
    schema = Schema("click", ["x"], ["c"], weight="w")
    schema.save(folder / "s.json")
    run(
        *("train", "--schema", folder / "s.json", "--train", folder / "log.csv"),
        *("--out", folder / "run", *SMALL),
    )
    return folder, frame


@pytest.mark.integration
def test_weights_weigh_in_metrics(weighted):
    folder, frame = weighted
    model = ("--model", folder / "run")
    run("predict", *model, "--input", folder / "log.csv", "--output", folder / "p.csv")
    scores = pd.read_csv(folder / "p.csv")["probability"]
    truth = log_loss(frame["click"], scores, sample_weight=frame["w"])
    assert abs(truth - log_loss(frame["click"], scores)) > 1e-4
    for more in ([], ["--slices", "c"]):
        run("evaluate", *model, "--input", folder / "log.csv", *more)
        metrics = json.loads((folder / "run" / "evaluation.json").read_text())
        assert metrics["log_loss"] == pytest.approx(truth, abs=1e-5)


@pytest.mark.integration
def test_a_warm_start_reads_the_files_of_the_run_before(weighted, tmp_path, capsys):
    folder, _ = weighted
    run(
        *("train", "--train", folder / "log.csv", "--out", tmp_path / "next"),
        *("--warm-start", folder / "run"),
    )
    assert Schema.load(tmp_path / "next" / "schema.json").weight == "w"


@pytest.mark.integration
def test_one_category_alone_is_learned(tmp_path):
    rng = np.random.default_rng(1)
    items = rng.integers(0, 20, 3000)
    clicks = rng.random(3000) < np.where(items % 2, 0.8, 0.2)
    frame = pd.DataFrame({"click": clicks.astype(int), "item": items})
    frame.to_csv(tmp_path / "log.csv", index=False)
    Schema("click", sparse=["item"]).save(tmp_path / "s.json")
    common = ["train", "--schema", tmp_path / "s.json", "--train", tmp_path / "log.csv"]
    run(*common, "--out", tmp_path / "run", *SMALL)
    log = tmp_path / "log.csv"
    run("evaluate", "--model", tmp_path / "run", "--input", log)
    metrics = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert metrics["auc"] > 0.75
    dot = ("--interaction", "dot")
    run(*common, "--out", tmp_path / "dot", *SMALL, *dot, code=2)


@pytest.mark.integration
def test_soft_labels_have_no_accuracy_and_no_slices(tmp_path, capsys):
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"p": rng.random(400).round(3), "c": rng.integers(0, 5, 400)})
    frame.to_csv(tmp_path / "log.csv", index=False)
    Schema(Label("p", soft=True), sparse=["c"]).save(tmp_path / "s.json")
    log = tmp_path / "log.csv"
    run(
        *("train", "--schema", tmp_path / "s.json", "--train", log),
        *("--out", tmp_path / "run", *SMALL),
    )
    assert "accuracy" not in capsys.readouterr().out
    model = ("evaluate", "--model", tmp_path / "run", "--input", log)
    run(*model, "--slices", "c", code=2)
    assert "soft labels" in capsys.readouterr().err


def test_splits_by_time_that_stay_empty_are_an_error(tmp_path, capsys):
    frame = pd.DataFrame({
        "click": [0, 1] * 350, "c": list("abcdefg") * 100,
        "day": [f"2026-01-0{1 + i // 100}" for i in range(700)],
    })  # fmt: skip
    frame.to_csv(tmp_path / "log.csv", index=False)
    Schema("click", sparse=["c"], time="day").save(tmp_path / "s.json")
    common = [
        *("prepare", "--schema", tmp_path / "s.json", "--input", tmp_path / "log.csv"),
        *("--min-count", "1"),
    ]
    run(*common, "--out", tmp_path / "a", "--valid-share", "0.1", code=2)
    assert "No rows are left for the split 'valid'" in capsys.readouterr().err
    run(*common, "--out", tmp_path / "b", "--valid-share", "0.15")
    assert "train 600, valid 100" in capsys.readouterr().out


def test_separators_that_are_the_delimiter_are_refused():
    with pytest.raises(ValueError, match="'t' has the format's delimiter"):
        Schema("y", sparse=[Sparse("t", separator="|")], format=Text("|"))


def test_names_of_folders_are_decoded(tmp_path):
    for name in ("country=a%20b", "country=__HIVE_DEFAULT_PARTITION__"):
        folder = tmp_path / name
        folder.mkdir()
        pd.DataFrame({"click": [0, 1]}).to_parquet(folder / "part-0.parquet")
        (rows,) = rows_of(
            folder / "part-0.parquet", Schema("click", sparse=["country"])
        )
        values = [int(key) for key in rows.values[0].keys]
        expected = b"" if "HIVE" in name else b"a b"
        assert values == [int.from_bytes(expected.ljust(8, b"\0"), "big")]
