"""Corrections of probabilities, against scikit-learn and on planted miscalibration."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score

from tf_dlrm import calibration
from tf_dlrm.calibration import fit_correction

EDGE = 2.0**-23


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def logit(p):
    p = np.clip(p, EDGE, 1 - EDGE)
    return np.log(p / (1 - p))


def planted(num_rows, slope=1.7, shift=0.8, seed=0, decimals=None):
    """Labels, and predictions whose logits are slope * truth + shift."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(-2, 1.2, num_rows)
    labels = (rng.random(num_rows) < sigmoid(truth)).astype("float32")
    p = sigmoid(slope * truth + shift).astype("float32")
    return labels, p if decimals is None else p.round(decimals)


ROWS = {
    "few": (60, None, False),
    "many": (20_000, None, False),
    "weighted": (3_000, None, True),
    "ties, 0 and 1": (3_000, 1, False),
    "weighted ties": (3_000, 2, True),
}


@pytest.fixture(params=ROWS.values(), ids=ROWS.keys())
def rows(request):
    num_rows, decimals, is_weighted = request.param
    labels, p = planted(num_rows, decimals=decimals)
    weights = np.random.default_rng(1).integers(0, 4, num_rows) if is_weighted else None
    new = np.random.default_rng(2).random(500).astype("float32")
    return labels, p, weights, np.concatenate([p, new, [0, 1]]).astype("float32")


def test_isotonic_equals_scikit_learn(rows):
    labels, p, weights, new = rows
    oracle = IsotonicRegression(out_of_bounds="clip")
    # In float32 scikit-learn would take predictions within 1e-6 for ties.
    oracle.fit(p.astype(np.float64), labels.astype(np.float64), weights)
    got = fit_correction(labels, p, "isotonic", weights)(new.astype(np.float64))
    np.testing.assert_allclose(got, oracle.predict(new), rtol=0, atol=1e-12)


def test_platt_equals_scikit_learn(rows):
    labels, p, weights, new = rows
    oracle = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-10)
    p, new = p.astype(np.float64), new.astype(np.float64)
    oracle.fit(logit(p)[:, None], labels, weights)
    correction = fit_correction(labels, p, "platt", weights)
    assert correction.slope == pytest.approx(oracle.coef_[0, 0], abs=1e-6)
    assert correction.intercept == pytest.approx(oracle.intercept_[0], abs=1e-6)
    expected = oracle.predict_proba(logit(new)[:, None])[:, 1]
    np.testing.assert_allclose(correction(new), expected, rtol=0, atol=1e-6)


def test_planted_miscalibration_is_corrected_on_new_rows():
    labels, p = planted(200_000, shift=1.5)
    new_labels, new = planted(200_000, shift=1.5, seed=5)
    platt = fit_correction(labels, p, "platt")
    # The logit of the truth is (logit(p) - 1.5) / 1.7.
    assert platt.slope == pytest.approx(1 / 1.7, rel=0.03)
    assert platt.intercept == pytest.approx(-1.5 / 1.7, abs=0.03)
    assert new.mean() / new_labels.mean() > 1.3
    best = log_loss(new_labels, sigmoid((logit(new.astype(np.float64)) - 1.5) / 1.7))
    for correction in (platt, fit_correction(labels, p, "isotonic")):
        corrected = correction(new)
        assert corrected.dtype == np.float32 and corrected.shape == new.shape
        assert corrected.mean() / new_labels.mean() == pytest.approx(1, abs=0.01)
        for rows in np.array_split(np.argsort(new), 10):
            rate = new_labels[rows].mean()
            error = float(np.sqrt(rate / len(rows)))  # of both the rate and the fit
            assert corrected[rows].mean() == pytest.approx(rate, abs=5 * error)
        assert log_loss(new_labels, corrected.astype(np.float64)) < best + 0.001
    before, after = (roc_auc_score(new_labels, q) for q in (new, platt(new)))
    assert after == pytest.approx(before, abs=1e-7)  # float32 may round to ties


def test_corrections_work_in_a_graph_in_any_shape():
    labels, p = planted(2_000)
    for method in calibration.METHODS:
        correction = fit_correction(labels[:, None], p[:, None], method)
        got = tf.function(correction)(tf.constant(p[:6, None]))
        assert got.shape == (6, 1) and got.dtype == tf.float32
        np.testing.assert_array_equal(got, correction(p[:6, None]))
        assert correction(p[:0]).shape == (0,)


