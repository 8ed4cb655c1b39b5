"""`tf.train.Checkpoint` holds tables, optimizer state and every layer."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_model import compiled, make_data, predictions, tables_of

import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec, layers, optimizers


def restore(path, model):
    tf.train.Checkpoint(model=model).restore(path).assert_consumed()


@pytest.mark.breadth(1)
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_continues_as_if_never_stopped(optimizer, tmp_path):
    features, label = make_data()
    model = compiled(optimizer)
    model.fit(features, label, verbose=0, shuffle=False)
    path = tf.train.Checkpoint(model=model).save(tmp_path / "c")
    again = compiled(optimizer)
    assert np.abs(predictions(again) - predictions(model)).max() > 0
    restore(path, again)
    np.testing.assert_array_equal(predictions(again), predictions(model))
    for each in (model, again):
        each.fit(features, label, verbose=0, shuffle=False)
    for got, expected in zip(tables_of(again), tables_of(model)):
        np.testing.assert_array_equal(got, expected)
    state, expected = again.embedding.get_state(), model.embedding.get_state()
    assert state["iterations"] == expected["iterations"] == 4
    for name, slots in expected["slots"].items():
        for slot, values in slots.items():
            np.testing.assert_array_equal(state["slots"][name][slot], values)
            assert np.abs(values).max() > 0


def mixed_model():
    """All kinds of layers, tables of two widths, three optimizers."""
    tables = [EmbeddingTable(n, 9, w) for n, w in zip("abc", (4, 4, 2))]
    bottom = layers.MLP((8, 4), final_activation="relu", batch_normalization=True)
    cross = layers.CrossInteraction(2, rank=3)
    return tf_dlrm.DLRM(
        FeatureSpec(("d",), tables),
        bottom,
        (8, 1),
        interaction=cross,
        feature_mlp_dims={"c": (4,)},
    )


@pytest.mark.parametrize("is_compiled", [False, True], ids=["built", "compiled"])
def test_holds_every_weight(is_compiled, tmp_path):
    def make():
        model = mixed_model()
        if is_compiled:
            rates = {"a": optimizers.SparseAdam(0.5), "b": "adagrad"}
            model.compile("sgd", embedding_optimizer=rates)
        return model

    model, again = make(), make()
    for weight in model.weights:
        weight.assign(np.random.default_rng(1).uniform(1, 2, weight.shape))
    if is_compiled:
        model.embedding_optimizer["a"].learning_rate = 0.25
    path = tf.train.Checkpoint(model=model).save(tmp_path / "c")
    restore(path, again)
    for got, expected in zip(again.weights, model.weights):
        np.testing.assert_array_equal(got.numpy(), expected.numpy(), got.path)
    if is_compiled:
        assert again.embedding_optimizer["a"].learning_rate == 0.25


@pytest.mark.integration
@pytest.mark.parametrize("is_compiled", [False, True], ids=["built", "compiled"])
def test_a_users_model(is_compiled, tmp_path):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.tables = layers.EmbeddingCollection([EmbeddingTable("a", 10, 2)])
            self.head = keras.layers.Dense(1)

        def call(self, ids):
            return self.head(self.tables(ids)[:, 0])

    ids, models = np.arange(10)[:, None], [Own(), Own()]
    for model in models:
        model(ids)
        if is_compiled:
            model.compile("adagrad", "mse")
            model.fit(ids, np.ones((10, 1)), verbose=0)
    path = tf.train.Checkpoint(model=models[0]).save(tmp_path / "c")
    restore(path, models[1])
    tables = [model.tables.get_table("a") for model in models]
    np.testing.assert_array_equal(*tables)
    np.testing.assert_array_equal(*[model(ids) for model in models])


def test_a_collection_compiled_again_holds_the_new_state_alone(tmp_path):
    model = compiled("adam")
    model.compile("adagrad")
    path = tf.train.Checkpoint(embedding=model.embedding).save(tmp_path / "c")
    names = [name for name, _ in tf.train.list_variables(path)]
    assert sum("accumulator_4_0" in name for name in names) == 1
    assert not any("momentum" in name for name in names)
