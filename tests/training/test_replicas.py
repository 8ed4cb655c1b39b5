"""Several devices train the weights of one, or what cannot be is refused by name."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices

import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec
from tf_dlrm.runtime import xla
from tf_dlrm.sharding import ShardedEmbeddingCollection

TABLES = [EmbeddingTable(f"C{i}", size, 4) for i, size in enumerate((11, 7, 30))]
SPEC = FeatureSpec(("I0", "I1"), TABLES)
PLANS = pytest.mark.parametrize("plan", [None, "table_wise", "row_wise"])


def make_model(plan=None, kind=tf_dlrm.DLRM, **options):
    keras.utils.set_random_seed(5)
    embedding = tf_dlrm.layers.EmbeddingCollection(TABLES, seed=2)
    if plan is not None:
        embedding = ShardedEmbeddingCollection(TABLES, plan=plan, seed=2)
    return kind(SPEC, (8, 4), (8, 1), embedding=embedding, **options)


def make_batches(num_batches=3, num_rows=9):
    """Batches that do not divide by two."""
    rng = np.random.default_rng(0)
    for _ in range(num_batches):
        ids = np.stack(
            [rng.integers(0, t.vocabulary_size, num_rows) for t in TABLES], 1
        )
        dense = rng.normal(size=(num_rows, 2)).astype("float32")
        label = rng.integers(0, 2, num_rows).astype("float32")
        yield {"dense_features": dense, "sparse_features": ids}, label


def make_dataset():
    batches = list(make_batches())
    features = {k: np.concatenate([x[k] for x, _ in batches]) for k in batches[0][0]}
    label = np.concatenate([y for _, y in batches])
    return tf.data.Dataset.from_tensor_slices((features, label)).batch(9)


def train_on_both(make, optimizer="sgd", **options):
    """Weights after a `fit` on one device, and under MirroredStrategy on two."""
    results = []
    for strategy in (tf.distribute.get_strategy(), tf.distribute.MirroredStrategy()):
        with strategy.scope(), xla.disabled():
            model = make()
            model.compile(keras.optimizers.get(optimizer), **options)
        with xla.disabled():
            history = model.fit(make_dataset(), epochs=2, shuffle=False, verbose=0)
        results.append((model, model.get_weights(), history.history["loss"]))
    (_, one, loss), (model, two, loss_of_two) = results
    for a, b in zip(two, one, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(loss_of_two, loss, rtol=1e-5)
    return model


class PlainMean(tf_dlrm.DLRM):
    """A loss that knows nothing of replicas."""

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return tf.reduce_mean(tf.square(y - y_pred))


class WithPenalty(tf_dlrm.DLRM):
    """Keras' loss, and the squares of the looked-up rows."""

    def compute_loss(self, x=None, **kwargs):
        pooled = self.embedding(x["sparse_features"])
        penalty = tf.reduce_mean(tf.reduce_sum(tf.square(pooled), (1, 2)))
        return super().compute_loss(x=x, **kwargs) + penalty


@pytest.mark.breadth(1, 5)
@PLANS
@pytest.mark.parametrize("kind", [PlainMean, WithPenalty, tf_dlrm.DLRM])
@on_devices(2)
def test_any_loss_that_is_a_mean_trains_the_weights_of_one_device(kind, plan):
    train_on_both(lambda: make_model(plan, kind))


@pytest.mark.integration
@PLANS
@on_devices(2)
def test_a_call_of_ones_own_trains_the_weights_of_one_device(plan):
    class Shifted(tf_dlrm.DLRM):
        def call(self, features, training=None):
            ids = (features["sparse_features"] + 1) % [11, 7, 30]
            features = {**features, "sparse_features": ids}
            return super().call(features, training=training)

    train_on_both(lambda: make_model(plan, Shifted), "adagrad")


