"""The gate before a release, the monitor after it, and pins."""

import math

import numpy as np
import pytest
import sklearn.metrics
from helpers import published, small_model

import tf_dlrm
from tf_dlrm.serving import Bounds, Gate, HealthMonitor, release, rollback
from tf_dlrm.serving.deltas import gate as gates
from tf_dlrm.serving.deltas.channel import Channel


def window():
    x, y = small_model.make_data()
    return [({k: v[i : i + 32] for k, v in x.items()}, y[i : i + 32]) for i in (0, 32)]


def test_results_equal_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    labels, answers = rng.integers(0, 2, 500), rng.random(500)
    weights = rng.random(500)
    results = gates.measure(labels, answers[:, None], weights)
    expected = sklearn.metrics.log_loss(labels, answers, sample_weight=weights)
    assert results["log_loss"] == pytest.approx(expected, rel=1e-6)
    ratio = np.average(answers, weights=weights) / np.average(labels, weights=weights)
    assert results["calibration"] == pytest.approx(ratio)


@pytest.mark.parametrize(
    "results, released, message",
    [
        ((0.5, 1.0), None, ""),
        ((0.5, 1.0), (0.499, 1.0), ""),
        ((0.5, 1.0), (0.49, 1.0), "The log loss is 0.50000, more than 0.49490"),
        ((0.5, 0.7), None, "The calibration is 0.7000, not within 0.8 to 1.25"),
        ((0.5, math.nan), None, "The calibration is nan"),
        ((math.inf, 1.0), None, "The log loss is not finite"),
    ],
)
def test_bounds(results, released, message):
    names = ("log_loss", "calibration")
    fault = Bounds().find_fault(
        dict(zip(names, results)), released and dict(zip(names, released))
    )
    assert fault.startswith(message) and bool(fault) == bool(message)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_loss_increase": -0.1}, "`max_loss_increase` must be at least 0"),
        ({"calibration": (1.1, 1.2)}, "`calibration` must be a range that includes 1"),
    ],
)
def test_refused_bounds(options, message):
    with pytest.raises(ValueError, match=message):
        Bounds(**options)


def fit(model, callback, learning_rate=None, steps=1):
    if learning_rate is not None:
        model.optimizer.learning_rate.assign(learning_rate)
    x, y = small_model.make_data()
    model.fit(x, y, batch_size=64, epochs=steps, callbacks=[callback], verbose=0)
    return callback.publications[-1]


def test_the_gate_holds_back_and_releases(tmp_path, capsys):
    model = small_model.compiled()
    gate = Gate(window(), Bounds(0.02, (0.5, 2.0)), patience=2)
    publish = tf_dlrm.callbacks.PublishDeltas(tmp_path, every_steps=1, gate=gate)
    first = fit(model, publish)
    assert (first.health, first.reason) == ("healthy", "")
    head = Channel(tmp_path).read_head()
    expected = gates.measure(window_labels(), model.predict(window_rows(), verbose=0))
    assert head["results"]["log_loss"] == pytest.approx(expected["log_loss"], rel=1e-5)
    tables = [model.embedding.get_rows(f"C{i}", [0, 1]) for i in range(3)]
    good = model.get_weights()
    bad = [fit(model, publish, 30.0) for _ in range(2)]
    assert [done.health for done in bad] == ["suspect", "bad"]
    assert all(done.is_written and "is " in done.reason for done in bad)
    assert Channel(tmp_path).read_head() == head  # HEAD did not move
    assert "Not released (suspect)" in capsys.readouterr().out
    model.set_weights(good)  # the training recovers
    again = fit(model, publish, 0.0)
    assert again.health == "healthy" and again.is_base
    assert Channel(tmp_path).read_head()["base"] == again.position.base
    assert len(tables) == 3


def window_rows():
    return small_model.make_data()[0]


def window_labels():
    return small_model.make_data()[1]


@pytest.mark.integration
def test_weights_that_are_not_finite_are_never_written(tmp_path):
    model = small_model.compiled(max_skipped_batches=None)
    publish = tf_dlrm.callbacks.PublishDeltas(tmp_path, every_steps=1, verbose=0)
    fit(model, publish)
    kernel = model.dense_variables[0]
    before = kernel.numpy()
    kernel.assign(np.full_like(before, np.nan))
    done = publish_now(model, publish)
    assert not done.is_written and done.position == (1, 0)
    assert done.health == "bad" and "Dense weight 0 is not finite" in done.reason
    kernel.assign(before)
    done = publish_now(model, publish)
    # The rows of the failed publication are in the next one.
    assert done.is_written and done.position == (1, 1) and done.num_rows > 40


