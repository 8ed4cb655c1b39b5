"""The ids that `MultiHot` draws follow their distribution."""

import math

import numpy as np
import pytest

from pipelines.multi_hot import MultiHot


def drawn_ids(size, distribution, num_ids, num_draws):
    """Draws for the first ids of one feature, `(num_ids, num_draws)`."""
    expander = MultiHot([size], [1 + num_draws], distribution)
    values, _ = expander.expand_ids(np.arange(num_ids)[:, None])
    return values.reshape(num_ids, 1 + num_draws)[:, 1:]


def chi_square_is_near(counts, expected):
    """Within 5 standard deviations of its mean, in the normal limit."""
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = len(counts) - 1
    return abs(chi_square - degrees) < 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("size", [3, 50, 4096])
def test_uniform_ids_are_uniform(size):
    drawn = drawn_ids(size, "uniform", size, 300_000 // size)
    counts = np.bincount(drawn.ravel())
    assert len(counts) == size
    assert chi_square_is_near(counts, drawn.size / size)


def test_large_vocabularies_are_covered_evenly():
    size = 40_000_000
    drawn = drawn_ids(size, "uniform", 100_000, 10)
    counts, _ = np.histogram(drawn, bins=400, range=(0, size))
    assert chi_square_is_near(counts, drawn.size / 400)
    counts = np.bincount(drawn.ravel() % 1024)
    assert chi_square_is_near(counts, drawn.size / 1024)


def test_places_and_neighbours_are_not_correlated():
    """Neither ids side by side nor places side by side; 5 standard deviations."""
    drawn = drawn_ids(100_000, "uniform", 100_000, 4).astype(float)
    for left, right in [
        (drawn[:-1, 0], drawn[1:, 0]),
        (drawn[:, 0], drawn[:, 1]),
        (drawn[:-1, 1], drawn[1:, 0]),
        (drawn[:, 0], np.arange(100_000.0)),
    ]:
        assert abs(np.corrcoef(left, right)[0, 1]) < 5 / math.sqrt(len(left))


@pytest.mark.parametrize("size, num_folds", [(3, 300_000), (50, 20_000), (5000, 200)])
def test_pareto_ids_follow_the_cdf(size, num_folds):
    """The CDF is 1 - (1 + x)^(-1/4), folded modulo the size; what lies beyond the
    folds, 3 % of it, is as good as even."""
    survival = (1.0 + np.arange(size * num_folds + 1)) ** -0.25
    folds = -np.diff(survival).reshape(num_folds, size)
    probabilities = folds.sum(axis=0) + survival[-1] / size
    assert (np.diff(probabilities) < 0).all()
    drawn = drawn_ids(size, "pareto", size, 300_000 // size)
    counts = np.bincount(drawn.ravel(), minlength=size)
    expected = probabilities * drawn.size
    assert (np.diff(counts[:4]) < 0).all()
    # Id by id where 40 or more are expected, the others in bins of as many ids.
    edges = np.flatnonzero(np.diff(np.cumsum(expected) // 40, prepend=-1))
    assert chi_square_is_near(
        np.add.reduceat(counts, edges), np.add.reduceat(expected, edges)
    )


def test_pareto_ids_of_large_vocabularies_favour_low_ones():
    """Of 40 million ids, half of the draws are of the first 15: 1 - 16^(-1/4). The
    draws beyond the last id, 1.3 % of all, are folded onto 40 million."""
    drawn = drawn_ids(40_000_000, "pareto", 100_000, 10)
    assert abs((drawn < 15).mean() - 0.5) < 5 * 0.5 / math.sqrt(drawn.size)
    assert 39_000_000 < drawn.max() < 40_000_000
