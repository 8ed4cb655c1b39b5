"""Planted click logs: rows by number, files, and reports of the optimal scores."""

import gzip
import json
import tracemalloc

import numpy as np
import pytest
from helpers.planted_rows import NUM_ROWS, collect
from sklearn.metrics import log_loss, roc_auc_score

from pipelines.synthetic import Planted, Report

SMALL = (5,) * 26


# Rows


def test_rows_do_not_depend_on_the_range_they_are_generated_in(planted):
    whole = collect(planted, 40_000)
    parts = [
        collect(planted, 16_384),  # ends with a block
        collect(planted, 1, first_row=16_384),
        collect(planted, 18_615, first_row=16_385),  # spans two blocks
        collect(planted, 5_000, first_row=35_000),
    ]
    assert sum(len(part.labels) for part in parts) == 40_000
    for name in whole._fields:
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name), err_msg=name)


def test_equal_arguments_give_equal_rows_and_another_seed_others(rows):
    again = collect(Planted(seed=0), 1_000)
    other = collect(Planted(seed=1), 1_000)
    for name in rows._fields:
        np.testing.assert_array_equal(getattr(again, name), getattr(rows, name)[:1_000])
        assert not np.array_equal(getattr(other, name), getattr(again, name)), name


def test_blocks_differ_from_each_other(rows):
    assert not np.array_equal(rows.categories[:16_384], rows.categories[16_384:32_768])


def test_block_shapes_and_dtypes(rows):
    shapes = {name: value.shape for name, value in rows._asdict().items()}
    dtypes = {name: value.dtype.name for name, value in rows._asdict().items()}
    assert shapes == {
        "labels": (NUM_ROWS,),
        "integers": (NUM_ROWS, 13),
        "integers_missing": (NUM_ROWS, 13),
        "categories": (NUM_ROWS, 26),
        "probabilities": (NUM_ROWS,),
    }
    assert dtypes == {
        "labels": "int8",
        "integers": "int64",
        "integers_missing": "bool",
        "categories": "int32",
        "probabilities": "float64",
    }


@pytest.mark.integration
def test_memory_does_not_grow_with_the_number_of_rows(planted, tmp_path):
    planted.write(tmp_path / "warm.tsv", 16_384)

    def peak(num_rows):
        tracemalloc.start()
        planted.write(tmp_path / "log.tsv", num_rows)
        value = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return value

    assert peak(8 * 16_384) < 1.1 * peak(2 * 16_384)


def test_missing_shares_are_those_of_the_kaggle_set(rows):
    integers = rows.integers_missing.mean(axis=0)
    categories = (rows.categories < 0).mean(axis=0)
    # 0.01 is five standard errors of a share of one half in 60,000 rows.
    for number, share in {1: 0.45, 2: 0.0, 5: 0.026, 10: 0.45, 12: 0.765}.items():
        assert integers[number - 1] == pytest.approx(share, abs=0.015), f"I{number}"
    for number, share in {1: 0.0, 19: 0.44, 20: 0.44, 22: 0.76, 26: 0.44}.items():
        assert categories[number - 1] == pytest.approx(share, abs=0.015), f"C{number}"
    assert (rows.integers[rows.integers_missing] == 0).all()


def test_integers_are_as_heavy_tailed_as_in_the_kaggle_set(rows):
    assert rows.integers[:, 1].min() == -2  # I2
    others = np.delete(rows.integers, 1, axis=1)
    assert others.min() == 0
    assert rows.integers[:, 4].max() > 1_000_000  # I5
    assert rows.integers.max() <= 2_000_000
    for column, missing in zip(rows.integers.T, rows.integers_missing.T, strict=True):
        present = column[~missing]
        assert ((present - present.mean()) ** 3).mean() > 0


def test_ids_follow_zipf_and_fill_small_vocabularies(planted, rows):
    for column, size in zip(rows.categories.T, planted.vocabulary_sizes, strict=True):
        assert column.max() < size
        ranks = column[column >= 0]
        if size <= 30:
            assert np.unique(ranks).size == size
        # P(rank < k) of a density (x + 1)^-1.1 on [0, size)
        for k in (1, 2, 10, 100):
            if k < size:
                expected = (1 - (k + 1) ** -0.1) / (1 - (size + 1) ** -0.1)
                error = 5 * np.sqrt(expected * (1 - expected) / ranks.size)
                assert (ranks < k).mean() == pytest.approx(expected, abs=error)


# Files and reports