def publish_now(model, publish):
    """Publish in a `fit` that changes nothing."""
    publish.set_model(model)
    publish._rows.mark({"C2": np.arange(30), "C0": np.arange(11)})
    return publish.publish()


@pytest.mark.integration
def test_a_rollback_pins_until_it_is_released(tmp_path):
    model = small_model.compiled()
    publish = tf_dlrm.callbacks.PublishDeltas(tmp_path, every_steps=1, verbose=0)
    fit(model, publish, steps=3)
    assert rollback(tmp_path, 1) == (1, 1)
    done = fit(model, publish)
    assert (
        done.is_written and "A rollback (person) has pinned HEAD to 1.1" in done.reason
    )
    assert Channel(tmp_path).read_head()["sequence"] == 1
    assert release(tmp_path) == (1, 3)
    assert fit(model, publish).reason == ""
    assert Channel(tmp_path).read_head()["sequence"] == 4
    with pytest.raises(ValueError, match="Delta 5 of base 1 is missing"):
        rollback(tmp_path, 9)
    with pytest.raises(ValueError, match="nothing is released"):
        rollback(tmp_path / "empty", 0)


def test_a_bad_model_goes_back_by_itself(base_dir):
    """Bad answers after good ones: suspect, bad, and HEAD at the last healthy state."""
    channel = Channel(base_dir)
    monitor = HealthMonitor(base_dir, Bounds(0.05), window_rows=200, num_windows=2)
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.1, 0.9, 200)
    labels = (rng.random(200) < truth).astype(float)
    assert monitor.observe(labels, truth, (1, 3)) == "healthy"
    wrong = np.clip(1.0 - truth, 0.01, 0.99) * labels.mean() / (1.0 - truth).mean()
    assert monitor.observe(labels, wrong, (1, 3)) == "suspect"
    assert monitor.observe(labels, truth, (1, 3)) == "healthy"  # one window is noise
    assert monitor.observe(labels[:150], wrong[:150], (1, 3)) == "healthy"
    assert monitor.observe(labels[150:], wrong[150:], (1, 3)) == "suspect"
    assert monitor.observe(labels, wrong, (1, 3)) == "bad"
    head = channel.read_head()
    assert (head["base"], head["sequence"], head["pinned"]) == (1, 2, "monitor")
    assert "The log loss is" in head["reason"] and head["rolled_back_from"] == [1, 3]
    replica = tf_dlrm.serving.Replica(base_dir)
    assert replica.in_place() == (1, 2)
    assert monitor.observe(labels, wrong, (1, 3)) == "bad"  # late answers of 1.3
    assert channel.read_head() == head


@pytest.mark.integration
def test_a_gate_removes_the_pin_of_a_monitor(tmp_path):
    model = small_model.compiled()
    gate = Gate(window(), Bounds(1.0, (0.2, 5.0)))
    publish = tf_dlrm.callbacks.PublishDeltas(
        tmp_path, every_steps=1, gate=gate, verbose=0
    )
    fit(model, publish, steps=3)
    rollback(tmp_path, 1, by="monitor", reason="bad answers")
    assert fit(model, publish).reason == ""
    head = Channel(tmp_path).read_head()
    assert head["sequence"] == 3 and "pinned" not in head
    rollback(tmp_path, 1)
    assert "pinned HEAD to 1.1" in fit(model, publish).reason


def test_a_monitor_refuses_rows_that_do_not_match(base_dir):
    monitor = HealthMonitor(base_dir)
    with pytest.raises(ValueError, match="same number of rows. Received: 2 and 3"):
        monitor.observe([0, 1], [0.1, 0.2, 0.3], (1, 3))
    with pytest.raises(ValueError, match="`window_rows` must be at least 1"):
        HealthMonitor(base_dir, window_rows=0)


def test_a_window_without_rows_or_clicks(tmp_path):
    model = published.small_model.compiled()
    with pytest.raises(ValueError, match="`window` of the gate has no rows"):
        gates.evaluate(model, [])
    x, y = small_model.make_data()
    with pytest.raises(ValueError, match="`window` of the gate has no clicks"):
        gates.evaluate(model, [(x, 0 * y)])
