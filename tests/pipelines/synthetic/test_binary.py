"""Generated rows as records: what NumPy finds in the files is what was generated."""

import json

import numpy as np
import pytest
from helpers.planted_rows import collect

from pipelines.records import Manifest
from pipelines.synthetic import Planted, Random, Trace, profile


def read(folder):
    """The arrays of the shards, joined: `{part: array}`."""
    shards = Manifest.load(folder).shards_of("train")
    return {
        part: np.concatenate([np.load(shard.path(folder, part)) for shard in shards])
        for part in shards[0].files
    }


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "varying"])
def test_records_of_random_bags(tmp_path, fixed):
    source = Random(
        vocabulary_sizes=(9, 70_000), num_dense=3, hotness=(2, 5), fixed_hotness=fixed
    )
    report = source.write_binary(tmp_path / "r", 1000, 16_000, rows_per_shard=300)
    found, block = read(tmp_path / "r"), collect(source, 1000, 16_000)
    assert set(found) == {"labels", "dense", "sparse", "lengths"}
    for part, array in zip(("labels", "dense", "sparse", "lengths"), block):
        np.testing.assert_array_equal(found[part], array, err_msg=part)
    manifest = Manifest.load(tmp_path / "r")
    assert [shard.num_rows for shard in manifest.shards] == [300, 300, 300, 100]
    assert manifest.schema.dense == ("I1", "I2", "I3")
    assert manifest.schema.sparse == ("C1", "C2")
    assert manifest.schema.vocabulary_sizes == (9, 70_000)
    assert report.num_rows == 1000 and report.first_row == 16_000
    assert report.click_rate == block.labels.mean()


def test_one_hot_records_have_no_lengths(tmp_path):
    source = Random(num_dense=1, vocabulary_sizes=(50, 6))
    source.write_binary(tmp_path / "r", 500)
    found, block = read(tmp_path / "r"), collect(source, 500)
    assert set(found) == {"labels", "dense", "sparse"}
    np.testing.assert_array_equal(found["sparse"], block.ids.reshape(500, 2))


def test_records_of_a_trace(tmp_path):
    ids = np.random.default_rng(0).zipf(1.3, (3000, 2)) % 800
    measured = profile(ids, names=["user", "item"], vocabulary_sizes=(800, 900))
    trace = Trace(measured, seed=np.int64(3), num_dense=0)
    trace.write_binary(tmp_path / "r", 3000)
    found = read(tmp_path / "r")
    np.testing.assert_array_equal(
        found["sparse"], collect(trace, 3000).ids.reshape(-1, 2)
    )
    manifest = Manifest.load(tmp_path / "r")
    assert manifest.schema.sparse == ("user", "item")
    assert manifest.schema.vocabulary_sizes == (800, 900)
    assert manifest.origin["generator"] == "pipelines.synthetic.Trace"
    assert manifest.origin["arguments"]["seed"] == 3
    assert manifest.origin["arguments"]["profile_sha256"] == measured.digest


def test_planted_records_are_as_parsed(tmp_path, planted, rows):
    """Missing ids are row 0, the others follow; integers are log(x + 1)."""
    report = planted.write_binary(tmp_path / "r", 2000, first_row=100)
    found = read(tmp_path / "r")
    block = type(rows)(*(array[100:2100] for array in rows))
    np.testing.assert_array_equal(found["labels"], block.labels)
    np.testing.assert_array_equal(found["sparse"], block.categories + 1)
    assert found["sparse"].min() == 0
    expected = np.log1p(np.maximum(block.integers, 0))
    np.testing.assert_allclose(found["dense"], expected, rtol=1e-6)
    manifest = Manifest.load(tmp_path / "r")
    sizes = [size + 1 for size in planted.vocabulary_sizes]
    assert list(manifest.schema.vocabulary_sizes) == sizes
    text = planted.write(tmp_path / "log.tsv", 2000, first_row=100)
    assert report.best_auc == text.best_auc
    assert report.best_log_loss == text.best_log_loss


def test_the_origin_makes_the_rows_again(tmp_path):
    source = Random(seed=5, vocabulary_sizes=(9, 8), hotness=3, click_rate=0.125)
    source.write_binary(tmp_path / "r", 100, first_row=7)
    origin = json.loads((tmp_path / "r" / "manifest.json").read_text())["origin"]
    assert origin["generator"] == "pipelines.synthetic.Random"
    again = Random(**origin["arguments"])
    assert again == source
    block = collect(again, origin["num_rows"], origin["first_row"])
    np.testing.assert_array_equal(read(tmp_path / "r")["sparse"], block.ids)


def test_progress_is_told_and_an_interrupted_folder_is_unfinished(tmp_path):
    calls = []
    source = Random(num_dense=1, vocabulary_sizes=(5,))
    source.write_binary(
        tmp_path / "r", 20_000, progress=lambda *counts: calls.append(counts)
    )
    assert calls == [(16_384, 20_000), (20_000, 20_000)]

    def interrupt(rows_done, rows_total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        source.write_binary(tmp_path / "s", 20_000, progress=interrupt)
    with pytest.raises(FileNotFoundError):
        Manifest.load(tmp_path / "s")
    with pytest.raises(FileExistsError, match="finished records"):
        source.write_binary(tmp_path / "r", 10)


def test_bad_ranges(tmp_path):
    for source in (Random(), Planted()):
        with pytest.raises(ValueError, match="`num_rows` must be an integer"):
            source.write_binary(tmp_path / "r", 0)
    assert not list(tmp_path.iterdir())
