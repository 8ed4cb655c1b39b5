"""Planted click logs: rows by number, Criteo's format, and scores that are optimal."""

import gzip
import json
import re
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from pipelines.synthetic import Planted, PlantedReport, category_text

NUM_ROWS = 60_000
SMALL = (5,) * 26


@pytest.fixture(scope="module")
def planted():
    return Planted(seed=0)


@pytest.fixture(scope="module")
def rows(planted):
    return collect(planted, NUM_ROWS)


@pytest.fixture(scope="module")
def written(planted, tmp_path_factory):
    """`(report, lines, probabilities)` of a log written to disk."""
    directory = tmp_path_factory.mktemp("written")
    path, probabilities_path = directory / "log.tsv", directory / "truth.npy"
    report = planted.write(
        path, 20_000, first_row=123, probabilities_path=probabilities_path
    )
    lines = path.read_bytes().decode("ascii").split("\n")
    assert lines.pop() == ""
    return report, lines, np.load(probabilities_path)


def collect(planted, num_rows, first_row=0):
    blocks = list(planted.blocks(num_rows, first_row))
    return type(blocks[0])(*(np.concatenate(a) for a in zip(*blocks, strict=True)))


def logits_where(planted, integers=None, categories=None):
    """Logits of otherwise equal rows, given the columns that vary: {number: values}."""
    given = {**(integers or {}), **(categories or {})}
    num_rows = len(next(iter(given.values())))
    x = np.full((num_rows, 13), 3)
    ids = np.zeros((num_rows, 26), np.int32)
    for number, values in (integers or {}).items():
        x[:, number - 1] = values
    for number, values in (categories or {}).items():
        ids[:, number - 1] = values
    p = planted.probabilities(x, ids)
    return np.log(p) - np.log1p(-p)


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


# Labels and probabilities


def test_labels_are_drawn_from_the_probabilities(rows):
    p = rows.probabilities
    edges = np.quantile(p, np.linspace(0, 1, 11)[1:-1])
    decile = np.searchsorted(edges, p)
    for group in [np.ones(p.size, bool)] + [decile == k for k in range(10)]:
        error = np.sqrt((p * (1 - p))[group].sum()) / group.sum()
        assert abs(rows.labels[group].mean() - p[group].mean()) < 4 * error


@pytest.mark.parametrize("click_rate", [0.01, 0.25, 0.9])
def test_click_rate(click_rate):
    p = collect(Planted(seed=3, click_rate=click_rate), 30_000).probabilities
    # The bias is fitted on 65,536 other rows, so both samples scatter.
    error = p.std() * np.sqrt(1 / 30_000 + 1 / 65_536)
    assert p.mean() == pytest.approx(click_rate, abs=4 * error)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_default_effects_leave_a_realistic_optimum(seed):
    block = collect(Planted(seed=seed), 30_000)
    assert 0.77 < roc_auc_score(block.labels, block.probabilities) < 0.83


@pytest.mark.parametrize("pair_effect", [0.3, 1.5])
def test_effects_are_standard_deviations_in_logits(pair_effect):
    def deviation(**effects):
        p = collect(Planted(**effects), 30_000).probabilities
        return np.std(np.log(p) - np.log1p(-p))

    alone = deviation(main_effect=0.0, pair_effect=pair_effect)
    assert alone == pytest.approx(pair_effect, rel=0.05)
    both = deviation(main_effect=1.0, pair_effect=pair_effect)
    assert both == pytest.approx(np.hypot(1.0, pair_effect), rel=0.05)


def test_pairs_interact_through_latent_vectors_of_two_dimensions(planted):
    a_ids, b_ids = np.repeat(np.arange(10), 10), np.tile(np.arange(10), 10)

    def interaction(a, b):
        """What the ids of two columns add together, beyond rows plus columns."""
        table = logits_where(planted, categories={a: a_ids, b: b_ids}).reshape(10, 10)
        table = table - table.mean(axis=0) - table.mean(axis=1)[:, None] + table.mean()
        return np.linalg.svd(table, compute_uv=False)

    for names in planted.pairs:
        first, second, third = interaction(*(int(name[1:]) for name in names))[:3]
        assert second > 0.1
        assert third < 1e-9
    assert ("C5", "C8") not in planted.pairs
    assert interaction(5, 8)[0] < 1e-9


