"""The steps that a GPU gets: what they copy to the host, and what they compute.

They run on the CPU here. The slow tier runs the tests of engines with them, too.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices
from helpers.gpu_edges import device_to_host_edges
from helpers.small_model import make_data, make_model, make_spec, tables_of

import tf_dlrm
from tf_dlrm.runtime import accelerators, deferred_checks
from tf_dlrm.training import NotFiniteError

BATCH_SIZE = 16
FORMS = ("one_hot", "padded", "ragged")


@pytest.fixture(autouse=True)
def visible(monkeypatch):
    monkeypatch.setattr(accelerators, "first", lambda: "/device:CPU:0")


def compiled(optimizer="adagrad", **options):
    keras.utils.set_random_seed(3)
    model = make_model()
    model.compile(optimizer, metrics=tf_dlrm.metrics.click_metrics(), **options)
    return model


def in_form(form, ids):
    if form == "one_hot":
        return tf.constant(ids)
    padded = np.stack([ids, np.where(ids % 2, -1, ids)], 2)
    if form == "padded":
        return tf.constant(padded)
    flat = tf.ragged.boolean_mask(padded.reshape(-1, 2), padded.reshape(-1, 2) >= 0)
    return tf.RaggedTensor.from_uniform_row_length(flat, ids.shape[1])


def make_dataset(form="one_hot", change=lambda features, label: None):
    features, label = make_data()
    change(features, label)
    features["sparse_features"] = in_form(form, features["sparse_features"])
    return tf.data.Dataset.from_tensor_slices((features, label)).batch(BATCH_SIZE)


def edges(model, name, dataset):
    def step(data):
        return getattr(model, name)(data[0] if name == "predict_step" else data)

    with model._checks.read_at_end():  # as in `fit`
        traced = tf.function(step).get_concrete_function(dataset.element_spec)
    return device_to_host_edges(traced)


@pytest.mark.breadth(1, 6)
@pytest.mark.parametrize("form", ["ragged", "one_hot", "padded"])
@pytest.mark.parametrize("optimizer", ["adagrad", "sgd", "adam", "ftrl"])
def test_no_step_copies_to_the_host(optimizer, form):
    model, dataset = compiled(optimizer), make_dataset(form)
    for name in ("train_step", "test_step", "predict_step"):
        assert edges(model, name, dataset) == [], name


@pytest.mark.integration
def test_where_xla_compiles_nothing_a_step_copies_one_shape():
    model = compiled(jit_compile=False)
    (edge,) = edges(model, "train_step", make_dataset("ragged"))
    assert "compile_loss" in edge  # Keras' gradient of a mean


def test_edges_are_counted():
    def step(x, number):
        total = tf.cast(x, tf.int32) + 1  # int32 arithmetic is the host's
        more = tf.cond(tf.reduce_sum(x) > 0, lambda: x, lambda: -x)
        return total, more, number + 1

    traced = tf.function(step).get_concrete_function(
        tf.TensorSpec((None,)), tf.TensorSpec((), tf.int32)
    )
    found = device_to_host_edges(traced)
    assert [edge.split(" (")[1].split(")")[0] for edge in found] == ["Cast", "Greater"]


@pytest.mark.integration
@pytest.mark.xla
@pytest.mark.parametrize("form", ["one_hot", "ragged"])
def test_weights_are_those_of_the_steps_of_a_cpu(form, monkeypatch):
    model = compiled("adam")
    history = model.fit(make_dataset(form), epochs=2, verbose=0).history
    monkeypatch.setattr(accelerators, "first", lambda: None)
    other = compiled("adam", jit_compile=False)
    expected = other.fit(make_dataset(form), epochs=2, verbose=0).history
    for found, table in zip(tables_of(model), tables_of(other), strict=True):
        np.testing.assert_allclose(found, table, atol=2e-6)
    for name, values in expected.items():
        np.testing.assert_allclose(history[name], values, rtol=1e-4, err_msg=name)


def bad_id(features, label):
    features["sparse_features"][BATCH_SIZE, 1] = 7


def bad_label(features, label):
    label[BATCH_SIZE] = 3


MISTAKES = {
    "id": (bad_id, r"feature C1 of table C1 received id 7, .*_size 7 .*batch: 1\)"),
    "label": (bad_label, r"(?s)Labels must lie in \[0, 1\].*\b3\b"),
}


@pytest.mark.breadth(1)
@pytest.mark.parametrize("form", FORMS)
def test_an_id_out_of_range_is_raised_later_and_its_batch_left_out(form):
    model, other = compiled(jit_compile=False), compiled(jit_compile=False)
    dataset = make_dataset(form, bad_id)
    with pytest.raises(tf.errors.InvalidArgumentError, match=MISTAKES["id"][1]):
        model.fit(dataset, verbose=0)
    first = dataset.enumerate().filter(lambda i, _: i != 1).map(lambda _, data: data)
    other.fit(first, verbose=0)
    for found, expected in zip(tables_of(model), tables_of(other), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert int(model.optimizer.iterations) == int(model.embedding.iterations) == 3
    assert model.num_skipped_batches == 0
    model.fit(first, verbose=0)  # raised once


@pytest.mark.breadth(1)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_whoever_runs_steps_raises(mistake, monkeypatch):
    change, message = MISTAKES[mistake]
    model, dataset = compiled(jit_compile=False), make_dataset(change=change)
    features, label = next(iter(dataset.skip(1)))
    raises = pytest.raises(tf.errors.InvalidArgumentError, match=message)
    with raises:
        model.evaluate(dataset, verbose=0)
    with raises:
        model.train_on_batch(features, label)
    with raises:
        model.test_on_batch(features, label)
    monkeypatch.setattr(deferred_checks, "READ_EVERY", 2)
    batches = []
    count = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: batches.append(batch)
    )
    with raises:
        model.fit(dataset, verbose=0, callbacks=[count])
    assert batches[-1] <= 1
    if mistake == "id":
        with raises:
            model.predict(dataset, verbose=0)
        with raises:
            model.predict_on_batch(features)
        with raises:
            model(features)  # at once, in eager mode
    with raises:  # and in a loop of the user's
        tf.function(model.train_step)((features, label))


@pytest.mark.integration
def test_one_replica_and_its_optimizer_train_as_none():
    expected = compiled("adam", jit_compile=False)
    expected.fit(make_dataset(), verbose=0)
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        model = compiled("adam", jit_compile=False)
    model.fit(make_dataset(), verbose=0)
    for found, table in zip(tables_of(model), tables_of(expected), strict=True):
        np.testing.assert_allclose(found, table, atol=2e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match=MISTAKES["id"][1]):
        model.fit(make_dataset(change=bad_id), verbose=0)


def test_batches_in_a_row_are_counted_between_two_reads(monkeypatch):
    monkeypatch.setattr(deferred_checks, "READ_EVERY", 3)

    def spoil(features, label):
        features["dense_features"][BATCH_SIZE : 3 * BATCH_SIZE] = np.nan

    dataset = make_dataset(change=spoil).repeat(2)
    model = compiled(jit_compile=False, max_skipped_batches=2)
    with pytest.raises(NotFiniteError, match="2 batches in a row .*dense features"):
        model.fit(dataset, verbose=0)
    patient = compiled(jit_compile=False, max_skipped_batches=3)
    with pytest.warns(RuntimeWarning, match="4 batches had a loss"):
        patient.fit(dataset, verbose=0)
    expected = compiled(jit_compile=False)
    good = make_dataset().enumerate().filter(lambda i, _: i % 3 == 0)
    expected.fit(good.map(lambda _, data: data).repeat(2), verbose=0)
    for found, table in zip(tables_of(patient), tables_of(expected), strict=True):
        np.testing.assert_array_equal(found, table)


@pytest.mark.integration
def test_the_loss_may_be_of_a_subclass(monkeypatch):
    class Model(tf_dlrm.DLRM):
        def compute_loss(self, x, y, y_pred, sample_weight, training=True):
            return tf.reduce_mean(tf.square(y - y_pred))

    tables = []
    for device in ("/device:CPU:0", None):
        monkeypatch.setattr(accelerators, "first", lambda device=device: device)
        keras.utils.set_random_seed(3)
        model = Model(make_spec(), (8, 4), (8, 1))
        model.compile("adagrad")
        model.fit(make_dataset("ragged"), verbose=0)
        tables.append(tables_of(model))
    for found, expected in zip(*tables, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-6)


@pytest.mark.integration
@on_devices(2)
def test_tensors_are_prefetched_to_the_device_and_ragged_ones_are_not():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accelerators, "first", lambda: "/device:CPU:1")
        devices = []

        class Model(tf_dlrm.DLRM):
            def train_step(self, data):
                devices.append(data[0]["dense_features"].device[-5:])
                return super().train_step(data)

        model = Model(make_spec(), (8, 4), (8, 1))
        model.compile("adagrad", jit_compile=False, run_eagerly=True)
        for form, device in zip(FORMS, ("CPU:1", "CPU:1", "CPU:0"), strict=True):
            devices.clear()
            model.fit(make_dataset(form), verbose=0)
            assert set(devices) == {device}, form
        # Keras keeps the iterator of the validation; several steps at once.
        model.compile("adagrad", jit_compile=False, steps_per_execution=2)
        dataset = make_dataset()
        history = model.fit(dataset, epochs=3, validation_data=dataset, verbose=0)
        assert np.isfinite(history.history["val_loss"]).all()
