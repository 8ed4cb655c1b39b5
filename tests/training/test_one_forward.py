"""`fit` runs the model's own forward pass: what a user writes acts there, too."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_model import compiled, make_data, make_model, make_spec, tables_of

import tf_dlrm
from tf_dlrm import EmbeddingTable, layers

EAGER = pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])


class Interaction(keras.layers.Layer):
    """Concatenates, drops out, and adds `penalty` to the loss."""

    def __init__(self, penalty=0.0, rate=0.0, **kwargs):
        super().__init__(**kwargs)
        self.penalty, self.seen = penalty, []
        self.dropout = keras.layers.Dropout(rate, seed=3)

    def call(self, vectors, training=None):
        self.seen.append(training)
        dense, pooled = vectors
        self.add_loss(tf.constant(self.penalty))
        joined = tf.concat([dense, tf.reshape(pooled, (-1, 12))], 1)
        return self.dropout(joined, training=training)

    def compute_output_shape(self, shapes):
        return (None, 16)


@pytest.mark.breadth(1)
@EAGER
def test_a_layer_is_told_that_it_trains(run_eagerly):
    model = make_model(interaction=Interaction())
    model.compile("sgd", run_eagerly=run_eagerly)
    model.interaction.seen.clear()
    model.fit(*make_data(), verbose=0)
    assert set(model.interaction.seen) == {True}
    model.evaluate(*make_data(), verbose=0)
    assert not model.interaction.seen[-1]


@pytest.mark.breadth(1)
@EAGER
def test_an_added_loss_counts_once_everywhere(run_eagerly):
    x, y = make_data()
    model = make_model(interaction=Interaction(penalty=7.0))
    model.compile(keras.optimizers.SGD(0.0), run_eagerly=run_eagerly)
    cross_entropy = keras.losses.binary_crossentropy(
        y, tf.reshape(model(x), (-1,))
    ).numpy()
    history = model.fit(x, y, batch_size=16, epochs=3, verbose=0).history["loss"]
    np.testing.assert_allclose(history, cross_entropy + 7, rtol=1e-5)
    loss = model.evaluate(x, y, batch_size=16, verbose=0)
    assert loss == pytest.approx(cross_entropy + 7, rel=1e-5)
    assert model.train_on_batch(x, y) == pytest.approx(cross_entropy + 7, rel=1e-5)


def step_of_float64(table, ids, rate, gradient):
    """A step of SGD on the rows of one-hot ids, from the gradients of their vectors."""
    result = table.astype(np.float64)
    np.add.at(result, ids, -rate * gradient)
    return result


@pytest.mark.breadth(1)
@EAGER
def test_a_call_of_ones_own_is_what_fit_trains(run_eagerly):
    class Shifted(tf_dlrm.DLRM):
        def call(self, features, training=None):
            ids = (features["sparse_features"] + 1) % [11, 7, 30]
            features = {**features, "sparse_features": ids}
            return super().call(features, training=training)

    x, y = make_data()
    plain = make_model()
    shifted = Shifted(make_spec(), (8, 4), (8, 1))
    shifted.set_weights(plain.get_weights())
    for model in (plain, shifted):
        model.compile("adagrad", run_eagerly=run_eagerly)
    ids = (x["sparse_features"] + 1) % [11, 7, 30]
    plain.fit({**x, "sparse_features": ids}, y, batch_size=16, shuffle=False, verbose=0)
    shifted.fit(x, y, batch_size=16, shuffle=False, verbose=0)
    for a, b in zip(shifted.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.breadth(1)
@EAGER
@pytest.mark.parametrize("signature", ["keras", "named", "any", "without_training"])
def test_a_penalty_on_rows_that_the_loss_looks_up_equals_float64(
    signature, run_eagerly
):
    """L2 of the looked-up rows beside the mean of the predictions times zero."""

    def penalty(model, x):
        return 3.0 * tf.reduce_mean(
            tf.reduce_sum(tf.square(model.embedding(x["sparse_features"])), (1, 2))
        )

    class Keras(tf_dlrm.DLRM):
        def compute_loss(self, x, y, y_pred, sample_weight, training=True):
            return penalty(self, x) + 0.0 * tf.reduce_sum(y_pred)

    class Named(tf_dlrm.DLRM):
        def compute_loss(self, features, label, predicted, weight, training=True):
            return penalty(self, features) + 0.0 * tf.reduce_sum(predicted)

    class Any(tf_dlrm.DLRM):
        def compute_loss(self, x=None, **kwargs):
            return penalty(self, x) + 0.0 * tf.reduce_sum(kwargs["y_pred"])

    class WithoutTraining(tf_dlrm.DLRM):
        def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
            return penalty(self, x) + 0.0 * tf.reduce_sum(y_pred)

    kinds = [Keras, Named, Any, WithoutTraining]
    names = ["keras", "named", "any", "without_training"]
    model = dict(zip(names, kinds))[signature](make_spec(), (8, 4), (8, 1))
    model.compile(keras.optimizers.SGD(0.5), run_eagerly=run_eagerly)
    (x, y), tables = make_data(), tables_of(model)
    model.train_on_batch(x, y)
    for i, (before, after) in enumerate(zip(tables, tables_of(model))):
        ids = x["sparse_features"][:, i]
        expected = step_of_float64(before, ids, 0.5, 6.0 * before[ids] / len(y))
        np.testing.assert_allclose(after, expected, atol=1e-6)
        assert np.abs(after - before).max() > 1e-3


@pytest.mark.integration
def test_a_regularizer_of_pooled_vectors_is_their_mean_penalty():
    spec = make_spec()
    embedding = layers.EmbeddingCollection(
        spec.tables, seed=1, activity_regularizer=keras.regularizers.L2(2.0)
    )
    model = tf_dlrm.DLRM(spec, (8, 4), (8, 1), embedding=embedding)
    plain = tf_dlrm.DLRM(
        spec,
        (8, 4),
        (8, 1),
        embedding=layers.EmbeddingCollection(spec.tables, seed=1),
    )
    plain.set_weights(model.get_weights())
    (x, y), tables = make_data(), tables_of(model)
    for each in (model, plain):
        each.compile(keras.optimizers.SGD(0.5))
        each.train_on_batch(x, y)
    for i, before in enumerate(tables):
        ids = x["sparse_features"][:, i]
        penalty = step_of_float64(before, ids, 0.5, 4.0 * before[ids] / len(y)) - before
        expected = tables_of(plain)[i] + penalty
        np.testing.assert_allclose(tables_of(model)[i], expected, atol=1e-6)
    again = layers.EmbeddingCollection.from_config(embedding.get_config())
    assert again.pooled_regularizer.l2 == pytest.approx(2.0)


def test_weights_that_the_model_computes_get_their_gradient():
    """The factors of the bags are three of the bottom MLP's biases."""

    class Weighted(tf_dlrm.DLRM):
        def call(self, features, training=None):
            ids = features["sparse_features"]
            factors = self.bottom_mlp.dense_layers[0].bias[:3]
            weights = tf.ones_like(ids, tf.float32) * factors
            features = {**features, "sparse_weights": weights}
            return super().call(features, training=training)

    model = Weighted(make_spec(), (8, 4), (8, 1))
    model.compile(keras.optimizers.SGD(1.0))
    x, y = make_data()
    rows = tf.stack(
        [
            tf.gather(t, x["sparse_features"][:, i])
            for i, t in enumerate(tables_of(model))
        ],
        axis=1,
    )
    bias = model.bottom_mlp.dense_layers[0].bias
    with tf.GradientTape() as tape:
        p = model.score(x["dense_features"], rows * bias.value[:3, None], True)
        loss = tf.reduce_mean(keras.losses.binary_crossentropy(y[:, None], p))
    expected = bias.value - tf.convert_to_tensor(tape.gradient(loss, bias.value))
    model.train_on_batch(x, y)
    np.testing.assert_allclose(bias.value, expected, atol=1e-6)


