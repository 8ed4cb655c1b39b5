"""Traces: generated ids have the locality of the measured ones."""

import numpy as np
import pytest
from helpers.planted_rows import collect

from pipelines.synthetic import Trace, profile, profile_logs, stack_distances

NUM_ACCESSES = 200_000
CACHES = (10, 100, 1000, 10_000)


def sessions(rng):
    """Ids of short visits: near in time and, now and then, again."""
    starts = np.repeat(rng.integers(0, 20_000, NUM_ACCESSES // 50), 50)
    return starts + rng.zipf(1.5, NUM_ACCESSES) % 300


TRAFFIC = {
    "zipf": lambda rng: rng.zipf(1.2, NUM_ACCESSES) % 1_000_000,
    "uniform": lambda rng: rng.integers(0, 50_000, NUM_ACCESSES),
    "three": lambda rng: rng.integers(0, 3, NUM_ACCESSES),
    "scan": lambda rng: np.arange(NUM_ACCESSES) % 5000,
    "sessions": sessions,
}


def total_variation(one, two):
    one, two = one.counts(), two.counts()
    return 0.5 * np.abs(one / one.sum() - two / two.sum()).sum()


@pytest.fixture(scope="module")
def measured():
    """A profile of bags: 1,000 rows of three features."""
    rng = np.random.default_rng(3)
    lengths = rng.integers((0, 1, 2), (3, 2, 9), (1000, 3))
    ids = rng.zipf(1.3, int(lengths.sum())) % 500
    return profile(ids, lengths, names=["shown", "user", "seen"])


@pytest.mark.breadth(2)
@pytest.mark.parametrize("name", TRAFFIC)
def test_locality_is_kept(name):
    """It is kept ten times better than that."""
    wanted = profile(TRAFFIC[name](np.random.default_rng(0)))
    rows = collect(Trace(wanted, seed=4, num_dense=0), NUM_ACCESSES)
    got = profile(rows.ids).features[0]
    wanted = wanted.features[0]
    assert total_variation(got, wanted) <= 0.02
    for rows in CACHES:
        assert got.hit_rate(rows) == pytest.approx(wanted.hit_rate(rows), abs=0.01)
    assert got.num_distinct == pytest.approx(wanted.num_distinct, rel=0.01)


def test_locality_of_bags_is_kept(measured):
    trace = Trace(measured, vocabulary_sizes=(10**6,) * 3)
    block = collect(trace, 20_000)
    again = profile(block.ids, block.lengths)
    for got, wanted in zip(again.features, measured.features, strict=True):
        sizes, shares = np.asarray(wanted.bag_sizes).T
        got_sizes, got_counts = np.asarray(got.bag_sizes).T
        np.testing.assert_array_equal(got_sizes, sizes)
        # Five standard errors of the 3,616 rows after the last whole block.
        np.testing.assert_allclose(got_counts / 20_000, shares / 1000, atol=0.007)
        assert total_variation(got, wanted) <= 0.02


def test_rows_do_not_depend_on_the_range_they_are_generated_in(measured):
    trace = Trace(measured, num_dense=2)
    whole = collect(trace, 40_000)
    parts = [
        collect(trace, 16_384),
        collect(trace, 1, first_row=16_384),
        collect(trace, 18_615, first_row=16_385),
        collect(trace, 5000, first_row=35_000),
    ]
    for name in whole._fields:
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, getattr(whole, name), err_msg=name)
    sizes = [len(block.labels) for block in trace.blocks(40_000, first_row=20_000)]
    assert sizes == [12_768, 16_384, 10_848]


def test_equal_arguments_give_equal_rows_and_another_seed_others(measured):
    one, same, other = (collect(Trace(measured, seed), 5000) for seed in (1, 1, 2))
    for name in one._fields:
        np.testing.assert_array_equal(getattr(one, name), getattr(same, name))
        assert not np.array_equal(getattr(one, name), getattr(other, name)), name


def test_block_shapes_and_dtypes(measured):
    block = collect(Trace(measured, num_dense=5, click_rate=0.1), 2000)
    described = {name: (a.shape, a.dtype.name) for name, a in block._asdict().items()}
    assert described == {
        "labels": ((2000,), "uint8"),
        "dense": ((2000, 5), "float32"),
        "ids": ((int(block.lengths.sum()),), "int32"),
        "lengths": ((2000, 3), "int32"),
    }
    assert block.dense.min() >= 0 and block.dense.max() < 1
    assert 0.06 < block.labels.mean() < 0.14  # six standard errors
    assert Trace(measured).names == ("shown", "user", "seen")


def test_distances_come_in_random_order():
    """Near ones and far ones mixed: each part of a block is like the whole."""
    wanted = profile(TRAFFIC["uniform"](np.random.default_rng(0)))
    distances = stack_distances(collect(Trace(wanted), 8 * 16_384).ids)[-16_384:]
    far = distances > np.median(distances)
    # 4,096 of 16,384, half of them far: five standard errors
    for part in far.reshape(4, -1):
        assert part.mean() == pytest.approx(far.mean(), abs=0.034)
    changes = (far[1:] != far[:-1]).mean()
    assert changes == pytest.approx(2 * far.mean() * (1 - far.mean()), abs=0.02)


def test_new_ids_end_with_the_vocabulary():
    wanted = profile(np.random.default_rng(0).integers(0, 400, 2000))
    feature = wanted.features[0]
    longer = collect(Trace(wanted), 30_000).ids
    assert set(longer.tolist()) == set(range(feature.num_distinct))
    # From then on, as the accesses that were not new.
    got = profile(longer).features[0].counts()[1:]
    known = feature.counts()[1:]
    assert 0.5 * np.abs(got / got.sum() - known / known.sum()).sum() < 0.01
    more = Trace(wanted, vocabulary_sizes=(5000,))
    ids = collect(more, 30_000).ids
    assert len(np.unique(ids)) == 5000 == ids.max() + 1
    share = feature.num_new / 2000
    distinct = len(np.unique(ids[:16_384]))
    assert distinct == pytest.approx(share * 16_384, rel=0.02)


def test_ids_that_never_come_back_start_again():
    ids = collect(Trace(profile(np.arange(100))), 250).ids
    np.testing.assert_array_equal(ids, np.arange(250) % 100)


def test_features_without_ids_are_possible():
    lengths = np.zeros((10, 2), int)
    lengths[:, 1] = 1
    block = collect(Trace(profile(np.arange(10), lengths)), 20)
    assert (block.lengths == (0, 1)).all() and len(block.ids) == 20


def test_merged_profiles_can_be_traced():
    rng = np.random.default_rng(0)
    days = [profile(rng.integers(0, size, 5000)) for size in (50, 3000)]
    merged = days[0].merge(days[1])
    trace = Trace(merged, vocabulary_sizes=(10**6,))
    got = profile(collect(trace, 100_000).ids).features[0]
    assert total_variation(got, merged.features[0]) < 0.02


@pytest.mark.integration
def test_text_of_a_log_that_was_measured(tmp_path, planted):
    """From rows to rows: measured, generated, written, measured again."""
    planted.write(tmp_path / "log.tsv", 20_000)
    wanted = profile_logs([tmp_path / "log.tsv"])
    report = Trace(wanted, seed=9).write(tmp_path / "trace.tsv.gz", 20_000)
    assert report.num_rows == 20_000 and report.best_auc == 0.5
    again = profile_logs([tmp_path / "trace.tsv.gz"])
    for got, feature in zip(again.features, wanted.features, strict=True):
        assert got.bag_sizes == feature.bag_sizes
        assert total_variation(got, feature) <= 0.02
        for rows in CACHES:
            assert got.hit_rate(rows) == pytest.approx(feature.hit_rate(rows), abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": -1}, "`seed` must be an integer of at least 0"),
        ({"num_dense": -1}, "`num_dense` must be an integer of at least 0"),
        ({"click_rate": 0}, "`click_rate` must be"),
        ({"vocabulary_sizes": (10**6,)}, "each of the 3 features.* Received: 1"),
        (
            {"vocabulary_sizes": (3, 10**6, 10**6)},
            "for shown, its number .* Received: 3",
        ),
        ({"vocabulary_sizes": (2**31,) * 3}, "at most 2,147,483,647"),
    ],
)
def test_bad_arguments(measured, arguments, message):
    with pytest.raises(ValueError, match=message):
        Trace(measured, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rows": 0}, "`num_rows` must be an integer of at least 1"),
        ({"num_rows": 1, "first_row": -1}, "`first_row` must .* first_row=-1"),
    ],
)
def test_bad_ranges(measured, arguments, message):
    with pytest.raises(ValueError, match=message):
        Trace(measured).blocks(**arguments)


def test_what_does_not_fit_criteos_text(measured, tmp_path):
    with pytest.raises(ValueError, match="13 and 3 vocabulary sizes"):
        Trace(measured).write(tmp_path / "log.tsv", 10)