def test_pair_terms_average_out_over_the_other_id(planted, rows):
    """So a model of single features cannot see any of them."""
    main = Planted(pair_effect=0.0)
    p, q = (m.probabilities(rows.integers, rows.categories) for m in (planted, main))
    pair_logits = np.log(p) - np.log1p(-p) - np.log(q) + np.log1p(-q)
    pair_logits -= pair_logits.mean()  # the biases differ
    for number in (5, 6, 8, 14, 17, 23):
        for rank in range(4):
            group = pair_logits[rows.categories[:, number - 1] == rank]
            assert abs(group.mean()) < 5 * group.std() / np.sqrt(group.size)


def test_the_truth_depends_only_on_what_the_parser_keeps(planted):
    """Negative integers are 0 to a model, and rare ids are missing ones."""
    x = logits_where(planted, integers={2: np.asarray([-2, -1, 0, 1])})
    assert x[0] == x[1] == x[2] != x[3]
    for number in (1, 3, 5, 8):
        ids = logits_where(planted, categories={number: np.asarray([-1, 100, 299])})
        assert ids[0] == ids[1] == ids[2]
    assert np.ptp(logits_where(planted, categories={3: np.arange(5)})) > 0.1


def test_missing_has_an_effect_of_its_own_where_values_start_at_1(planted, rows):
    for number in (3, 4, 6, 13):
        present = rows.integers[~rows.integers_missing[:, number - 1], number - 1]
        assert present.min() == 1
        low = logits_where(planted, integers={number: np.asarray([0, 1, 2])})
        assert abs(low[1] - low[0]) > 0.01


def test_logistic_regression_stays_behind(planted):
    """A cheap bound: one-hot ids of the columns that matter, and binned integers.

    A logistic regression on 300,000 rows with all columns stayed 0.062 behind.
    """
    from sklearn.linear_model import LogisticRegression

    columns = np.asarray([3, 5, 6, 8, 14, 17, 20, 23]) - 1

    def design(block):
        ids = np.clip(block.categories[:, columns], -1, 50) + 1
        one_hot = np.zeros((len(ids), 8 * 52), np.float32)
        one_hot[np.arange(len(ids))[:, None], ids + 52 * np.arange(8)] = 1
        z = np.log1p(np.maximum(block.integers, 0)) / 3
        return np.concatenate([z, z**2, block.integers == 0, one_hot], axis=1)

    train = collect(planted, 30_000)
    test = collect(planted, 30_000, first_row=1_000_000)
    model = LogisticRegression(C=0.1, solver="newton-cholesky")
    model.fit(design(train), train.labels)
    auc = roc_auc_score(test.labels, model.predict_proba(design(test))[:, 1])
    best = roc_auc_score(test.labels, test.probabilities)
    assert auc > 0.70  # it did learn
    assert best - auc > 0.03


# Text


def test_lines_hold_the_generated_values(planted, written):
    _, lines, _ = written
    block = collect(planted, 20_000, first_row=123)
    texts = [
        category_text(n, np.maximum(block.categories[:, n - 1], 0))
        for n in range(1, 27)
    ]
    for row in (0, 1, 777, 16_260, 16_261, 19_999):
        expected = [str(block.labels[row])]
        expected += [
            "" if missing else str(value)
            for value, missing in zip(
                block.integers[row], block.integers_missing[row], strict=True
            )
        ]
        expected += [
            "" if rank < 0 else text[row]
            for rank, text in zip(block.categories[row], texts, strict=True)
        ]
        assert lines[row].split("\t") == expected


