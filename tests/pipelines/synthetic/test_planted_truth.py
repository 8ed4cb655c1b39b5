"""Planted click probabilities: what they are made of, and that labels follow them."""

import numpy as np
import pytest
from helpers.planted_rows import collect
from sklearn.metrics import roc_auc_score

from pipelines.synthetic import Planted


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


@pytest.mark.integration
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
    with pytest.raises(ValueError, match="or -1 for a missing value. Received: .* -2"):
        planted.probabilities(np.zeros((1, 13), int), np.full((1, 26), -2))
