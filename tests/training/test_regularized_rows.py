"""Models of regularized tables: losses, replicas and files, against float64."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices
from helpers.oracle import NumpyDLRM, sgd
from helpers.regularizers import (
    L1,
    L2,
    penalty_and_gradient,
)
from helpers.sharded_model import strategy_of

import tf_dlrm
from tf_dlrm import EmbeddingTable
from tf_dlrm.layers import EmbeddingCollection
from tf_dlrm.sharding import ShardedEmbeddingCollection

# In a model


SIZES = (11, 7, 30)


def make_spec(**options):
    """Features "b" and "c" read one table, in bags."""
    l2 = keras.regularizers.L2(L2)
    tables = [
        EmbeddingTable("a", SIZES[0], 4, regularizer=l2, **options),
        EmbeddingTable("bc", SIZES[1], 4, "mean", features=("b", "c"), regularizer=l2),
        EmbeddingTable("d", SIZES[2], 4, regularizer=keras.regularizers.L1(L1)),
    ]
    return tf_dlrm.FeatureSpec(("x", "y"), tables)


def make_data(form="padded", num_rows=24):
    rng = np.random.default_rng(4)
    sizes = (SIZES[0], SIZES[1], SIZES[1], SIZES[2])
    ids = np.stack([rng.integers(-1, size // 2, (num_rows, 3)) for size in sizes], 1)
    weights = rng.uniform(0.5, 2, ids.shape).astype("float32")
    weights[:4] = 0.0  # rows that are read count, whatever their weights
    dense = rng.normal(size=(num_rows, 2)).astype("float32")
    label = (rng.random(num_rows) < 0.5).astype("float32")
    features = {"dense_features": dense, "sparse_features": ids}
    features["sparse_weights"] = weights
    if form == "ragged":
        lengths = (ids >= 0).sum(2).reshape(-1)
        for name in ("sparse_features", "sparse_weights"):
            bags = tf.RaggedTensor.from_row_lengths(
                tf.constant(features[name][ids >= 0]), lengths
            )
            bags = tf.RaggedTensor.from_uniform_row_length(bags, 4)
            features[name] = bags
    if form == "sparse":
        where = np.stack(np.nonzero(ids >= 0), 1)
        for name in ("sparse_features", "sparse_weights"):
            features[name] = tf.SparseTensor(where, features[name][ids >= 0], ids.shape)
    return features, label, rng.uniform(0.5, 2, num_rows).astype("float32"), ids


def make_model(cls=tf_dlrm.DLRM, **options):
    keras.utils.set_random_seed(3)
    return cls(make_spec(), (6, 4), (6, 1), **options)


class Oracle:
    """The same model in float64, with SGD and the penalty on dense tables."""

    def __init__(self, model, factor=1.0):
        tables = [model.embedding.get_table(t.name) for t in model.spec.tables]
        mlps = [
            [(d.kernel.numpy(), d.bias.numpy()) for d in mlp.dense_layers]
            for mlp in (model.bottom_mlp, model.top_mlp)
        ]
        combiners = [table.combiner for table in model.spec.tables]
        self.model = NumpyDLRM(tables, combiners, [0, 1, 1, 2], *mlps)
        self.regularizers = [table.regularizer for table in model.spec.tables]
        self.factor = factor  # of the penalty in the loss

    def penalties(self, ids):
        columns = ([0], [1, 2], [3])
        return [
            penalty_and_gradient(table, ids[:, own][ids[:, own] >= 0], regularizer)
            for table, own, regularizer in zip(
                self.model.tables, columns, self.regularizers, strict=True
            )
        ]

    def loss(self, features, label, row_weights, ids):
        bags = [[bag[bag >= 0] for bag in row] for row in ids]
        weights = [
            [w[bag >= 0] for w, bag in zip(ws, row, strict=True)]
            for ws, row in zip(features["sparse_weights"], ids, strict=True)
        ]
        self.batch = features["dense_features"], bags, label, weights
        p = self.model.forward(self.batch[0], bags, weights)[:, 0]
        entropy = -np.where(label > 0, np.log(p), np.log(1 - p)) * row_weights
        penalty = sum(value for value, _ in self.penalties(ids))
        return entropy.mean() + self.factor * penalty

    def train(self, features, label, row_weights, ids):
        loss = self.loss(features, label, row_weights, ids)
        penalties = self.penalties(ids)
        update = sgd(0.1)

        def penalized(i, parameter, gradient):
            if i < len(penalties):
                gradient = gradient + self.factor * penalties[i][1]
            update(i, parameter, gradient)

        self.model.step(penalized, *self.batch, row_scale=row_weights)
        return loss

    def check(self, model, atol=2e-6):
        for table, expected in zip(model.spec.tables, self.model.tables, strict=True):
            values = model.embedding.get_table(table.name)
            np.testing.assert_allclose(values, expected, atol=atol)
        dense = self.model.parameters()[len(self.model.tables) :]
        for value, expected in zip(model.dense_variables, dense, strict=True):
            np.testing.assert_allclose(value.numpy(), expected, atol=atol)


def batches(data, size):
    features, label, row_weights, ids = data
    for a in range(0, len(label), size):
        part = {k: v[a : a + size] for k, v in features.items()}
        yield part, label[a : a + size], row_weights[a : a + size], ids[a : a + size]


def check_training(model, oracle, form, **options):
    """Train and evaluate; the losses, too, are those of float64."""
    plain, own = make_data(), make_data(form)
    model.compile(keras.optimizers.SGD(0.1), **options)
    rows = tf.data.Dataset.from_tensor_slices(own[:3]).batch(10)
    sizes = [10, 10, 4]
    losses = [oracle.train(*batch) for batch in batches(plain, 10)]
    history = model.fit(rows, verbose=0).history["loss"]
    np.testing.assert_allclose(history, np.average(losses, weights=sizes), rtol=1e-5)
    oracle.check(model)
    losses = [oracle.loss(*batch) for batch in batches(plain, 10)]
    evaluated = model.evaluate(rows, verbose=0)
    assert evaluated == pytest.approx(np.average(losses, weights=sizes), rel=1e-5)


@pytest.mark.parametrize(
    ("form", "options"),
    [
        pytest.param(
            *("padded", {"jit_compile": False}), marks=pytest.mark.integration
        ),
        ("ragged", {"run_eagerly": True}),
        ("sparse", {"jit_compile": False, "steps_per_execution": 2}),
        pytest.param(
            *("ragged", {"jit_compile": "auto"}),
            marks=[pytest.mark.integration, pytest.mark.xla],
        ),
        pytest.param(
            *("padded", {"jit_compile": True}),
            marks=[pytest.mark.integration, pytest.mark.xla],
        ),
    ],
    ids=["graph", "eager", "steps", "xla", "program"],
)
def test_fit_and_evaluate_equal_float64(form, options):
    model = make_model()
    check_training(model, Oracle(model), form, **options)


class Doubled(tf_dlrm.DLRM):
    """A loss that weighs the penalty."""

    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        return loss + sum(self.losses)


class Ignoring(tf_dlrm.DLRM):
    def compute_loss(self, x, y, y_pred, sample_weight, training=True):
        loss = keras.losses.binary_crossentropy(y, y_pred) * sample_weight
        return tf.reduce_mean(loss)


class Twice(tf_dlrm.DLRM):
    """Looks the same rows up twice, the second time without use."""

    def call(self, features, training=None):
        batch = self.standardize(features)
        self.embedding(batch.ids, weights=batch.weights)
        return super().call(features, training=training)


@pytest.mark.parametrize(
    ("cls", "factor"),
    [(Doubled, 2.0), (Ignoring, 0.0), (Twice, 1.0)],
    ids=["doubled", "ignored", "twice"],
)
def test_models_of_the_user_equal_float64(cls, factor):
    model = make_model(cls)
    check_training(model, Oracle(model, factor), "padded", run_eagerly=True)


def test_a_loss_with_the_penalty_of_some_lookups_is_refused():
    class Partial(tf_dlrm.DLRM):
        def compute_loss(self, x, y, y_pred, sample_weight, training=True):
            loss = super().compute_loss(x, y, y_pred, sample_weight, training)
            pooled = self.embedding(x["sparse_features"])
            return loss + tf.reduce_sum(pooled)

    model = make_model(Partial)
    model.compile("sgd", run_eagerly=True)
    features, label, _, _ = make_data()
    with pytest.raises(ValueError, match="only some of the 2 lookups"):
        model.train_on_batch(features, label)


@pytest.mark.parametrize("whole", [True, False], ids=["model", "layer"])
def test_frozen_tables_have_no_penalty(whole):
    model = make_model()
    if whole:
        model.trainable = False
    else:
        model.embedding.trainable = False
    features, label, _, _ = make_data()
    assert model.embedding.penalty([features["sparse_features"]]) is None
    model.compile("sgd", jit_compile=False)
    before = [model.embedding.get_table(t.name) for t in model.spec.tables]
    model.train_on_batch(features, label)
    after = [model.embedding.get_table(t.name) for t in model.spec.tables]
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("run_eagerly", [True, False], ids=["eager", "graph"])
def test_a_batch_without_rows_changes_nothing(run_eagerly):
    model = make_model()
    model.compile("sgd", jit_compile=False, run_eagerly=run_eagerly)
    features, label, _, _ = make_data()
    before = model.get_weights()
    empty = {name: values[:0] for name, values in features.items()}
    assert np.isnan(float(model.train_on_batch(empty, label[:0])))
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.isfinite(float(model.train_on_batch(features, label)))


def check_replicas(plan):
    """Penalties on pooled vectors count once, too."""
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    features, label, row_weights, _ = make_data("ragged", 25)
    data = tf.data.Dataset.from_tensor_slices((features, label, row_weights)).batch(9)
    tables = make_spec().tables
    options = {"seed": 1, "activity_regularizer": keras.regularizers.L2(0.1)}
    results = []
    for num_devices in (1, 2):
        with strategy_of(num_devices).scope():
            if plan != "copies" and num_devices > 1:
                layer = ShardedEmbeddingCollection(tables, plan, **options)
            else:
                layer = EmbeddingCollection(tables, **options)
            model = make_model(embedding=layer)
            model.compile(keras.optimizers.Adagrad(0.1, 0.01), jit_compile=False)
        losses = model.fit(data, epochs=2, verbose=0).history["loss"]
        losses.append(model.evaluate(data, verbose=0))
        results.append((losses, model.get_weights()))
    for a, b in zip(*map(tf.nest.flatten, results), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


MIXED = {"a": "column_wise", "bc": "row_wise", "d": "data_parallel"}


@pytest.mark.integration
@pytest.mark.parametrize("plan", ["copies", MIXED], ids=["copies", "mixed"])
def test_replicas_equal_one_device(plan):
    on_devices(2)(check_replicas)(plan)


# Other Keras models, files, and refusals


def test_another_keras_model_trains_with_the_penalty():
    """Its stock Adagrad gets a dense gradient, in which no row repeats."""
    layer = EmbeddingCollection(
        [EmbeddingTable("t", 9, 4, regularizer=keras.regularizers.L2(L2))], seed=1
    )
    inputs = keras.Input((1, 3), dtype="int64")
    outputs = keras.ops.sum(layer(inputs), axis=(1, 2))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adagrad(0.1), lambda y, p: keras.ops.mean(p))
    table = layer.get_table("t").astype("float64")
    ids = np.array([[[1, 1, 2]], [[2, 5, -1]]])
    loss = model.train_on_batch(ids, np.zeros(2))
    value, gradient = penalty_and_gradient(
        table, [1, 2, 5], layer.tables[0].regularizer
    )
    pooled = table[[1, 1, 2, 2, 5]].sum() / 2
    assert loss == pytest.approx(pooled + value, rel=1e-5)
    np.add.at(gradient, [1, 1, 2, 2, 5], 0.5)
    expected = table - 0.1 * gradient / np.sqrt(0.1 + gradient**2 + 1e-7)
    np.testing.assert_allclose(layer.get_table("t"), expected, atol=1e-6)


@pytest.mark.parametrize("form", ["keras", "checkpoint"])
def test_saved_training_continues_as_if_not_interrupted(form, tmp_path):
    features, label, _, _ = make_data()
    models = [make_model(), make_model()]
    for model in models:
        model.compile("adagrad", run_eagerly=True)
        model.train_on_batch(features, label)
    straight, model = models
    if form == "keras":
        model.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        assert again.spec == model.spec
    else:
        path = tf.train.Checkpoint(model=model).write(str(tmp_path / "c"))
        again = make_model()
        again.compile("adagrad", run_eagerly=True)
        tf.train.Checkpoint(model=again).read(path).expect_partial()
    losses = [m.train_on_batch(features, label) for m in (straight, again)]
    np.testing.assert_array_equal(*losses)
    for a, b in zip(again.get_weights(), straight.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
