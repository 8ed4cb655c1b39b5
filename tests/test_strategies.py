"""Under `tf.distribute` of one replica all is as without a strategy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices

import tf_dlrm
from tf_dlrm import EmbeddingTable, layers

pytestmark = pytest.mark.integration

TABLES = [EmbeddingTable(n, 9, 4) for n in "ab"]


def make_rows():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 9, (20, 2))
    return ids, rng.integers(0, 2, 20).astype("float32")


def make_dlrm(ids):
    embedding = layers.EmbeddingCollection(TABLES, seed=1)
    spec = tf_dlrm.FeatureSpec(("d",), TABLES)
    model = tf_dlrm.DLRM(spec, (8, 4), (8, 1), embedding=embedding)
    model.compile("adagrad", metrics=tf_dlrm.metrics.click_metrics())
    features = {"dense_features": np.ones((20, 1)), "sparse_features": ids}
    return model, embedding, features


def make_users(ids):
    embedding = layers.EmbeddingCollection(TABLES, seed=1)
    inputs = keras.Input((2,), dtype="int64")
    flat = keras.layers.Flatten()(embedding(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid")(flat))
    model.compile("adagrad", "binary_crossentropy")
    return model, embedding, ids


def train(make, strategy):
    keras.utils.set_random_seed(3)
    ids, y = make_rows()
    with strategy.scope():
        model, embedding, x = make(ids)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model.fit(data, epochs=2, verbose=0)
    loss = model.evaluate(data, verbose=0, return_dict=True)["loss"]
    out = model.predict(data, verbose=0)
    state = [v for s in embedding.get_state()["slots"].values() for v in s.values()]
    return [*model.get_weights(), *state, embedding.get_table("b"), loss, out]


@pytest.mark.parametrize("kind", ["dlrm", "users"])
@on_devices(2)
def test_one_replica_trains_as_none(kind):
    make = {"dlrm": make_dlrm, "users": make_users}[kind]
    plain = train(make, tf.distribute.get_strategy())
    start = layers.EmbeddingCollection(TABLES, seed=1).get_table("b")
    assert np.abs(plain[-3] - start).max() > 0
    one = train(make, tf.distribute.MirroredStrategy(["CPU:1"]))
    for got, expected in zip(one, plain, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
