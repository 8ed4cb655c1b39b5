"""Click metrics against scikit-learn and closed forms."""

import keras
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tf_dlrm import metrics

pytestmark = pytest.mark.engines


def clicks(num_rows, rate, seed=0):
    """Labels with known probabilities around a click rate, as a good model has."""
    rng = np.random.default_rng(seed)
    logit = rng.normal(np.log(rate / (1 - rate)), 1.0, num_rows)
    p = 1 / (1 + np.exp(-logit))
    return (rng.random(num_rows) < p).astype("float32"), p.astype("float32")


def in_batches(metric, y, p, weight=None, size=1000):
    for i in range(0, len(y), size):
        w = None if weight is None else weight[i : i + size]
        metric.update_state(y[i : i + size, None], p[i : i + size, None], w)
    return float(metric.result())


@pytest.mark.breadth(1, 3)
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("rate", [0.0075, 0.04, 0.25, 0.9])
def test_auc_equals_scikit_learn(rate, weighted):
    y, p = clicks(200_000, rate)
    weight = np.random.default_rng(1).uniform(0.5, 2, len(y)) if weighted else None
    got = in_batches(metrics.ClickAUC(), y, p, weight)
    # Keras' AUC is off by 0.017 at 0.75 % clicks.
    assert got == pytest.approx(roc_auc_score(y, p, sample_weight=weight), abs=2e-6)


def test_auc_of_extreme_and_tied_predictions():
    y = np.array([0, 1, 0, 1, 1, 0], "float32")
    p = np.array([0, 1, 0.5, 0.5, 0.5, 1e-30], "float32")
    assert in_batches(metrics.ClickAUC(), y, p) == pytest.approx(
        roc_auc_score(y, p), abs=1e-6
    )
    assert in_batches(metrics.ClickAUC(), y, 1 - p) == pytest.approx(
        1 - roc_auc_score(y, p), abs=1e-6
    )
    assert np.isnan(in_batches(metrics.ClickAUC(), np.ones(4, "float32"), p[:4]))


def test_counts_stay_exact_beyond_float32():
    """2^24 rows in one bucket: a float32 counter would stop there."""
    metric = metrics.ClickAUC()
    y, p = np.array([[0.0], [1.0]]), np.array([[0.3], [0.7]])
    metric.update_state(y, p, np.array([2.0**24, 2.0**24]))
    for _ in range(3):
        metric.update_state(y, p[::-1], np.array([1.0, 1.0]))
    n = 2.0**24
    expected = (n * n + 3 * n) / (n + 3) ** 2
    # wins: positives at 0.7 over all negatives at 0.3, ties count half.
    ties = (3 * n + 3 * n) / (n + 3) ** 2 / 2
    assert float(metric.result()) == pytest.approx(
        expected - 3 * n / (n + 3) ** 2 + ties, abs=1e-9
    )
    assert float(np.sum(metric.counts.numpy())) == 2 * n + 6


@pytest.mark.parametrize("label", [0.0, 0.4, 1.0])
def test_auc_of_labels_of_one_class_is_undefined(label):
    metric = metrics.ClickAUC()
    assert np.isnan(float(metric.result()))
    metric.update_state(np.full(9, label), np.linspace(0.1, 0.9, 9))
    assert np.isnan(float(metric.result()))
    metric.update_state([1.0 - round(label)], [0.95])
    assert float(metric.result()) == 1.0 - round(label)


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_loss_entropy_and_calibration_equal_closed_forms(weighted):
    y, p = clicks(50_000, 0.2)
    w = np.random.default_rng(1).uniform(0.5, 2, len(y)) if weighted else None
    loss = log_loss(y, p.astype(np.float64), sample_weight=w)
    rate = np.average(y, weights=w)
    entropy = -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    close = {"rel": 1e-5}
    assert in_batches(metrics.LogLoss(), y, p, w) == pytest.approx(loss, **close)
    assert in_batches(metrics.NormalizedEntropy(), y, p, w) == pytest.approx(
        loss / entropy, **close
    )
    assert in_batches(metrics.Calibration(), y, p, w) == pytest.approx(
        np.average(p, weights=w) / rate, **close
    )


def test_predicting_the_mean_has_entropy_and_calibration_one():
    y = (np.arange(100) % 4 == 0).astype("float32")
    p = np.full(100, 0.25, "float32")
    assert in_batches(metrics.NormalizedEntropy(), y, p) == pytest.approx(1.0)
    assert in_batches(metrics.Calibration(), y, p) == pytest.approx(1.0)
    assert in_batches(metrics.Calibration(), 0 * y, p) == 0.0
    assert in_batches(metrics.NormalizedEntropy(), 0 * y, p) == 0.0


def test_log_loss_clips_as_keras():
    y, p = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    expected = float(keras.losses.BinaryCrossentropy()(y[:, None], p[:, None]))
    got = in_batches(metrics.LogLoss(), y, p)
    assert got == pytest.approx(expected, rel=2e-2)  # float32: 1 - 1e-7 is 1 - 1.2e-7
    assert np.isfinite(got)


@pytest.mark.parametrize("metric", metrics.click_metrics(), ids=lambda m: m.name)
def test_config_and_reset(metric):
    y, p = clicks(100, 0.3)
    config = keras.saving.serialize_keras_object(metric)
    again = keras.saving.deserialize_keras_object(config)
    assert again.name == metric.name
    for _ in range(2):
        metric.reset_state()
        first = in_batches(metric, y, p)
    assert in_batches(again, y, p) == first