@pytest.mark.integration
@on_devices(2)
def test_regularizers_and_added_losses_count_once():
    class Penalized(keras.layers.Layer):
        def call(self, vectors):
            dense, pooled = vectors
            self.add_loss(tf.reduce_sum(tf.square(dense)) * 0.0 + 1.5)
            return tf.concat([dense, tf.reshape(pooled, (-1, 12))], 1)

        def compute_output_shape(self, shapes):
            return (None, 16)

    def make():
        keras.utils.set_random_seed(5)
        mlp = tf_dlrm.layers.MLP(
            (8, 4), final_activation="relu", kernel_regularizer="l2"
        )
        embedding = tf_dlrm.layers.EmbeddingCollection(TABLES, seed=2)
        return tf_dlrm.DLRM(
            SPEC, mlp, (8, 1), interaction=Penalized(), embedding=embedding
        )

    train_on_both(make)


@pytest.mark.integration
@PLANS
@on_devices(2)
def test_penalties_of_cross_kernels_on_two_devices(plan):
    def make():
        cross = tf_dlrm.layers.CrossInteraction(2, 3, kernel_regularizer="l2")
        return make_model(plan, interaction=cross)

    train_on_both(make)


@pytest.mark.integration
@PLANS
@on_devices(2)
def test_frozen_tables_and_steps_on_two_devices(plan):
    def make():
        model = make_model(plan)
        model.bottom_mlp.trainable = model.top_mlp.trainable = False
        return model

    model = train_on_both(make, "adagrad")
    assert int(model.optimizer.iterations.numpy()) == 6


@pytest.mark.integration
@PLANS
@on_devices(2)
def test_weights_of_the_best_epoch_are_those_of_all_tables(plan):
    tables = []
    with tf.distribute.MirroredStrategy().scope(), xla.disabled():
        model = make_model(plan)
        model.compile(keras.optimizers.SGD(0.5))
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: tables.append(model.get_weights())
    )
    stop = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=1, restore_best_weights=True
    )
    with xla.disabled():
        model.fit(make_dataset(), epochs=4, verbose=0, callbacks=[keep, stop])
    assert len(tables) == 2 and np.abs(tables[1][-1] - tables[0][-1]).max() > 0
    assert model.count_params() == sum(each.size for each in tables[0])
    for a, b in zip(model.get_weights(), tables[0], strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(model.embedding.get_table("C2"), tables[0][-1])


@pytest.mark.integration
@pytest.mark.parametrize("option", ["clipnorm", "clipvalue", "global_clipnorm"])
@on_devices(2)
def test_clipping_is_refused_under_replicas(option):
    with tf.distribute.MirroredStrategy().scope():
        model = make_model()
        with pytest.raises(ValueError, match=f"`{option}=0.1` of SGD is not supported"):
            model.compile(
                keras.optimizers.SGD(0.1, **{option: 0.1}), embedding_optimizer="sgd"
            )


@pytest.mark.integration
@on_devices(2)
def test_sums_hidden_in_a_list_of_losses_are_refused():
    with tf.distribute.MirroredStrategy().scope():
        model = make_model()
        loss = [keras.losses.BinaryCrossentropy(reduction="sum")]
        with pytest.raises(ValueError, match="must be a mean over the batch"):
            model.compile("sgd", loss=loss)


@pytest.mark.integration
@on_devices(2)
def test_a_loss_of_ones_own_by_row_is_refused():
    class Own(tf_dlrm.DLRM):
        def compute_loss(self, x=None, y=None, y_pred=None, **kwargs):
            return keras.losses.binary_crossentropy(y, y_pred)

    with tf.distribute.MirroredStrategy().scope(), xla.disabled():
        model = make_model(kind=Own)
        model.compile("sgd")
        with pytest.raises(ValueError, match="must return a scalar, the mean over"):
            model.fit(make_dataset(), verbose=0)


@pytest.mark.integration
@on_devices(2)
def test_what_was_made_outside_of_the_scope_is_refused():
    outside = make_model()
    strategy = tf.distribute.MirroredStrategy()
    with strategy.scope():
        with pytest.raises(ValueError, match="created under the same strategy"):
            outside.compile("sgd")
        embedding = outside.embedding
        with pytest.raises(ValueError, match="A DLRM needs an embedding layer"):
            tf_dlrm.DLRM(SPEC, (8, 4), (8, 1), embedding=embedding)
