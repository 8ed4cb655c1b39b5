"""`SparseSGD(l2=...)` equals dense SGD with the penalty wherever a row is read."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_model import make_data, make_model, tables_of

import tf_dlrm
from tf_dlrm import EmbeddingTable, optimizers
from tf_dlrm.layers import EmbeddingCollection
from tf_dlrm.runtime import accelerators

L2 = 0.05
SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.5, 2, 0.7)


def make_tables(**options):
    """Two widths, and a table that is not trained."""
    return [
        EmbeddingTable("a", 40, 3, features=["a1", "a2"], **options),
        EmbeddingTable("frozen", 9, 3, trainable=False),
        EmbeddingTable("b", 13, 5, combiner="mean"),
        EmbeddingTable("c", 300, 3),
    ]


def rate_at(rate, step):
    return float(rate(step)) if callable(rate) else rate


@pytest.mark.engines
@pytest.mark.breadth(3, 4)
@pytest.mark.parametrize(
    ("rate", "l2"),
    # The last ones shrink rows to 0.01, to nothing, and to their negative.
    [(0.5, 0.05), (SCHEDULE, 0.05), (0.5, 1.98), (0.5, 2.0), (0.5, 3.0)],
    ids=["float", "schedule", "fast", "zero", "negative"],
)
@pytest.mark.parametrize("by_table", [False, True], ids=["one", "by_table"])
def test_lookups_and_tables_equal_float64(rate, l2, by_table):
    layer = EmbeddingCollection(make_tables(), seed=2)
    optimizer = optimizers.SparseSGD(rate, l2=l2)
    decays = {"a": l2, "b": l2, "c": l2, "frozen": 0.0}
    if by_table:  # the third one shares a variable with the first
        own = optimizers.SparseSGD(rate, l2=0.3)
        optimizer = {"a": optimizer, "b": optimizers.SparseSGD(rate), "c": own}
        decays |= {"b": 0.0, "c": 0.3}
    layer.build_optimizer(optimizer)
    expected = {t.name: layer.get_table(t.name).astype("float64") for t in layer.tables}
    apply = tf.function(layer.apply_gradients, reduce_retracing=True)
    rng = np.random.default_rng(3)
    owners = ("a", "a", "frozen", "b", "c")
    for step in range(12):
        ids = np.stack([rng.integers(-1, n // 2, (6, 3)) for n in (40, 40, 9, 13, 300)])
        ids = ids.transpose(1, 0, 2)
        pooled, gradients = layer(ids), []
        dense = {name: np.zeros_like(table) for name, table in expected.items()}
        for i, name in enumerate(owners):
            g = rng.normal(size=(6, expected[name].shape[1])).astype("float32")
            gradients.append(tf.constant(g))
            for vector, bag, own in zip(pooled[i], ids[:, i], g, strict=True):
                bag = bag[bag >= 0]
                share = 1 / max(len(bag), 1) if name == "b" else 1.0
                sums = share * expected[name][bag].sum(0)
                np.testing.assert_allclose(vector, sums, rtol=1e-5, atol=1e-5)
                np.add.at(dense[name], bag, share * own)
        apply(gradients, tf.constant(ids))
        now = rate_at(rate, step)
        for name, table in expected.items():
            if name != "frozen":
                table -= now * (dense[name] + decays[name] * table)
        if step % 5 == 4:  # at the other steps, nothing reads the tables
            for name, table in expected.items():
                np.testing.assert_allclose(layer.get_table(name), table, atol=1e-5)


def test_rows_that_no_batch_reads_decay_by_the_closed_form():
    """Tiny steps: in float32, the scale would be off by several percent."""
    layer = EmbeddingCollection([EmbeddingTable("t", 50, 2)], seed=2)
    layer.build_optimizer(optimizers.SparseSGD(0.01, l2=1e-5))
    before = layer.get_table("t")
    none = tf.zeros((1, 1, 2)), tf.constant([[-1]])

    @tf.function
    def train():
        for _ in tf.range(20_000):
            layer.apply_gradients(*none)

    train()
    expected = before * (1 - 1e-7) ** 20_000
    np.testing.assert_allclose(layer.get_table("t"), expected, rtol=3e-7)
    assert np.abs(expected / before - 1).max() > 1e-3


@pytest.mark.engines
def test_with_a_regularizer_of_the_rows_equals_float64():
    l2 = keras.regularizers.L2(0.2)
    layer = EmbeddingCollection([EmbeddingTable("t", 20, 2, regularizer=l2)], seed=2)
    layer.build_optimizer(optimizers.SparseSGD(0.1, l2=0.3))
    expected = layer.get_table("t").astype("float64")
    for ids in ([3, 4, 3], [4, 5, 5], [3, 7, 9]):
        penalty = layer.penalty([np.array(ids)[:, None]])
        rows = np.unique(ids)
        value = 0.2 * (expected[rows] ** 2).sum()
        assert float(penalty) == pytest.approx(value, rel=1e-5)
        gradient = np.zeros_like(expected)
        gradient[rows] = 0.4 * expected[rows]
        np.add.at(gradient, ids, 1.0)
        layer.apply_gradients(tf.ones((3, 1, 2)), tf.constant(ids)[:, None])
        expected -= 0.1 * (gradient + 0.3 * expected)
    np.testing.assert_allclose(layer.get_table("t"), expected, atol=1e-6)


# In a model


def compiled(optimizer, **options):
    keras.utils.set_random_seed(5)
    model = make_model()
    options = {"jit_compile": False, **options}
    model.compile(keras.optimizers.SGD(0.1), embedding_optimizer=optimizer, **options)
    return model


def lazy(**options):
    return compiled(optimizers.SparseSGD(0.5, l2=L2), **options)


def dense(**options):
    return compiled(optimizers.DenseSGD(0.5, l2=L2), **options)


def dataset(spoiled=()):
    features, label = make_data()
    values = features["dense_features"].copy()
    values[list(spoiled)] = np.nan
    features = {
        "dense_features": values,
        "sparse_features": features["sparse_features"] // 2,
    }
    return tf.data.Dataset.from_tensor_slices((features, label)).batch(16)


def check_equal(model, expected):
    for a, b in zip(tables_of(model), tables_of(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    for a, b in zip(model.dense_variables, expected.dense_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=2e-6)


def through_checkpoint(model, folder):
    """Another model, which knows nothing of scales, after it read a checkpoint."""
    path = tf.train.Checkpoint(model=model).write(str(folder / "c"))
    again = compiled("sgd")
    tf.train.Checkpoint(model=again).read(path).expect_partial()
    return again.get_weights()


def through_file(model, folder):
    model.save(folder / "m.keras")
    return keras.models.load_model(folder / "m.keras").get_weights()


def through_weights(model, folder):
    model.save_weights(folder / "m.weights.h5")
    again = compiled("sgd")
    again.load_weights(folder / "m.weights.h5")
    return again.get_weights()


def exported(model, folder):
    path = tf_dlrm.export_saved_model(model, folder / "export")
    signature = tf.saved_model.load(str(path)).signatures["serving_ragged"]
    features, _ = make_data()
    ids = features["sparse_features"]
    return signature(
        dense_features=tf.constant(features["dense_features"]),
        sparse_values=tf.constant(ids.reshape(-1), tf.int64),
        sparse_row_lengths=tf.ones(ids.shape, tf.int64),
    )["probabilities"]


READERS = {
    "get_table": lambda model, folder: tables_of(model),
    "get_rows": lambda model, folder: model.embedding.get_rows("C2", [3, 29, 0]),
    "get_weights": lambda model, folder: model.get_weights(),
    "weights": lambda model, folder: [v.numpy() for v in model.weights],
    "trainable_variables": lambda model, folder: [
        v.numpy() for v in model.trainable_variables
    ],
    "lookup_variables": lambda model, folder: [
        v.numpy() for v in model.embedding.lookup_variables
    ],
    "call": lambda model, folder: model(make_data()[0]),
    "lookup": lambda model, folder: model.embedding.lookup(
        make_data()[0]["sparse_features"]
    ),
    "lookup_of_one": lambda model, folder: tf.function(model.embedding.lookup)(
        tf.constant([[7]]), columns=[2]
    ),
    "predict": lambda model, folder: model.predict(make_data()[0], verbose=0),
    "predict_on_batch": lambda model, folder: model.predict_on_batch(make_data()[0]),
    "evaluate": lambda model, folder: model.evaluate(*make_data(), verbose=0),
    "test_on_batch": lambda model, folder: model.test_on_batch(*make_data()),
    "keras": through_file,
    "h5": through_weights,
    "checkpoint": through_checkpoint,
    "export": exported,
}


@pytest.mark.parametrize(
    "run_eagerly",
    [True, pytest.param(False, marks=pytest.mark.integration)],
    ids=["eager", "graph"],
)
def test_every_reader_sees_the_rows_of_dense_sgd(run_eagerly, tmp_path):
    """One after the other, each after another step."""
    models = [make(run_eagerly=run_eagerly) for make in (lazy, dense)]
    (scaled,) = models[0].embedding._store.scaled
    batches = itertools.cycle(dataset())
    for name, read in READERS.items():
        if run_eagerly and name == "export":  # which takes seconds
            continue
        features, label = next(batches)
        results = []
        for i, model in enumerate(models):
            model.train_on_batch(features, label)
            assert i or float(scaled.scale) < 0.98, "the rows are settled"
            folder = tmp_path / f"{name}_{i}"
            folder.mkdir()
            results.append(read(model, folder))
        for a, b in zip(*map(tf.nest.flatten, results), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-6, err_msg=name)
    check_equal(*models)


@pytest.mark.parametrize(
    "options",
    [
        {"run_eagerly": True},
        {"steps_per_execution": 2},
        pytest.param(
            {"jit_compile": True}, marks=[pytest.mark.integration, pytest.mark.xla]
        ),
    ],
    ids=["eager", "steps", "program"],
)
def test_fit_with_changed_rates_equals_dense_sgd(options):
    """A callback changes the rate, and another one reads all tables in every epoch."""
    models = [lazy(**options), dense(**options)]
    seen = [[], []]
    for model, tables in zip(models, seen, strict=True):
        falling = keras.callbacks.LearningRateScheduler(lambda e, lr: lr / (1 + e))
        reading = keras.callbacks.LambdaCallback(
            on_epoch_end=lambda epoch, logs, m=model, t=tables: t.extend(tables_of(m))
        )
        model.fit(
            dataset(),
            epochs=3,
            verbose=0,
            validation_data=dataset(),
            callbacks=[falling, reading],
        )
    check_equal(*models)
    losses = [model.history.history["val_loss"] for model in models]
    np.testing.assert_allclose(*losses, rtol=1e-5)
    for a, b in zip(*seen, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    # After `fit`, the variables hold the rows.
    fused = models[0].embedding.tables_4.numpy()
    np.testing.assert_array_equal(fused[:11], tables_of(models[0])[0])


@pytest.mark.parametrize("with_masks", [False, True], ids=["cpu", "accelerator"])
def test_a_batch_that_is_not_finite_decays_no_row(monkeypatch, with_masks):
    if with_masks:
        monkeypatch.setattr(accelerators, "first", lambda: "/device:CPU:0")
    model = lazy(run_eagerly=True)
    with pytest.warns(RuntimeWarning, match="1 batches had"):
        model.fit(dataset(spoiled=[20]), verbose=0)
    expected = dense(run_eagerly=True)
    batches = list(dataset())
    for x, y in (batches[0], *batches[2:]):
        expected.train_on_batch(x, y)
    check_equal(model, expected)


def test_written_rows_and_another_optimizer_begin_from_the_rows():
    models = [lazy(run_eagerly=True), dense(run_eagerly=True)]
    rows = np.random.default_rng(0).normal(size=(7, 4)).astype("float32")
    for model in models:
        for features, label in dataset():
            model.train_on_batch(features, label)
        model.embedding.set_table("C1", rows)
        np.testing.assert_array_equal(model.embedding.get_table("C1"), rows)
        for features, label in dataset():
            model.train_on_batch(features, label)
        model.compile("sgd", run_eagerly=True)
        for features, label in dataset():
            model.train_on_batch(features, label)
    check_equal(*models)


def test_a_checkpoint_continues_as_if_not_interrupted(tmp_path):
    model = lazy(run_eagerly=True)
    model.train_on_batch(*next(iter(dataset())))
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "c"))
    again = lazy(run_eagerly=True)
    again.train_on_batch(*next(iter(dataset())))  # its scale is not 1
    tf.train.Checkpoint(model=again).read(path).assert_existing_objects_matched()
    for own in (model, again):
        own.fit(dataset(), verbose=0)
    for a, b in zip(again.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_config_and_refusal():
    optimizer = optimizers.SparseSGD(0.1, l2=1e-5)
    again = optimizers.SparseSGD.from_config(optimizer.get_config())
    assert (again.learning_rate, again.l2) == pytest.approx((0.1, 1e-5))
    assert not optimizers.SparseSGD(0.1).shrinks_all_rows
    for l2 in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="`l2` must be finite and not negative"):
            optimizers.SparseSGD(0.1, l2=l2)