def test_lookups_of_several_forms_in_one_step_are_refused():
    class Mixed(tf_dlrm.DLRM):
        def compute_loss(self, x=None, **kwargs):
            ids = x["sparse_features"]
            padded = self.embedding(ids[:, :, None])
            return super().compute_loss(x=x, **kwargs) + tf.reduce_sum(padded)

    model = Mixed(make_spec(), (8, 4), (8, 1))
    model.compile("sgd")
    with pytest.raises(ValueError, match="must have the same form"):
        model.train_on_batch(*make_data())


@pytest.mark.parametrize("read, match", [
    (lambda layer: tf.gather(layer.lookup_variables[0], [0]), "no gradient would"),
    (lambda layer: layer.get_table("C0"), "cannot send gradients"),
], ids=["variable", "get_table"])  # fmt: skip
def test_reading_the_tables_directly_is_refused(read, match):
    class Raw(tf_dlrm.DLRM):
        def score(self, dense, pooled, training=False):
            row = read(self.embedding)
            return super().score(dense, pooled, training) + 0 * tf.reduce_sum(row)

    model = Raw(make_spec(), (8, 4), (8, 1))
    model.compile("sgd", run_eagerly=True)
    with pytest.raises(ValueError, match=match):
        model.train_on_batch(*make_data())


def test_a_lookup_within_a_function_of_ones_own_is_refused():
    class Nested(tf_dlrm.DLRM):
        def compute_loss(self, x=None, **kwargs):
            look_up = tf.function(lambda ids: tf.reduce_sum(self.embedding(ids)))
            penalty = look_up(x["sparse_features"])
            return super().compute_loss(x=x, **kwargs) + penalty

    model = Nested(make_spec(), (8, 4), (8, 1))
    model.compile("sgd")
    with pytest.raises(ValueError, match="cannot record a lookup"):
        model.train_on_batch(*make_data())


