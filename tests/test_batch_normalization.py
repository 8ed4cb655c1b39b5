"""Batch normalization in the MLPs: its statistics in training, files and replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices
from helpers.small_model import make_data, make_spec

import tf_dlrm
from tf_dlrm.layers import MLP

PLACES = [True, "after_activation"]
MOMENTUM, EPSILON = 0.9, 1e-5


def forward(mlp, x, statistics=None):
    """The MLP in NumPy; statistics are those of the batch, or given ones.

    Returns the output and the `(mean, variance)` of each normalized layer's batch.
    """
    used = []
    for i, layer in enumerate(mlp.dense_layers):
        x = x @ layer.kernel.numpy().astype(np.float64) + layer.bias.numpy()
        if i == len(mlp.dims) - 1:
            return x, used
        if mlp.batch_normalization == "after_activation":
            x = np.maximum(x, 0)
        used.append((x.mean(axis=0), x.var(axis=0)))
        mean, variance = used[-1] if statistics is None else statistics[i]
        x = (x - mean) / np.sqrt(variance + EPSILON)
        norm = mlp.normalizations[i]
        x = x * norm.gamma.numpy() + norm.beta.numpy()
        if mlp.batch_normalization is True:
            x = np.maximum(x, 0)


@pytest.mark.parametrize("place", PLACES)
def test_equals_numpy(place):
    rng = np.random.default_rng(0)
    mlp = MLP((7, 5, 2), batch_normalization=place)
    x = rng.normal(size=(64, 3)).astype("float32")
    mlp.build((None, 3))
    for norm in mlp.normalizations:
        norm.gamma.assign(rng.normal(size=norm.gamma.shape))
        norm.beta.assign(rng.normal(size=norm.beta.shape))
    expected, used = forward(mlp, x)
    np.testing.assert_allclose(mlp(x, training=True), expected, atol=1e-4)
    moved = [
        (0.1 * mean, MOMENTUM + 0.1 * variance) for mean, variance in used
    ]  # from 0 and 1
    for norm, (mean, variance) in zip(mlp.normalizations, moved, strict=True):
        np.testing.assert_allclose(norm.moving_mean, mean, atol=1e-5)
        np.testing.assert_allclose(norm.moving_variance, variance, atol=1e-5)
    expected, _ = forward(mlp, x, moved)
    np.testing.assert_allclose(mlp(x, training=False), expected, atol=1e-4)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(mlp)
    )
    assert again.batch_normalization == place


def make_mlps(place):
    bottom = MLP((8, 4), final_activation="relu", batch_normalization=place)
    return bottom, MLP((8, 1), batch_normalization=place)


def make(place, **options):
    model = tf_dlrm.DLRM(make_spec(), *make_mlps(place))
    model.compile(keras.optimizers.SGD(0.1), **options)
    return model


@pytest.mark.breadth(0)
@pytest.mark.parametrize("jit_compile", ["auto", True, False], ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_statistics_move_once_a_step_of_fit(place, jit_compile):
    model = make(place, jit_compile=jit_compile)
    model.optimizer.learning_rate = 0.0  # batches then decide the statistics alone
    features, label = make_data()
    model.fit(features, label, batch_size=16, epochs=2, shuffle=False, verbose=0)
    mean, variance = 0.0, 1.0
    for start in [0, 16, 32, 48] * 2:
        dense = features["dense_features"][start : start + 16]
        _, ((batch_mean, batch_variance),) = forward(model.bottom_mlp, dense)
        mean = MOMENTUM * mean + 0.1 * batch_mean
        variance = MOMENTUM * variance + 0.1 * batch_variance
    (norm,) = model.bottom_mlp.normalizations
    np.testing.assert_allclose(norm.moving_mean, mean, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, variance, atol=1e-5)
    before = [norm.moving_mean.numpy(), norm.moving_variance.numpy()]
    model.evaluate(features, label, verbose=0)
    model.predict(features, verbose=0)
    np.testing.assert_array_equal(norm.moving_mean, before[0])
    np.testing.assert_array_equal(norm.moving_variance, before[1])


@pytest.mark.breadth(0)
@pytest.mark.parametrize("place", PLACES)
def test_files_keep_the_statistics(place, tmp_path):
    model = make(place)
    features, label = make_data()
    model.fit(features, label, batch_size=16, epochs=3, verbose=0)
    expected = model.predict(features, verbose=0)
    assert np.abs(expected - make(place).predict(features, verbose=0)).max() > 1e-3
    model.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded.predict(features, verbose=0), expected)
    model.save_weights(tmp_path / "m.weights.h5")
    other = make(place)
    other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(other.predict(features, verbose=0), expected)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    other = make(place)
    tf.train.Checkpoint(model=other).restore(path).assert_consumed()
    np.testing.assert_array_equal(other.predict(features, verbose=0), expected)
    exported = tf_dlrm.export_saved_model(model, tmp_path / "exported")
    served = tf.saved_model.load(exported).signatures["serving_default"](
        dense_features=tf.constant(features["dense_features"]),
        sparse_features=tf.constant(features["sparse_features"][:, :, None]),
    )
    np.testing.assert_allclose(served["probabilities"], expected, atol=1e-6)


def test_an_unknown_place_is_refused():
    with pytest.raises(ValueError, match="`batch_normalization` must be one of"):
        MLP((3, 1), batch_normalization="before")


def train(place, strategy):
    features, label = make_data()
    keras.utils.set_random_seed(3)
    mlps = make_mlps(place)  # before the strategy is known
    with strategy.scope():
        model = tf_dlrm.DLRM(make_spec(), *mlps)
        model.compile(keras.optimizers.SGD(0.1))
    data = tf.data.Dataset.from_tensor_slices((features, label)).batch(15)
    model.fit(data, epochs=2, verbose=0)  # the last batch has 4 rows
    weights = [layer.numpy() for layer in model.bottom_mlp.weights]
    weights += [layer.numpy() for layer in model.top_mlp.weights]
    table = model.embedding.get_table("C2")
    return [*weights, table, model.predict(features, verbose=0)]


@pytest.mark.integration
@pytest.mark.parametrize("place", PLACES)
@on_devices(2)
def test_two_replicas_have_the_statistics_of_the_global_batch(place):
    plain = train(place, tf.distribute.get_strategy())
    two = train(place, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    for got, expected in zip(two, plain, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