def test_soft_labels_count_as_shares():
    labels, p = planted(2_000)
    soft = np.where(labels == 1, 0.75, 0.0)
    repeated = np.concatenate([np.ones(2_000), np.zeros(2_000)])
    weights = np.concatenate([soft, 1 - soft])
    for method in calibration.METHODS:
        got = fit_correction(soft, p, method)(p)
        expected = fit_correction(repeated, np.tile(p, 2), method, weights)(p)
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("method", calibration.METHODS)
def test_each_slice_has_the_correction_of_its_rows(method):
    """Value 5 has too few rows, 7 no clicks; 8 was never seen. They share one."""
    ids = np.random.default_rng(1).choice(
        [3, 9, -1, 5, 7], 20_000, p=[0.4, 0.3, 0.2, 0.02, 0.08]
    )
    labels, p = planted(20_000)
    labels[ids == 7] = 0
    p = np.where(ids == 9, sigmoid(logit(p) + 1), p).astype("float32")
    correction = fit_correction(
        labels, p, method, slice_feature="C1", slice_ids=ids, min_slice_rows=1_000
    )
    assert sorted(correction.by_id) == [-1, 3, 9]
    rest = np.isin(ids, [5, 7])
    other = fit_correction(labels[rest], p[rest], method)
    new = planted(6_000, seed=3)[1].reshape(6, 1_000)
    for value, row in zip((3, 9, -1, 5, 7, 8), new, strict=True):
        own = ids == value
        has_own = value in correction.by_id
        expected = fit_correction(labels[own], p[own], method) if has_own else other
        got = correction(row, np.full(1_000, value))
        np.testing.assert_array_equal(got, expected(row))
    mixed = correction(new[:, :1], np.array([3, 9, -1, 5, 7, 8]))
    assert mixed.shape == (6, 1) and mixed[1] == correction(new[1, :1], [9])
    # The mean prediction is that of the labels, in each part and hence in total.
    total = correction(p, ids).mean(dtype=np.float64) / labels.mean()
    assert total == pytest.approx(1, abs=1e-5)
    facts = correction.describe()
    assert facts["slice_feature"] == "C1" and facts["slice_ids"] == [-1, 3, 9]
    assert facts["method"] == method and facts["num_rows"] == 20_000


def test_few_rows_of_other_values_have_the_correction_of_all_rows():
    labels, p = planted(3_000)
    ids = np.repeat([4, 6], [2_500, 500])
    correction = fit_correction(labels, p, "platt", None, "C1", ids, 501)
    assert sorted(correction.by_id) == [4]
    assert correction.other == fit_correction(labels, p, "platt")


def test_the_first_id_of_a_bag_is_the_same_in_each_form():
    bags = [[[4, 1], []], [[-1, 7], [2]], [[], [-1, 3]]]
    padded = np.array(
        [[[4, 1], [-1, -1]], [[-1, 7], [2, -1]], [[-1, -1], [-1, 3]]], np.int32
    )
    ragged = tf.ragged.constant(bags, dtype=tf.int64)
    uniform = tf.RaggedTensor.from_uniform_row_length(ragged.values, 2)
    for column, expected in enumerate(([4, 7, -1], [-1, 2, 3])):
        for ids in (padded, ragged, uniform):
            got = calibration.first_ids(ids, column)
            assert got.dtype == tf.int64 and got.numpy().tolist() == expected
    assert calibration.first_ids(ragged[:0], 1).shape == (0,)
    assert calibration.first_ids([[5, -3]], 1).numpy().tolist() == [-1]


Y, P = [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]
REFUSED = {
    "method": ((Y, P, "sigmoid"), "`method` must be one of"),
    "NaN": (
        (Y, [0.1, np.nan, 0.3, 0.4]),
        "`probabilities` must be between 0 and 1.*nan",
    ),
    "logits": ((Y, [0.1, 0.2, 0.3, 4]), "`probabilities` must be between.*4.0"),
    "NaN label": (([0, 1, np.nan, 1], P), "`labels` must be between 0 and 1"),
    "empty": (([], []), "cannot be fitted on no rows. Received: 0 rows"),
    "no weight": ((Y, P, "platt", [0, 0, 0, 0]), "on no rows. Received: 4 rows"),
    "negative weight": (
        (Y, P, "platt", [1, 1, 1, -1]),
        "`sample_weight` must be finite",
    ),
    "lengths": ((Y, P[:3]), "4 labels, 3 probabilities, 4 weights"),
    "only clicks": (([1, 1, 1, 1], P), "All 4 rows have the label 1"),
    "no clicks": (([0, 0, 0, 0], P, "platt"), "All 4 rows have the label 0"),
    "clicks without weight": (
        (Y, P, "platt", [1, 0, 1, 0]),
        "All 2 rows have the label 0",
    ),
    "equal": ((Y, [0.2] * 4, "platt"), "do not become more frequent"),
    "equal, isotonic": ((Y, [0.2] * 4), "do not become more frequent"),
    "falling": (([1, 0, 1, 0], P, "platt"), "do not become more frequent"),
    "falling, isotonic": (([1, 1, 0, 0], P), "do not become more frequent"),
    "separable": (([0, 0, 1, 1], P, "platt"), "separates all rows with a click"),
    "slice without ids": (
        (Y, P, "platt", None, "C1"),
        "`slice_feature` and `slice_ids`",
    ),
    "ids": ((Y, P, "platt", None, "C1", [1, 2]), "one integer for each row.*shape .2,"),
    "texts": ((Y, P, "platt", None, "C1", list("abcd")), "one integer for each row"),
    "few": (
        (Y, P, "platt", None, "C1", [1, 1, 1, 2], 5),
        "No value of C1 has `min_slice_rows=5` rows.*3 rows",
    ),
    "min_slice_rows": ((Y, P, "platt", None, None, None, 0), "must be at least 1"),
}


@pytest.mark.parametrize("arguments, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_fitted_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fit_correction(*arguments)