def test_a_call_of_ones_own_is_not_compiled_as_a_whole():
    class Own(tf_dlrm.DLRM):
        def call(self, features, training=None):
            return super().call(features, training=training)

    with pytest.raises(ValueError, match="jit_compile=True"):
        Own(make_spec(), (8, 4), (8, 1)).compile("sgd", jit_compile=True)


# What is frozen


# Weights by logical table


# Batches that cannot be


def test_batches_outside_of_fit_that_are_not_finite_are_seen():
    model = compiled("sgd", max_skipped_batches=3)
    x, y = make_data()
    before = model.get_weights()
    for _ in range(2):
        loss, *_ = model.train_on_batch(x, y * np.nan)
        assert np.isnan(loss)
    assert np.isfinite(model.train_on_batch(x, y)[0])
    for _ in range(2):
        model.train_on_batch(x, y * np.nan)
    with pytest.raises(tf_dlrm.training.NotFiniteError, match="3 batches in a row"):
        model.train_on_batch(x, y * np.nan)
    assert np.abs(model.get_weights()[0] - before[0]).max() > 0


@pytest.mark.integration
def test_a_loop_of_ones_own_sees_a_loss_that_is_not_finite():
    model = compiled("sgd")
    x, y = make_data()
    logs = tf.function(model.train_step)((x, y * np.nan))
    assert np.isnan(logs["loss"])


@pytest.mark.breadth(1)
@pytest.mark.parametrize("low, high", [(-1, 1), (1, 5)])
@pytest.mark.parametrize("method", ["fit", "evaluate", "train_on_batch"])
def test_labels_outside_of_0_and_1_are_refused_for_cross_entropy(low, high, method):
    model = compiled("sgd")
    x, y = make_data()
    before = model.get_weights()
    with pytest.raises(tf.errors.InvalidArgumentError, match="must lie in"):
        getattr(model, method)(x, low + (high - low) * y)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.integration
def test_labels_of_any_size_go_with_another_loss():
    model = make_model()
    model.compile("sgd", loss="mse")
    x, y = make_data()
    assert model.train_on_batch(x, 5 * y) > 1


@pytest.mark.parametrize("wrap", [lambda y: {"click": y}, lambda y: (y, y)])
def test_several_labels_are_refused(wrap):
    model = compiled("sgd")
    x, y = make_data()
    data = tf.data.Dataset.from_tensors((x, wrap(y)))
    with pytest.raises(TypeError, match="The label must be one array"):
        model.fit(data, verbose=0)


# Schedules and names


@keras.saving.register_keras_serializable(package="tests")
class Printing(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that XLA cannot compile."""

    def __call__(self, step):
        rate = tf.numpy_function(
            lambda n: np.float32(0.5 / (1 + n)), [step], tf.float32
        )
        return tf.reshape(rate, ())

    def get_config(self):
        return {}


@pytest.mark.breadth(1)
@pytest.mark.xla
@pytest.mark.parametrize("kind", ["SGD", "Adagrad", "Adam"])
def test_a_schedule_may_do_what_xla_cannot(kind):
    optimizer = getattr(keras.optimizers, kind)(Printing())
    model = make_model()
    model.compile(optimizer)
    before = model.get_weights()
    model.train_on_batch(*make_data())
    for a, b in zip(model.get_weights(), before, strict=True):
        assert np.abs(a - b).max() > 0


@pytest.mark.integration
def test_features_may_have_any_name():
    tables = [EmbeddingTable("user id", 5, 3), EmbeddingTable("Größe", 5, 3)]
    spec = tf_dlrm.FeatureSpec(("d",), tables)
    model = tf_dlrm.DLRM(spec, (8, 4), (8, 1), feature_mlp_dims=(4,))
    model.compile("adagrad")
    x = {"d": np.ones(6), "user id": np.arange(6) % 5, "Größe": np.arange(6) % 5}
    assert np.isfinite(model.train_on_batch(x, np.ones(6)))


KINDS = ["ParameterServerStrategy", "CentralStorageStrategy"]


@pytest.mark.parametrize("kind", KINDS)
def test_replicas_that_are_not_workers_are_refused(kind, monkeypatch):
    """Their tables would come to differ from worker to worker without a word."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    if kind == "CentralStorageStrategy":
        strategy = tf.distribute.experimental.CentralStorageStrategy(["CPU:0"], "CPU:0")
    else:
        monkeypatch.setattr(tf.distribute.experimental, kind, type(strategy))
    with strategy.scope(), pytest.raises(ValueError, match="MirroredStrategy"):
        layers.EmbeddingCollection([EmbeddingTable("a", 5, 4)])
    with strategy.scope(), pytest.raises(ValueError, match="MirroredStrategy"):
        tf_dlrm.sharding.ShardedEmbeddingCollection([EmbeddingTable("a", 5, 4)])
