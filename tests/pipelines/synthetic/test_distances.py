"""LRU stack distances, measured and given out, beside lists in plain Python."""

import itertools

import numpy as np
import pytest
from helpers import lru_oracle

from pipelines.synthetic import stack_distances
from pipelines.synthetic.distances import (
    BIN_EDGES,
    NUM_BINS,
    continue_stack,
    count_distances,
)
from pipelines.synthetic.lru_stack import NEW, LruStack


def sequences():
    rng = np.random.default_rng(5)
    yield "zipf", rng.zipf(1.3, 3000) % 400
    yield "uniform", rng.integers(0, 700, 2500)
    yield "negative", rng.integers(-3, 3, 100)
    yield "scan", np.arange(1000) % 77
    yield "there and back", np.concatenate([np.arange(200), np.arange(200)[::-1]])
    yield "one id", np.full(50, 9)
    yield "all new", np.arange(100)
    yield "single", np.array([4])
    yield "uint64", rng.integers(2**63, 2**63 + 9, 64, np.uint64)


SEQUENCES = dict(sequences())


@pytest.mark.parametrize("name", SEQUENCES)
def test_distances_are_those_of_a_list(name):
    ids = SEQUENCES[name]
    got = stack_distances(ids)
    assert got.dtype == np.int64
    assert got.tolist() == lru_oracle.distances(ids.tolist())


def test_distances_of_all_short_sequences():
    for size in range(1, 6):
        for ids in itertools.product(range(3), repeat=size):
            assert stack_distances(ids).tolist() == lru_oracle.distances(ids), ids


def test_distances_of_nothing():
    assert stack_distances([]).shape == (0,)


@pytest.mark.parametrize("piece", [1, 7, 1000, 1024])
def test_pieces_continue_each_other(piece):
    ids = SEQUENCES["zipf"]
    stack, found = ids[:0], []
    for start in range(0, len(ids), piece):
        distances, stack = continue_stack(stack, ids[start : start + piece])
        found.extend(distances.tolist())
    assert found == lru_oracle.distances(ids.tolist())
    last = {i: place for place, i in enumerate(ids.tolist())}
    assert stack.tolist() == sorted(last, key=last.get)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0.5], "`ids` must be integers of shape .* Received: dtype float64"),
        ([[1, 2]], r"Received: dtype int64, shape \(1, 2\)"),
    ],
)
def test_bad_ids(ids, message):
    with pytest.raises(ValueError, match=message):
        stack_distances(ids)


def test_bins_are_narrow():
    """Exact below 256, at most a sixteenth wide from there on, without gaps."""
    widths = np.diff(BIN_EDGES)
    assert BIN_EDGES[0] == 0 and BIN_EDGES[-1] == 2**31
    assert (widths[:256] == 1).all() and BIN_EDGES[256] == 256
    assert (widths > 0).all()
    assert (widths[256:] * 16 <= BIN_EDGES[256:-1]).all()


def test_distances_are_counted_in_their_bins():
    rng = np.random.default_rng(1)
    distances = (2 ** rng.uniform(0, 31, 20_000)).astype(np.int64) - 1
    distances = np.concatenate([distances, [-1, -1, 0, 255, 256, 2**31 - 1]])
    expected, _ = np.histogram(distances, BIN_EDGES)
    counts = count_distances(distances)
    assert counts.shape == (NUM_BINS,)
    np.testing.assert_array_equal(counts, expected)


# The stack


@pytest.mark.parametrize("num_ids", [1, 50, 5000, 30_000])
def test_the_stack_gives_what_a_list_gives(num_ids):
    rng = np.random.default_rng(num_ids)
    kinds = [
        rng.integers(0, num_ids, 3000),
        np.minimum(rng.zipf(1.2, 3000), num_ids) - 1,
        np.full(3000, num_ids - 1),  # round and round
        np.minimum(rng.integers(4000, 6000, 6000), num_ids - 1),  # near the seam
    ]
    depths = [NEW] * num_ids + np.concatenate(kinds).tolist()
    stack = LruStack(num_ids + 1)
    found, start = [], 0
    for end in (10, num_ids, len(depths)):  # in pieces
        found += stack.access(depths[start:end], [])
        start = max(start, end)
    assert found == lru_oracle.accesses(depths)
    assert stack.size == num_ids and stack.owed == []


def test_distances_given_out_are_measured_again():
    rng = np.random.default_rng(2)
    depths = np.concatenate([np.full(9000, NEW), rng.integers(0, 9000, 20_000)])
    ids = LruStack(9000).access(depths.tolist(), [])
    depths[depths == NEW] = -1
    np.testing.assert_array_equal(stack_distances(ids), depths)


def test_a_distance_that_does_not_fit_is_made_up_for():
    stack = LruStack(10)
    # 2 does not fit: a new id. The next new one is used for it, once it fits.
    ids = stack.access([NEW, 2, NEW, NEW, NEW], [])
    assert ids == [0, 1, 2, 0, 3]
    assert stack.owed == []


def test_spare_distances_are_used_when_ids_run_out():
    stack = LruStack(2)
    assert stack.access([NEW, NEW, NEW, NEW], [1, 0]) == [0, 1, 1, 0]
    assert stack.size == 2