def test_report_agrees_with_scikit_learn(written):
    report, lines, p = written
    labels = np.asarray([int(line[0]) for line in lines])
    assert p.dtype == np.float64 and p.shape == (20_000,)
    assert report.num_rows == 20_000
    assert report.first_row == 123
    assert report.seed == 0
    assert report.click_rate == pytest.approx(labels.mean(), abs=1e-12)
    assert report.best_auc == pytest.approx(roc_auc_score(labels, p), abs=1e-5)
    assert report.best_log_loss == pytest.approx(log_loss(labels, p), abs=1e-9)
    entropy = -(p * np.log(p) + (1 - p) * np.log(1 - p)).mean()
    assert report.expected_log_loss == pytest.approx(entropy, abs=1e-9)


def test_report_counts_ties_as_halves(tmp_path):
    planted = Planted(main_effect=0.0, pair_effect=0.0)  # one probability for all
    assert planted.write(tmp_path / "log.tsv", 500).best_auc == 0.5


def test_report_has_no_auc_where_all_labels_are_equal(tmp_path):
    report = Planted(click_rate=1e-9).write(tmp_path / "log.tsv", 10)
    assert report.click_rate == 0.0
    assert report.best_auc is None
    assert json.loads(report.to_json())["best_auc"] is None


def test_report_as_json(written):
    report = written[0]
    assert Report(**json.loads(report.to_json())) == report


def test_gzip_holds_the_plain_text_and_is_reproducible(planted, tmp_path):
    plain = tmp_path / "log.tsv"
    packed = [tmp_path / "a.tsv.gz", tmp_path / "other-name.tsv.gz"]
    planted.write(plain, 3_000, first_row=50)
    for path in packed:
        planted.write(path, 3_000, first_row=50)
    assert packed[0].read_bytes() == packed[1].read_bytes()
    assert gzip.decompress(packed[0].read_bytes()) == plain.read_bytes()


def test_progress_is_told(planted, tmp_path):
    calls = []
    planted.write(
        tmp_path / "log.tsv", 20_000, progress=lambda *counts: calls.append(counts)
    )
    assert calls == [(16_384, 20_000), (20_000, 20_000)]


def test_an_interrupted_write_leaves_what_was_there(planted, tmp_path):
    path, probabilities_path = tmp_path / "log.tsv", tmp_path / "truth.npy"
    path.write_text("old")

    def interrupt(rows_done, rows_total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        planted.write(
            path, 10, probabilities_path=probabilities_path, progress=interrupt
        )
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_vocabularies_of_one_value_are_possible(tmp_path):
    report = Planted(vocabulary_sizes=(1,) * 26).write(tmp_path / "log.tsv", 1_000)
    assert np.isfinite(report.best_log_loss)


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "`seed` must be an integer of at least 0. Received: seed=-1"),
        ({"seed": 0.5}, "`seed` must be an integer .* Received: seed=0.5"),
        ({"click_rate": 0.0}, "`click_rate` must be .* Received: click_rate=0.0"),
        ({"click_rate": 25}, "`click_rate` must be .* Received: click_rate=25"),
        ({"click_rate": float("nan")}, "`click_rate` must be .*click_rate=nan"),
        ({"vocabulary_sizes": (5,) * 25}, "must have 26 entries.* Received: 25"),
        ({"vocabulary_sizes": (0, *SMALL[1:])}, r"`vocabulary_sizes\[0\]` .*=0"),
        ({"vocabulary_sizes": (*SMALL[1:], 2**27)}, "below 2.*134217728 for C26"),
        ({"main_effect": -1.0}, "`main_effect` must .* Received: main_effect=-1.0"),
        ({"pair_effect": 11.0}, "`pair_effect` must .* Received: pair_effect=11.0"),
    ],
)
def test_bad_generator_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Planted(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rows": 0}, "`num_rows` must be an integer of at least 1.*num_rows=0"),
        ({"num_rows": 1e6}, "`num_rows` must be an integer .* num_rows=1000000.0"),
        ({"num_rows": 1, "first_row": -1}, "`first_row` must .* first_row=-1"),
    ],
)
def test_bad_ranges(planted, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        planted.blocks(**arguments)
    with pytest.raises(ValueError, match=message):
        planted.write(tmp_path / "log.tsv", **arguments)
    assert not list(tmp_path.iterdir())


def test_bad_paths(planted, tmp_path):
    absent = tmp_path / "absent" / "log.tsv"
    with pytest.raises(ValueError, match="`path` must be in an existing directory"):
        planted.write(absent, 10)
    path = tmp_path / "log.tsv"
    with pytest.raises(ValueError, match="`probabilities_path` must be in .*absent"):
        planted.write(path, 10, probabilities_path=absent)
    with pytest.raises(ValueError, match="must differ from `path`. Received: .*log"):
        planted.write(path, 10, probabilities_path=str(path))
    assert not list(tmp_path.iterdir())