def test_every_line_is_criteo_tsv(written):
    _, lines, _ = written
    pattern = re.compile(r"[01](\t(0|-?[1-9][0-9]*)?){13}(\t([0-9a-f]{8})?){26}")
    assert len(lines) == 20_000
    assert all(pattern.fullmatch(line) for line in lines)


def test_integers_of_any_width_and_sign_are_written():
    from pipelines.synthetic.tsv import encode_rows

    integers = np.asarray([[0, -1, 10, -2_000_000], [5, 907, -30, 1_234_567_890_123]])
    missing = np.zeros(integers.shape, bool)
    missing[1, :3] = True
    text = encode_rows(np.asarray([1, 0]), integers, missing, np.full((2, 1), -1))
    assert text == b"1\t0\t-1\t10\t-2000000\t\n0\t\t\t\t1234567890123\t\n"


def test_category_text_is_the_documented_hash():
    def fmix32(h):  # finalizer of MurmurHash3_x86_32, as published
        h ^= h >> 16
        h = h * 0x85EBCA6B & 0xFFFFFFFF
        h ^= h >> 13
        h = h * 0xC2B2AE35 & 0xFFFFFFFF
        return h ^ h >> 16

    for feature, rank in [(1, 0), (26, 0), (3, 999_999), (26, 2**27 - 1)]:
        expected = f"{fmix32(feature << 27 | rank):08x}"
        assert category_text(feature, rank) == expected


def test_category_text_keeps_shapes():
    assert category_text(1, np.zeros((2, 3), np.int32)).shape == (2, 3)
    assert category_text(1, 0).shape == ()
    assert category_text(1, []).shape == (0,)


def test_category_texts_never_collide():
    texts = np.concatenate(
        [category_text(feature, np.arange(20_000)) for feature in range(1, 27)]
    )
    assert np.unique(texts).size == texts.size


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
    assert PlantedReport(**json.loads(report.to_json())) == report


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
        ({"click_rate": 0.0}, "`click_rate` must lie .* Received: click_rate=0.0"),
        ({"click_rate": 25}, "`click_rate` must lie .* Received: click_rate=25"),
        ({"click_rate": float("nan")}, "`click_rate` must lie .*click_rate=nan"),
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
    with pytest.raises(ValueError, match="`path` must lie in a directory that exists"):
        planted.write(absent, 10)
    path = tmp_path / "log.tsv"
    with pytest.raises(ValueError, match="`probabilities_path` must lie .*absent"):
        planted.write(path, 10, probabilities_path=absent)
    with pytest.raises(ValueError, match="must differ from `path`. Received: .*log"):
        planted.write(path, 10, probabilities_path=str(path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("integers", "categories", "message"),
    [
        ((2, 12), (2, 26), r"`integers` must have shape \(rows, 13\).*\(2, 12\)"),
        ((2, 13), (3, 26), r"`categories` must have shape \(rows, 26\).*\(3, 26\)"),
    ],
)
def test_bad_shapes(planted, integers, categories, message):
    with pytest.raises(ValueError, match=message):
        planted.probabilities(np.zeros(integers, int), np.zeros(categories, int))


def test_bad_ranks(planted):
    with pytest.raises(ValueError, match="or -1 where missing. Received: .* -2"):
        planted.probabilities(np.zeros((1, 13), int), np.full((1, 26), -2))


@pytest.mark.parametrize(
    ("feature", "ranks", "message"),
    [
        (0, [1], "`feature` must be in 1..26. Received: feature=0"),
        (27, [1], "Received: feature=27"),
        (1, [3, -1], "`ranks` must be in .* Received: values from -1 to 3"),
        (1, [2**27], "Received: values from 134217728"),
        (1, [0.5], "`ranks` must be integers. Received: dtype float64"),
    ],
)
def test_bad_category_text(feature, ranks, message):
    with pytest.raises(ValueError, match=message):
        category_text(feature, ranks)
