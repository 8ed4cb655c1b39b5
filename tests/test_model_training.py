"""Training DLRM in stock Keras: optimizers, callbacks, schedules, subclasses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_model import (
    compiled,
    make_data,
    make_model,
    make_spec,
    predictions,
    tables_of,
)

import tf_dlrm
from tf_dlrm import EmbeddingTable, layers, metrics, optimizers


@pytest.mark.breadth(0, 1)
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_fits_what_it_sees(optimizer):
    keras_optimizer = keras.optimizers.get(optimizer)
    keras_optimizer.learning_rate = {"sgd": 1.0, "adagrad": 0.2, "adam": 0.02}[
        optimizer
    ]
    model = compiled(keras_optimizer)
    features, label = make_data()
    history = model.fit(
        features,
        label,
        epochs=60,
        validation_data=(features, label),
        validation_freq=30,
        verbose=0,
    ).history
    assert history["val_log_loss"][-1] < 0.3 < history["log_loss"][0]
    assert history["val_auc"][-1] > 0.95
    result = model.evaluate(features, label, verbose=0, return_dict=True)
    assert result["log_loss"] == pytest.approx(history["val_log_loss"][-1], abs=1e-6)
    assert result["loss"] == pytest.approx(result["log_loss"], abs=1e-6)


@pytest.mark.integration
def test_learning_rate_callbacks_move_both_parts():
    model = compiled(keras.optimizers.SGD(0.5))
    features, label = make_data()
    stop = keras.callbacks.LearningRateScheduler(
        lambda epoch: 0.5 if epoch == 0 else 0.0
    )
    before = [*tables_of(model), model.get_weights()[-1]]
    model.fit(features, label, verbose=0, callbacks=[stop])
    moved = [*tables_of(model), model.get_weights()[-1]]
    assert all(np.abs(a - b).max() > 0 for a, b in zip(before, moved))
    model.fit(features, label, verbose=0, callbacks=[stop], initial_epoch=1, epochs=3)
    for got, expected in zip([*tables_of(model), model.get_weights()[-1]], moved):
        np.testing.assert_array_equal(got, expected)


def test_schedules_move_both_parts():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.5, 0.0])
    model = compiled(keras.optimizers.SGD(schedule))
    features, label = make_data()
    model.train_on_batch(features, label)
    model.train_on_batch(features, label)
    before = tables_of(model)
    model.train_on_batch(features, label)
    for got, expected in zip(tables_of(model), before):
        np.testing.assert_array_equal(got, expected)


def test_embedding_optimizer_of_its_own_and_by_table():
    features, label = make_data()
    model = make_model()
    model.compile("rmsprop", embedding_optimizer=optimizers.RowWiseAdagrad(0.1))
    model.fit(features, label, verbose=0)
    slots = model.embedding.get_state()["slots"]
    assert slots["C0"]["accumulator"].shape == (11, 1)
    model.compile("sgd", embedding_optimizer={"C1": "adam"})
    model.fit(features, label, verbose=0)
    slots = model.embedding.get_state()["slots"]
    assert {name: set(each) for name, each in slots.items()} == {
        "C0": set(),
        "C1": {"momentum", "velocity"},
        "C2": set(),
    }


@pytest.mark.integration
def test_frozen_tables_stay():
    model = make_model()
    model.embedding.trainable = False
    model.compile("sgd")
    before = tables_of(model)
    model.fit(*make_data(), verbose=0)
    for got, expected in zip(tables_of(model), before):
        np.testing.assert_array_equal(got, expected)


def test_untouched_rows_stay_and_no_dense_state_exists():
    model = compiled("adam")
    features, label = make_data()
    features["sparse_features"] %= 5
    before = tables_of(model)
    model.fit(features, label, epochs=3, verbose=0)
    for got, expected in zip(tables_of(model), before):
        np.testing.assert_array_equal(got[5:], expected[5:])
        assert np.abs(got[:5] - expected[:5]).min() > 0
    # The Keras optimizer holds state of the MLPs alone.
    table_values = sum(table.num_parameters for table in model.spec.tables)
    held = sum(int(np.prod(v.shape)) for v in model.optimizer.variables)
    assert held < 2 * model.count_params() - 2 * table_values + 3


@pytest.mark.breadth(1)
@pytest.mark.parametrize(
    "optimizer",
    [keras.optimizers.Adam(weight_decay=0.1), keras.optimizers.SGD(momentum=0.9)],
    ids=["weight_decay", "momentum"],
)
def test_inexact_options_are_refused_unless_tables_have_their_own(optimizer):
    model = make_model()
    with pytest.raises(ValueError, match="embedding_optimizer="):
        model.compile(optimizer)
    model.compile(optimizer, embedding_optimizer="sgd")
    model.fit(*make_data(), verbose=0)
    with pytest.raises(ValueError, match="use_ema=True"):
        model.compile(keras.optimizers.SGD(use_ema=True), embedding_optimizer="sgd")


def test_mixed_precision():
    model = make_model(dtype="mixed_bfloat16")
    model.compile("adagrad", metrics=metrics.click_metrics())
    history = model.fit(*make_data(), epochs=3, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert model(make_data()[0]).dtype == tf.float32
    assert {v.dtype for v in model.trainable_variables} == {"float32"}
    model = make_model(dtype="mixed_float16")
    with pytest.raises(ValueError, match="mixed_bfloat16"):
        model.compile("sgd")


@pytest.mark.slow
def test_same_seed_same_weights():
    def train():
        keras.utils.set_random_seed(5)
        model = compiled("adam")
        model.fit(*make_data(), epochs=2, verbose=0)
        return predictions(model)

    np.testing.assert_array_equal(train(), train())


@pytest.mark.integration
def test_compiling_again_with_the_same_optimizer_goes_on():
    features, label = make_data()
    results = []
    for again in (False, True):
        keras.utils.set_random_seed(1)
        model = compiled("adam")
        model.fit(features, label, verbose=0, shuffle=False)
        if again:
            model.compile(model.optimizer, metrics=["AUC"])
        model.fit(features, label, verbose=0, shuffle=False)
        results.append(tables_of(model))
    for got, expected in zip(*results):
        np.testing.assert_array_equal(got, expected)


def test_compiling_again_keeps_the_tables_own_optimizer():
    model = make_model()
    model.compile("adagrad", embedding_optimizer="sgd")
    own = model.embedding_optimizer
    model.compile(model.optimizer, metrics=["AUC"])
    assert model.embedding_optimizer is own
    model.compile(keras.optimizers.Adagrad())
    assert type(model.embedding_optimizer) is optimizers.SparseAdagrad


def test_tables_of_one_optimizer_name_are_one_update():
    model = make_model()
    names = {"C0": "sgd", "C1": "adagrad", "C2": "adagrad"}
    model.compile("adam", embedding_optimizer=names)
    each = model.embedding_optimizer
    assert each["C1"] is each["C2"] is not each["C0"]


@pytest.mark.breadth(1)
@pytest.mark.parametrize("jit_compile", ["auto", True])
def test_compute_loss_of_a_subclass_sees_the_features(jit_compile):
    class Weighted(tf_dlrm.DLRM):
        def compute_loss(self, x=None, **kwargs):
            scale = tf.reduce_mean(x["dense_features"]) * 0 + 2.0
            return super().compute_loss(x=x, **kwargs) * scale

    model = Weighted(make_spec(), (8, 4), (8, 1))
    model.compile("sgd", metrics=[metrics.LogLoss()], jit_compile=jit_compile)
    history = model.fit(*make_data(), verbose=0).history
    assert history["loss"][0] == pytest.approx(2 * history["log_loss"][0], rel=1e-4)


def test_options_that_are_off_are_no_options():
    for optimizer in (keras.optimizers.Adam(weight_decay=0.0), keras.optimizers.SGD()):
        model = compiled(optimizer)
        name = f"Sparse{type(optimizer).__name__}"
        assert type(model.embedding_optimizer).__name__ == name


def test_a_negative_learning_rate_is_refused():
    with pytest.raises(ValueError, match="`learning_rate` must be finite"):
        optimizers.SparseSGD(-1.0)


def test_a_frozen_mlp_object_is_frozen():
    frozen = layers.MLP((8, 4), final_activation="relu", trainable=False)
    model = tf_dlrm.DLRM(make_spec(), frozen, (8, 1))
    model.compile("sgd")
    assert len(model.dense_variables) == 4


def test_a_following_optimizer_says_so_when_its_rate_is_set():
    model = make_model()
    following = optimizers.SparseSGD(None)
    model.compile("adagrad", embedding_optimizer=following)
    with pytest.raises(ValueError, match="follows the learning rate"):
        following.learning_rate = 0.1


@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
def test_a_collection_called_twice_in_a_users_model_trains_correctly(run_eagerly):
    layer = layers.EmbeddingCollection([EmbeddingTable("a", 10, 2)])
    inputs = [keras.Input((1,), dtype="int64") for _ in range(2)]
    vectors = [keras.layers.Flatten()(layer(each)) for each in inputs]
    head = keras.layers.Dense(1, kernel_initializer="ones", trainable=False)
    model = keras.Model(inputs, head(keras.layers.Concatenate()(vectors)))
    model.compile(keras.optimizers.Adagrad(0.1), "mse", run_eagerly=run_eagerly)
    first, second = np.array([[3], [3], [4]]), np.array([[3], [4], [5]])
    y = np.array([[1.0], [2.0], [3.0]])
    rows = layer.get_table("a").astype(np.float64)
    error = 2 * ((rows[first[:, 0]] + rows[second[:, 0]]).sum(1, keepdims=True) - y) / 3
    g = np.zeros_like(rows)
    for ids in (first, second):
        np.add.at(g, ids[:, 0], error)
    expected = rows - 0.1 * g / np.sqrt(0.1 + g**2 + 1e-7)
    model.train_on_batch([first, second], y)
    np.testing.assert_allclose(layer.get_table("a"), expected, atol=1e-5)


def test_eager_calls_of_other_tapes_leave_the_gradient_sparse():
    layer = layers.EmbeddingCollection([EmbeddingTable("a", 10, 2)])
    for _ in range(2):
        layer(np.array([[3]]))  # under no tape
        with tf.GradientTape() as tape:
            y = tf.reduce_sum(layer(np.array([[3], [3]])))
        gradient = tape.gradient(y, layer.variables[0].value)
        assert isinstance(gradient, tf.IndexedSlices)
        np.testing.assert_array_equal(gradient.indices, [3])


def test_a_collection_called_in_a_nested_graph_too_trains_correctly():
    layer = layers.EmbeddingCollection([EmbeddingTable("a", 10, 2)])
    nested = tf.function(lambda ids: 2.0 * layer(ids))

    @tf.function
    def gradient_rows(ids):
        with tf.GradientTape() as tape:
            y = layer(ids) + nested(ids) + 4.0 * layer(ids)
        gradient = tape.gradient(y, layer.variables[0].value)
        return getattr(gradient, "indices", tf.constant([])), gradient

    repeated, gradient = gradient_rows(tf.constant([[3], [3], [4]]))
    assert len(set(repeated.numpy())) == len(repeated)
    g = tf.convert_to_tensor(gradient)[:, 0]
    np.testing.assert_array_equal(g, np.bincount([3, 3, 4], minlength=11) * 7)


def test_a_score_that_leaves_the_tables_out_trains_the_rest():
    class Ablated(tf_dlrm.DLRM):
        def score(self, dense, pooled, training=False):
            return super().score(dense, tf.zeros_like(pooled), training)

    spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable("a", 5, 4)])
    model = Ablated(spec, (8, 4), (8, 1))
    model.compile("sgd")
    x = {"dense_features": np.ones((9, 1)), "sparse_features": np.zeros((9, 1), int)}
    tables, weights = model.embedding.get_table("a"), model.top_mlp.get_weights()
    model.fit(x, np.ones(9), verbose=0)
    np.testing.assert_array_equal(model.embedding.get_table("a"), tables)
    # The bias of the logit moves whatever comes in.
    assert not np.array_equal(model.top_mlp.get_weights()[-1], weights[-1])


@pytest.mark.integration
def test_functions_that_run_eagerly_train_alike():
    features, label = make_data()
    results = []
    for eagerly in (False, True):
        keras.utils.set_random_seed(1)
        model = compiled("adagrad")
        tf.config.run_functions_eagerly(eagerly)
        try:
            model.fit(features, label, verbose=0, shuffle=False)
        finally:
            tf.config.run_functions_eagerly(False)
        results.append(tables_of(model))
    for got, expected in zip(*results):
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.integration
def test_dropout_goes_on_alike_whether_the_datasets_length_is_known():
    """At the end of one of unknown length Keras begins a step with no batch left."""
    features, label = make_data()
    known = tf.data.Dataset.from_tensor_slices((features, label)).batch(16)
    results = []
    for data in (known, known.filter(lambda x, y: True)):
        keras.utils.set_random_seed(1)
        top = layers.MLP((8, 1), dropout=0.5)
        model = tf_dlrm.DLRM(make_spec(), (8, 4), top)
        model.compile(keras.optimizers.SGD(0.1))
        model.fit(data, epochs=2, verbose=0)
        seeds = [v.numpy() for v in model.non_trainable_variables]
        assert seeds
        results.append([*seeds, *tables_of(model)])
    for got, expected in zip(*results):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.integration
def test_the_loss_of_an_epoch_weighs_batches_by_their_rows():
    features, label = make_data()
    features = {name: values[:39] for name, values in features.items()}
    label = np.r_[np.zeros(32), np.ones(7)].astype("float32")
    model = make_model()
    # Far from 0.5, so that the two batches' losses differ.
    model.top_mlp.dense_layers[-1].bias.assign([3.0])
    model.compile(keras.optimizers.SGD(0.0), metrics=[metrics.LogLoss()])
    history = model.fit(features, label, shuffle=False, verbose=0).history
    assert history["loss"][0] == pytest.approx(history["log_loss"][0], rel=1e-5)
    result = model.evaluate(features, label, verbose=0, return_dict=True)
    assert result["loss"] == pytest.approx(result["log_loss"], rel=1e-5)


@pytest.mark.xla
def test_xla_goes_off_and_on_without_compiling_anew():
    models = []
    for options in ({}, {"jit_compile": False}):
        keras.utils.set_random_seed(1)
        models.append(compiled("adam", **options))
    model, other = models
    model.use_xla(False)
    model.fit(*make_data(), verbose=0, shuffle=False)
    other.fit(*make_data(), verbose=0, shuffle=False)
    for found, expected in zip(tables_of(model), tables_of(other), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert model.get_compile_config()["jit_compile"] == "auto"
    model.use_xla(True)
    for each in (model, other):
        each.fit(*make_data(), verbose=0, shuffle=False)
    for found, expected in zip(tables_of(model), tables_of(other), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert int(model.optimizer.iterations) == int(other.optimizer.iterations) == 4
