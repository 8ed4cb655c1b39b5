"""Metrics of slices and GAUC against scikit-learn, group by group, in float64."""

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

import tf_dlrm
from tf_dlrm.metrics import sliced as sliced_metrics

MISTAKES = {
    "label": (([2], [0.5], [0]), "`labels` must be 0 or 1"),
    "lengths": (([1, 0], [0.5], [0]), "must be .n,.. Received shapes: .2,., .1,."),
    "not a number": (([1], [np.nan], [0]), "`predictions` must be finite"),
    "no probability": (([1], [1.5], [0]), "from 0 to 1. Received: 1.5"),
    "rank": (([1], [0.5], [[0]]), "`groups` must be .n,."),
}


def rows(seed, num_rows, num_groups, num_digits):
    """Groups of very different sizes; the fewer digits, the more ties."""
    rng = np.random.default_rng(seed)
    groups = (num_groups * rng.random(num_rows) ** 3).astype(int)
    predictions = rng.random(num_rows).round(num_digits).astype(np.float32)
    predictions[rng.random(num_rows) < 0.02] = 0.0
    labels = rng.random(num_rows) < 0.4 * predictions
    return labels.astype(int), predictions, groups


@pytest.mark.breadth(3)
@pytest.mark.parametrize("block_rows", [5, 1 << 18])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (300, 1, 1), (2000, 90, 1), (2000, 700, 7), (50, 4, 0)]
)
def test_each_group_is_as_scikit_learn_says(shape, block_rows, monkeypatch):
    monkeypatch.setattr(sliced_metrics, "_BLOCK_ROWS", block_rows)
    y, p, g = rows(3, *shape)
    p64 = p.astype(np.float64)
    found = tf_dlrm.metrics.sliced_metrics(y, p, g)
    assert found.groups.tolist() == sorted(set(g.tolist()))
    sizes, areas = [], []
    for i, group in enumerate(found.groups):
        own = g == group
        clicks = y[own].sum()
        assert (found.num_rows[i], found.num_clicks[i]) == (own.sum(), clicks)
        clipped = np.clip(p64[own], 1e-7, 1 - 1e-7)
        loss = log_loss(y[own], clipped, labels=[0, 1])
        assert found.log_loss[i] == pytest.approx(loss, rel=1e-9, abs=1e-12)
        if clicks:
            calibration = p64[own].sum() / clicks
            assert found.calibration[i] == pytest.approx(calibration, rel=1e-12)
        else:
            assert np.isnan(found.calibration[i])
        if 0 < clicks < own.sum():
            sizes.append(own.sum())
            areas.append(roc_auc_score(y[own], p64[own]))
            assert found.auc[i] == pytest.approx(areas[-1], abs=1e-14)
        else:
            assert np.isnan(found.auc[i])
    whole = tf_dlrm.metrics.gauc(y, p, g)
    assert whole.num_groups == len(areas)
    assert whole.num_groups_left_out == len(found) - len(areas)
    assert whole.share_of_rows == sum(sizes) / len(y)
    if areas:
        assert whole.value == pytest.approx(np.average(areas, weights=sizes), abs=1e-14)
    else:
        assert np.isnan(whole.value)


def test_rows_come_in_any_order_and_in_batches_that_outgrow_the_start():
    y, p, g = rows(1, 200_000, 5000, 3)
    order = np.random.default_rng(0).permutation(len(y))
    expected = tf_dlrm.metrics.sliced_metrics(y[order], p[order], g[order])
    batched = sliced_metrics.GroupedRows()
    for i in range(0, len(y), 7001):
        batched.add(y[i : i + 7001], p[i : i + 7001], g[i : i + 7001])
    found = batched.slices().take(expected.groups)
    for name in ("groups", "num_rows", "num_clicks", "auc"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert batched.gauc().value == np.average(
        expected.auc[~np.isnan(expected.auc)],
        weights=expected.num_rows[~np.isnan(expected.auc)],
    )


def test_scores_of_any_sign_are_ranked():
    y, p, g = rows(2, 3000, 40, 4)
    scores = np.where(p > 0, np.log(np.maximum(p, 1e-9)) + 1, -20).astype(np.float32)
    scores[::7] = -0.0  # equal to 0.0, of other bits
    scores[3::7] = 0.0
    found = tf_dlrm.metrics.gauc(y, scores, g)
    used = [i for i in np.unique(g) if 0 < y[g == i].sum() < (g == i).sum()]
    areas = [roc_auc_score(y[g == i], scores[g == i].astype(np.float64)) for i in used]
    sizes = [(g == i).sum() for i in used]
    assert found.value == pytest.approx(np.average(areas, weights=sizes), abs=1e-14)


def test_groups_may_be_names_and_no_rows_are_no_groups():
    found = tf_dlrm.metrics.sliced_metrics([1, 0], [0.5, 0.5], ["b", "a"])
    assert found.groups.tolist() == ["a", "b"]
    nothing = tf_dlrm.metrics.sliced_metrics([], [], [])
    assert len(nothing) == 0
    assert tf_dlrm.metrics.gauc([], [], []).share_of_rows == 0.0


@pytest.mark.parametrize("arguments, message", MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tf_dlrm.metrics.sliced_metrics(*arguments)


def test_groups_by_number_must_be_numbers():
    for groups, message in (([0.5], "integers"), ([-1], "from 0"), ([1 << 31], "31")):
        with pytest.raises(ValueError, match=message):
            sliced_metrics.GroupedRows().add([1], [0.5], groups)
