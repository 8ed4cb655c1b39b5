"""Frozen tables and layers keep their weights, in `fit` and in files."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_model import make_data, make_model, make_spec, tables_of

import tf_dlrm
from tf_dlrm import EmbeddingTable, layers

EAGER = pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])


@EAGER
def test_steps_count_where_only_tables_are_trained(run_eagerly):
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.0])
    model = make_model()
    for part in (model.bottom_mlp, model.top_mlp):
        part.trainable = False
    model.compile(keras.optimizers.SGD(schedule), run_eagerly=run_eagerly)
    (x, y), tables = make_data(), []
    for _ in range(4):
        model.train_on_batch(x, y)
        tables.append(model.embedding.get_table("C2"))
    assert int(model.optimizer.iterations) == 4
    assert np.abs(tables[1] - tables[0]).max() > 0  # rate 0.5 up to step 1
    np.testing.assert_array_equal(tables[3], tables[2])


def test_a_model_that_is_not_trainable_trains_nothing():
    model = make_model(trainable=False)
    model.compile("adagrad")
    before = model.get_weights()
    model.fit(*make_data(), verbose=0)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.integration
def test_a_frozen_table_keeps_its_rows(tmp_path):
    tables = [
        EmbeddingTable("C0", 11, 4, trainable=False),
        EmbeddingTable("C1", 7, 4),
        EmbeddingTable("C2", 30, 4, trainable=False),
    ]
    spec = tf_dlrm.FeatureSpec(("I0", "I1"), tables)
    plain = make_model()
    model = tf_dlrm.DLRM(spec, (8, 4), (8, 1))
    model.set_weights(plain.get_weights())
    before = tables_of(model)
    for each in (model, plain):
        each.compile("adagrad")
        each.train_on_batch(*make_data())
    after = tables_of(model)
    np.testing.assert_array_equal(after[0], before[0])
    np.testing.assert_array_equal(after[2], before[2])
    np.testing.assert_allclose(after[1], tables_of(plain)[1], atol=1e-6)
    state = model.embedding.get_state()["slots"]
    assert not state["C0"] and state["C1"]
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert [t.trainable for t in again.spec.tables] == [False, True, False]
    again.train_on_batch(*make_data())
    np.testing.assert_array_equal(tables_of(again)[0], before[0])


@pytest.mark.parametrize("optimizer", ["rmsprop", keras.optimizers.Adam(clipnorm=1.0)])
def test_any_optimizer_trains_a_model_whose_tables_are_frozen(optimizer, tmp_path):
    tables = [EmbeddingTable(f"C{i}", 31, 4, trainable=False) for i in range(3)]
    model = tf_dlrm.DLRM(tf_dlrm.FeatureSpec(("I0", "I1"), tables), (8, 4), (8, 1))
    with pytest.raises(ValueError, match=r"unknown or frozen tables: \['C1'\]"):
        model.compile(optimizer, embedding_optimizer={"C1": "sgd"})
    model.compile(optimizer)
    before = model.get_weights()
    model.fit(*make_data(), verbose=0)
    moved = [(a != b).any() for a, b in zip(model.get_weights(), before, strict=True)]
    assert all(moved[:-3]) and not any(moved[-3:])
    model.save(tmp_path / "m.keras")
    keras.models.load_model(tmp_path / "m.keras").train_on_batch(*make_data())


def test_a_frozen_table_gets_no_gradient_in_a_users_model():
    tables = [EmbeddingTable("a", 5, 2, trainable=False), EmbeddingTable("b", 5, 2)]
    layer = layers.EmbeddingCollection(tables)
    with tf.GradientTape() as tape:
        y = tf.reduce_sum(layer(np.array([[1, 2], [3, 2]])))
    gradient = tape.gradient(y, layer.variables[0].value)
    np.testing.assert_array_equal(gradient.indices, [5 + 2])


@pytest.mark.integration
def test_a_frozen_dense_layer_stays_frozen_in_files(tmp_path):
    model = make_model()
    model.bottom_mlp.dense_layers[0].trainable = False
    model.compile("adam")
    model.train_on_batch(*make_data())
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert not again.bottom_mlp.dense_layers[0].trainable
    assert len(again.dense_variables) == len(model.dense_variables) == 6
    for a, b in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    for each in (model, again):
        each.train_on_batch(*make_data())
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_layer_to_freeze_must_exist():
    with pytest.raises(ValueError, match="`frozen` may only name these layers"):
        layers.MLP((8, 4), frozen=("dense_2",))


def test_regularizers_of_kernels_add_their_penalty(tmp_path):
    x, y = make_data()
    mlp = layers.MLP((8, 4), final_activation="relu", kernel_regularizer="l2")
    model = tf_dlrm.DLRM(make_spec(), mlp, (8, 1))
    model.compile(keras.optimizers.SGD(0.0))
    p = tf.reshape(model(x), (-1,))
    cross_entropy = float(keras.losses.binary_crossentropy(y, p))
    kernels = [layer.kernel.numpy() for layer in mlp.dense_layers]
    penalty = 0.01 * sum(
        np.square(kernel.astype(np.float64)).sum() for kernel in kernels
    )
    assert model.train_on_batch(x, y) == pytest.approx(cross_entropy + penalty, 1e-5)
    again = layers.MLP.from_config(mlp.get_config())
    assert again.kernel_regularizer.l2 == pytest.approx(0.01)


@pytest.mark.engines
@EAGER
@pytest.mark.parametrize("rank", [None, 2])
def test_regularizers_of_cross_kernels_decay_them(rank, run_eagerly):
    """SGD on the loss plus 0.1 w^2 ends at the plain step minus rate * 0.2 w."""
    x, y = make_data()
    after = []
    for regularizer in (None, keras.regularizers.L2(0.1)):
        keras.utils.set_random_seed(3)
        cross = layers.CrossInteraction(2, rank, kernel_regularizer=regularizer)
        model = tf_dlrm.DLRM(make_spec(), (8, 4), (8, 1), interaction=cross)
        model.compile(keras.optimizers.SGD(0.5), run_eagerly=run_eagerly)
        model(x)
        before = [w.numpy() for w in cross.weights]
        loss = model.train_on_batch(x, y)
        after.append((float(loss), [w.numpy() for w in cross.weights]))
    (plain_loss, plain), (loss, decayed) = after
    is_kernel = ["bias" not in w.name for w in cross.weights]
    assert sum(is_kernel) == (2 if rank is None else 4)
    penalty = 0.0
    for w, a, b, regular in zip(before, plain, decayed, is_kernel, strict=True):
        w = w.astype(np.float64)
        penalty += 0.1 * (w**2).sum() * regular
        np.testing.assert_allclose(b, a - 0.5 * 0.2 * w * regular, atol=1e-6)
    assert loss == pytest.approx(plain_loss + penalty, 1e-5)


def test_the_regularizer_of_an_interaction_is_saved(tmp_path):
    cross = layers.CrossInteraction(1, kernel_regularizer=keras.regularizers.L1(0.25))
    model = tf_dlrm.DLRM(make_spec(), (8, 4), (8, 1), interaction=cross)
    model.compile("adagrad")
    x, y = make_data()
    model.train_on_batch(x, y)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.interaction.kernel_regularizer.get_config() == {"l1": 0.25}
    assert again.train_on_batch(x, y) == pytest.approx(model.train_on_batch(x, y), 1e-6)
