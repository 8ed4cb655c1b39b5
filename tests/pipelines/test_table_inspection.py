"""`pipelines.evaluation.inspect_tables`: against NumPy's SVD and by hand."""

import json

import numpy as np
import pytest

import tf_dlrm
from pipelines import cli
from pipelines.evaluation import inspect_tables, table_inspection, table_report
from pipelines.schema import Schema
from pipelines.synthetic import SchemaLog
from pipelines.vocabulary import HashVocabulary, Vocabulary
from tf_dlrm import EmbeddingTable, FeatureSpec

SCHEMA = Schema("click", sparse=["item", "shop"])


def make_model(sizes=(500, 60), width=8, initializer=None, trainable=True):
    tables = [
        EmbeddingTable(name, size, width, initializer=initializer, trainable=trainable)
        for name, size in zip(("item", "shop"), sizes)
    ]
    model = tf_dlrm.DLRM(FeatureSpec((), tables), None, (4, 1))
    model.compile("adagrad")
    return model


def set_rows(model, name, rows, values):
    table = model.embedding.get_table(name)
    table[rows] = values
    model.embedding.set_table(name, table)


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of few rows, as large tables have them."""
    monkeypatch.setattr("tf_dlrm.runtime.rows._BLOCK_VALUES", 8 * 64)
    monkeypatch.setattr(table_inspection, "_BLOCK_VALUES", 8 * 64)


def test_ranks_and_norms_equal_those_of_numpy(small_blocks):
    model = make_model()
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 8)) @ np.diag([9, 5, 3, 2, 1, 0.5, 0.1, 0.01])
    set_rows(model, "item", np.arange(500), rows)
    report = inspect_tables(model)[0]
    rows = model.embedding.get_table("item").astype(np.float64)
    values = np.linalg.svd(rows, compute_uv=False)
    expected = (values**2).sum() / values[0] ** 2
    assert report.stable_rank == pytest.approx(expected, rel=1e-9)
    expected = values.sum() / values[0]
    assert report.information_abundance == pytest.approx(expected, rel=1e-6)
    shares = np.cumsum(values**2) / (values**2).sum()
    assert report.energy == pytest.approx(shares, rel=1e-9)
    norms = np.quantile(np.linalg.norm(rows, axis=1), (0.05, 0.5, 0.95))
    assert report.norms == pytest.approx(norms, rel=1e-6)
    assert (report.row_bytes, report.slot_bytes) == (500 * 8 * 4, 500 * 8 * 4)
    assert report.dead_rows == 0


def test_dead_rows_have_their_initial_values(small_blocks):
    model = make_model()
    assert [r.dead_rows for r in inspect_tables(model)] == [500, 60]
    report = inspect_tables(model)[1]
    assert report.norms is report.stable_rank is report.energy is None
    assert report.sampled_rows == report.near_duplicates == 0
    # One batch trains three rows of a table, and one of the other.
    ids = np.array([[3, 9], [499, 9], [3, 9], [70, 9]])
    model.fit({"sparse_features": ids}, np.array([1, 0, 1, 1]), verbose=0)
    item, shop = inspect_tables(model)
    assert (item.dead_rows, item.dead_by) == (497, "initial values")
    assert shop.dead_rows == 59
    norms = np.linalg.norm(model.embedding.get_table("item")[[3, 70, 499]], axis=1)
    assert item.norms[1] == pytest.approx(np.median(norms), rel=1e-6)


def test_initial_values_are_those_of_a_saved_model(tmp_path):
    model = make_model()
    ids = np.array([[3, 9], [4, 9]])
    model.fit({"sparse_features": ids}, np.array([1, 0]), verbose=0)
    model.save(tmp_path / "m.keras")
    import keras

    loaded = keras.saving.load_model(tmp_path / "m.keras")
    assert [r.dead_rows for r in inspect_tables(loaded)] == [498, 59]
    blocks = list(make_model(initializer="zeros").embedding.initial_rows("item"))
    assert blocks == []
    with pytest.raises(ValueError, match="no table 'x'"):
        list(model.embedding.initial_rows("x"))


def make_vocabulary(counts, min_count=1):
    values = [[b"%d" % n for n in range(len(column))] for column in counts]
    return Vocabulary(values, counts, min_count=min_count, schema=SCHEMA)


def test_counts_say_what_initial_values_cannot():
    counts = [[100] * 49 + [5] * 50 + [0] * 400, [7] * 59]
    model = make_model(initializer="glorot_uniform")
    item, shop = inspect_tables(model, make_vocabulary(counts))
    assert (item.dead_rows, item.dead_by) == (400, "counts")
    assert (item.rare_rows, shop.rare_rows) == (450, 59)
    unknown = [[0] * 499, [0] * 59]
    for vocabulary in (None, make_vocabulary(unknown), HashVocabulary(10, SCHEMA)):
        item, _ = inspect_tables(model, vocabulary)
        assert item.dead_rows is item.dead_by is item.rare_rows is None
    (report, _) = inspect_tables(make_model(trainable=False))
    assert report.dead_rows is None  # frozen rows keep their values by design
    text = "\n".join(table_report.lines([report]))
    assert "Dead rows are unknown" in text


def test_near_duplicates_are_counted_on_a_sample():
    model = make_model(sizes=(500, 60))
    rng = np.random.default_rng(0)
    different = rng.normal(size=(100, 8))
    copies = np.repeat(different, 5, axis=0)
    copies *= 1 + 0.001 * rng.normal(size=(500, 1))
    set_rows(model, "item", np.arange(500), copies)
    set_rows(model, "shop", np.arange(60), rng.normal(size=(60, 8)))
    item, shop = inspect_tables(model)
    assert (item.sampled_rows, item.near_duplicates) == (500, 400)
    assert (shop.sampled_rows, shop.near_duplicates) == (60, 0)
    item, _ = inspect_tables(model, sample_rows=100)
    assert item.sampled_rows == 100 and 0 < item.near_duplicates < 80
    again, _ = inspect_tables(model, sample_rows=100)
    assert again == item


def test_advice_says_the_bytes_that_it_saves(monkeypatch):
    monkeypatch.setattr(table_report, "_LEAST_BYTES", 1000)
    model = make_model(sizes=(1000, 1000))
    rng = np.random.default_rng(0)
    # Two directions of the same size: a stable rank of two.
    flat = rng.normal(size=(1000, 2)) @ np.linalg.qr(rng.normal(size=(8, 2)))[0].T
    set_rows(model, "item", np.arange(1000), flat)
    set_rows(model, "shop", np.arange(1000), rng.normal(size=(1000, 8)))
    counts = [[100] * 999, [100] * 599 + [30] * 100 + [8] * 300]
    item, shop = inspect_tables(model, make_vocabulary(counts, min_count=5))
    (advice,) = item.advice
    assert advice.text.startswith("width 8, but stable rank")
    assert "`embedding_dim` 2 for this table" in advice.text
    assert advice.saved_bytes == 1000 * 8 * 4 * 2 * 6 // 8  # rows and accumulators
    (advice,) = shop.advice
    assert advice.text == "300 values occur fewer than 10 times: `min_count` 10"
    assert advice.saved_bytes == 300 * 8 * 4 * 2
    # Where hashing numbers the values, rows that nothing reads are spare buckets.
    dead = make_model(sizes=(1000, 1000))
    set_rows(dead, "shop", np.arange(600), rng.normal(size=(600, 8)))
    _, shop = inspect_tables(dead)
    (advice,) = shop.advice
    assert advice.text.startswith("400 rows were never trained")
    assert advice.saved_bytes == 400 * 8 * 4 * 2
    lines = list(table_report.lines(inspect_tables(dead)))
    assert any(
        line.startswith("- shop: 400 rows") and line.endswith("saves 25.6 kB")
        for line in lines
    )
    monkeypatch.undo()  # 25.6 kB are not worth a line
    reports = inspect_tables(dead)
    assert not reports[1].advice
    expected = "No advice: no change would save 1.0 MB or more."
    assert list(table_report.lines(reports))[-1] == expected
    assert table_report.least_saving(10**9) == 10**7


def test_a_model_without_waste_gets_no_advice():
    model = make_model()
    rng = np.random.default_rng(0)
    for name, size in (("item", 500), ("shop", 60)):
        set_rows(model, name, np.arange(size), rng.normal(size=(size, 8)))
    reports = inspect_tables(model)
    assert all(report.advice == () for report in reports)
    assert list(table_report.lines(reports))[-1].startswith("No advice")
    json.dumps([report.describe() for report in reports], allow_nan=False)


@pytest.mark.parametrize("sample_rows", [1, 10**6])
def test_a_sample_has_from_two_rows_to_a_bound(sample_rows):
    with pytest.raises(ValueError, match="`sample_rows` must be from 2 to 20,000"):
        inspect_tables(make_model(), sample_rows=sample_rows)


def test_slot_bytes_of_some_tables_add_up_to_all():
    model = make_model()
    each = [model.embedding.slot_bytes([name]) for name in ("item", "shop")]
    assert each == [500 * 8 * 4, 60 * 8 * 4]
    assert sum(each) == model.embedding.slot_bytes()


@pytest.mark.integration
def test_tables_of_a_run(tmp_path, capsys):
    SCHEMA.save(tmp_path / "log.json")
    SchemaLog(SCHEMA, num_values=500).write(tmp_path / "train.csv", 4000)
    command = ["train", "--train", tmp_path / "train.csv", "--out", tmp_path / "run"]
    command += ["--schema", tmp_path / "log.json", "--min-count", "2"]
    command += ["--bottom-mlp-dims", "8", "4", "--top-mlp-dims", "8", "1"]
    command += ["--embedding-dim", "4"]
    command += ["--jit-compile", "off"]
    assert cli.main([str(word) for word in command]) == 0
    command = ["tables", "--model", str(tmp_path / "run")]
    assert cli.main([*command, "--dry-run"]) == 0
    assert not (tmp_path / "run" / "tables.json").exists()
    capsys.readouterr()
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    facts = json.loads((tmp_path / "run" / "tables.json").read_text())
    assert [table["name"] for table in facts["tables"]] == ["item", "shop"]
    for table in facts["tables"]:
        assert f"\n{table['name']}" in printed
        assert table["rare_rows"] > 0
        assert table["dead_rows"] < table["num_rows"] / 2
    assert cli.main([*command, "--sample-rows", "1"]) == 2
    error = capsys.readouterr().err
    assert "--sample-rows must be from 2" in error and error.count("\n") == 1
