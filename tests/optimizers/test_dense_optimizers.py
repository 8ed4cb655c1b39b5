"""Dense optimizers of tables: Keras' own on whole tables, with an L2 penalty."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.optimizer_oracle import CASES
from helpers.small_model import make_data, make_model, predictions, tables_of

import tf_dlrm
from tf_dlrm import EmbeddingTable, optimizers
from tf_dlrm.layers import EmbeddingCollection
from tf_dlrm.runtime import accelerators

L2 = 0.05
DENSE = [name for name in CASES if name.startswith("dense_")]
SCHEDULE = keras.optimizers.schedules.ExponentialDecay(0.03, 5, 0.7)
# Row-sparse optimizer, and Keras' optimizer of the same formula.
PAIRS = {
    "sgd": (
        lambda rate: optimizers.DenseSGD(rate, l2=L2),
        lambda rate: keras.optimizers.SGD(rate),
    ),
    "adagrad": (
        lambda rate: optimizers.DenseAdagrad(rate, 0.01, l2=L2),
        lambda rate: keras.optimizers.Adagrad(rate, 0.01),
    ),
    "adam": (
        lambda rate: optimizers.DenseAdam(rate, epsilon=1e-4, l2=L2),
        lambda rate: keras.optimizers.Adam(rate, epsilon=1e-4),
    ),
    "adam_without_l2": (
        lambda rate: optimizers.DenseAdam(rate, epsilon=1e-4),
        lambda rate: keras.optimizers.Adam(rate, epsilon=1e-4),
    ),
}


def small_batches(num_steps, batch_size=16):
    """Batches with many repeated ids, that leave most rows of the tables alone."""
    features, label = make_data()
    ids = features["sparse_features"] // 2
    for step in range(num_steps):
        rows = (np.arange(batch_size) + step * batch_size) % len(label)
        dense = features["dense_features"][rows]
        yield {"dense_features": dense, "sparse_features": ids[rows]}, label[rows]


def train_with_keras(model, optimizer_of, l2, num_steps):
    """Train copies of a model's tables as dense variables, the penalty in the loss."""
    tables = [
        keras.Variable(table, name=f"t{i}") for i, table in enumerate(tables_of(model))
    ]
    names = [table.name for table in model.spec.tables]
    optimizer_of_table = {name: optimizer_of(name) for name in names}
    mlps = keras.optimizers.SGD(0.1)
    for features, label in small_batches(num_steps):
        with tf.GradientTape() as tape:
            vectors = [
                tf.gather(
                    tf.convert_to_tensor(table), features["sparse_features"][:, i]
                )
                for i, table in enumerate(tables)
            ]
            y = model.score(features["dense_features"], tf.stack(vectors, 1))
            loss = tf.reduce_mean(keras.losses.binary_crossentropy(label[:, None], y))
            for table, name in zip(tables, names):
                own = l2[name] if isinstance(l2, dict) else l2
                loss += own / 2 * tf.reduce_sum(tf.square(table))
        variables = [v.value for v in model.dense_variables]
        dense, of_tables = tape.gradient(loss, (variables, [t.value for t in tables]))
        mlps.apply(dense, model.dense_variables)
        for name, table, gradient in zip(names, tables, of_tables, strict=True):
            gradient = tf.convert_to_tensor(gradient)
            optimizer_of_table[name].apply([gradient], [table])
    return [table.numpy() for table in tables]


def check_against_keras(make, expected_from, l2, num_steps=20, **options):
    keras.utils.set_random_seed(5)
    model, reference = make_model(), make_model()
    reference.set_weights(model.get_weights())
    model.compile(keras.optimizers.SGD(0.1), embedding_optimizer=make(), **options)
    expected = train_with_keras(reference, expected_from, l2, num_steps)
    start = tables_of(model)
    for features, label in small_batches(num_steps):
        model.train_on_batch(features, label)
    for table, values, before in zip(tables_of(model), expected, start, strict=True):
        # Keras corrects Adam's bias in float32: 1 - 0.999**t has four digits left.
        np.testing.assert_allclose(table, values, atol=1e-5)
        assert np.abs(values - before).max() > 1e-3, "nothing was trained"
    for a, b in zip(model.dense_variables, reference.dense_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5)


@pytest.mark.breadth(2, 8)
@pytest.mark.parametrize("options", [{"jit_compile": False}, {"run_eagerly": True}])
@pytest.mark.parametrize("rate", [0.03, SCHEDULE], ids=["float", "schedule"])
@pytest.mark.parametrize("case", PAIRS)
def test_20_steps_equal_those_of_keras_on_whole_tables(case, rate, options):
    make, of_keras = PAIRS[case]
    l2 = 0.0 if case == "adam_without_l2" else L2
    check_against_keras(lambda: make(rate), lambda name: of_keras(rate), l2, **options)


@pytest.mark.integration
@pytest.mark.xla
@pytest.mark.parametrize("case", PAIRS)
def test_20_compiled_steps_equal_those_of_keras(case):
    make, of_keras = PAIRS[case]
    l2 = 0.0 if case == "adam_without_l2" else L2
    check_against_keras(
        lambda: make(0.03), lambda name: of_keras(0.03), l2, jit_compile=True
    )


@pytest.mark.parametrize(
    "jit", [False, pytest.param(True, marks=[pytest.mark.integration, pytest.mark.xla])]
)
def test_optimizers_by_table_equal_those_of_keras(jit):
    names = {"C0": "adam", "C1": "sgd", "C2": "adagrad"}
    check_against_keras(
        lambda: {table: PAIRS[case][0](0.03) for table, case in names.items()},
        lambda table: PAIRS[names[table]][1](0.03),
        L2,
        jit_compile=jit,
    )


# Collections, against float64

FORMS = ("one_hot", "padded", "ragged")


def make_tables():
    """Two widths, one table that two features share, and one that is frozen."""
    return [
        EmbeddingTable("a", 40, 3, features=["a1", "a2"]),
        EmbeddingTable("frozen", 9, 3, trainable=False),
        EmbeddingTable("b", 13, 5, combiner="mean"),
        EmbeddingTable("c", 300, 3),
    ]


def make_ids(form, rng):
    sizes = (40, 40, 9, 13, 300)
    ids = np.stack([rng.integers(-1, n // 2, (6, 3)) for n in sizes], 1)
    if form == "one_hot":
        return tf.constant(ids[:, :, 0]), ids[:, :, :1]
    if form == "padded":
        return tf.constant(ids), ids
    values = tf.constant(ids[ids >= 0])
    lengths = (ids >= 0).sum(2).reshape(-1)
    bags = tf.RaggedTensor.from_row_lengths(values, lengths)
    return tf.RaggedTensor.from_uniform_row_length(bags, len(sizes)), ids


def dense_gradients(ids, gradients):
    """The gradients of the tables, of the rows of padded ids `(B, F, L)`."""
    result = {}
    owners = [t for t in make_tables() for _ in t.features]
    for i, table in enumerate(owners):
        shape = table.vocabulary_size, table.embedding_dim
        total = result.setdefault(table.name, np.zeros(shape))
        for bag, g in zip(ids[:, i], gradients[i], strict=True):
            bag = bag[bag >= 0]
            share = 1 / len(bag) if table.combiner == "mean" and len(bag) else 1.0
            np.add.at(total, bag, share * g.astype(np.float64))
    return result


@pytest.mark.engines
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", DENSE)
def test_widths_shared_and_frozen_tables_equal_float64(case, form):
    make, update = CASES[case]
    layer = EmbeddingCollection(make_tables(), seed=2)
    layer.build_optimizer(make())
    expected = {t.name: layer.get_table(t.name).astype("float64") for t in layer.tables}
    states = {name: {} for name in expected}
    apply = tf.function(layer.apply_gradients, reduce_retracing=True)
    rng = np.random.default_rng(3)
    for step in range(1, 5):
        ids, padded = make_ids(form, rng)
        gradients = [
            rng.normal(size=(6, table.embedding_dim)).astype("float32")
            for table in layer.tables
            for _ in table.features
        ]
        apply(
            [tf.constant(g) for g in gradients],
            tf.convert_to_tensor(ids) if form != "ragged" else ids,
        )
        for name, g in dense_gradients(padded, gradients).items():
            if name != "frozen":
                update(expected[name], g, states[name], step)
    for name, values in expected.items():
        np.testing.assert_allclose(layer.get_table(name), values, atol=3e-6)
    for variable in layer.lookup_variables:
        np.testing.assert_array_equal(variable[-1], tf.zeros_like(variable[-1]))


@pytest.mark.integration
@pytest.mark.xla
def test_the_null_row_stays_zero_after_steps_without_xla():
    layer = EmbeddingCollection([EmbeddingTable("t", 100, 2)], seed=2)
    layer.build_optimizer(optimizers.DenseAdam(0.1))
    expected = EmbeddingCollection([EmbeddingTable("t", 100, 2)], seed=2)
    expected.build_optimizer(optimizers.DenseAdam(0.1))
    expected.use_xla(False)
    batch = tf.ones((3, 1, 2)), tf.constant([[-1], [5], [-1]])
    for compiles in (False, True, True):
        layer.use_xla(compiles)
        layer.apply_gradients(*batch)
        expected.apply_gradients(*batch)
        (table,) = layer.lookup_variables
        np.testing.assert_array_equal(table[-1], [0.0, 0.0])
    np.testing.assert_allclose(layer.get_table("t"), expected.get_table("t"), atol=1e-6)


@pytest.mark.engines
def test_batches_with_more_and_fewer_ids_than_rows_equal_float64():
    """In one graph for any batch size, which has both ways to compute a step."""
    make, update = CASES["dense_adam_l2"]
    layer = EmbeddingCollection([EmbeddingTable("t", 100, 2)], seed=2)
    layer.build_optimizer(make())
    signature = [tf.TensorSpec((None, 1, 2)), tf.TensorSpec((None, 1), tf.int64)]
    apply = tf.function(layer.apply_gradients, input_signature=signature)
    expected, state = layer.get_table("t").astype("float64"), {}
    rng = np.random.default_rng(4)
    for step, size in enumerate((3, 200, 8, 30), start=1):
        ids, g = rng.integers(0, 60, (size, 1)), rng.normal(size=(size, 1, 2))
        apply(tf.constant(g, tf.float32), tf.constant(ids))
        dense = np.zeros_like(expected)
        np.add.at(dense, ids[:, 0], g[:, 0])
        update(expected, dense, state, step)
    np.testing.assert_allclose(layer.get_table("t"), expected, atol=3e-6)


@pytest.mark.engines
def test_a_row_without_gradients_decays_by_the_closed_form():
    layer = EmbeddingCollection([EmbeddingTable("t", 50, 2)], seed=2)
    layer.build_optimizer(optimizers.DenseSGD(0.5, l2=0.1))
    before = layer.get_table("t")
    for _ in range(7):
        layer.apply_gradients(tf.ones((2, 1, 2)), tf.constant([[3], [-1]]))
    after = layer.get_table("t")
    others = np.delete(np.arange(50), 3)
    np.testing.assert_allclose(after[others], before[others] * 0.95**7, rtol=1e-5)


@pytest.mark.parametrize("kind", ["SGD", "Adagrad"])
def test_without_penalty_the_others_are_not_touched(kind):
    layer = EmbeddingCollection([EmbeddingTable("t", 50, 2)], seed=2)
    layer.build_optimizer(getattr(optimizers, f"Dense{kind}")(0.5, max_values=10))
    before = layer.get_table("t")
    layer.apply_gradients(tf.ones((1, 1, 2)), tf.constant([[3]]))
    changed = np.flatnonzero(np.abs(layer.get_table("t") - before).max(1))
    np.testing.assert_array_equal(changed, [3])


# In a model


def compiled(optimizer, **options):
    keras.utils.set_random_seed(5)
    model = make_model()
    options = {"jit_compile": False, **options}
    model.compile(keras.optimizers.SGD(0.1), embedding_optimizer=optimizer, **options)
    return model


def make_adam():
    return optimizers.DenseAdam(0.03, epsilon=1e-4, l2=L2)


def dataset(spoiled=()):
    features, label = make_data()
    dense = features["dense_features"].copy()
    dense[list(spoiled)] = np.nan
    features = dict(features, dense_features=dense)
    return tf.data.Dataset.from_tensor_slices((features, label)).batch(16)


def state_of(model):
    slots = model.embedding.get_state()["slots"]
    return [*tables_of(model), *(slots[t][s] for t in slots for s in slots[t])]


@pytest.mark.parametrize("with_masks", [False, True], ids=["cpu", "accelerator"])
@pytest.mark.parametrize("run_eagerly", [False, True], ids=["graph", "eager"])
def test_a_batch_that_is_not_finite_moves_no_row(monkeypatch, run_eagerly, with_masks):
    """Weights and state are those of training without that batch."""
    if with_masks:
        monkeypatch.setattr(accelerators, "first", lambda: "/device:CPU:0")
    model = compiled(make_adam(), run_eagerly=run_eagerly)
    with pytest.warns(RuntimeWarning, match="1 batches had"):
        model.fit(dataset(spoiled=[20]), verbose=0)
    expected = compiled(make_adam(), run_eagerly=run_eagerly)
    batches = list(dataset())
    for x, y in (batches[0], *batches[2:]):
        expected.train_on_batch(x, y)
    for a, b in zip(state_of(model), state_of(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    assert int(model.embedding.iterations) == 3


def test_a_callback_of_the_models_rate_moves_the_decay():
    model = compiled(optimizers.DenseSGD(1.0, l2=0.1))
    before = model.embedding.get_table("C2")
    halve = keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 * 0.5**epoch)
    features, label = make_data()
    features["sparse_features"] = np.zeros_like(features["sparse_features"])
    model.fit(features, label, batch_size=32, epochs=2, callbacks=[halve], verbose=0)
    factor = (1 - 1.0 * 0.1) ** 2 * (1 - 0.5 * 0.1) ** 2
    after = model.embedding.get_table("C2")
    np.testing.assert_allclose(after[1:], before[1:] * factor, rtol=1e-5)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("form", ["keras", "weights", "checkpoint"])
def test_saved_training_continues_as_if_not_interrupted(form, tmp_path):
    straight, model = compiled(make_adam()), compiled(make_adam())
    straight.fit(dataset(), epochs=2, verbose=0)
    model.fit(dataset(), verbose=0)
    if form == "keras":
        model.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        config = again.embedding_optimizer.get_config()
        assert config == pytest.approx(make_adam().get_config())
    elif form == "weights":
        model.save_weights(tmp_path / "m.weights.h5")
        again = compiled(make_adam())
        again.load_weights(tmp_path / "m.weights.h5")
    else:
        path = tf.train.Checkpoint(model=model).write(str(tmp_path / "c"))
        again = compiled(make_adam())
        tf.train.Checkpoint(model=again).read(path).expect_partial()
    np.testing.assert_array_equal(predictions(again), predictions(model))
    again.fit(dataset(), verbose=0)
    for a, b in zip(state_of(again), state_of(straight), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_state_of_lazy_adam_continues_in_dense_adam(tmp_path):
    """Both have the same slots, so that a run may change from one to the other."""
    lazy = compiled(optimizers.SparseAdam(0.03))
    lazy.fit(dataset(), verbose=0)
    lazy.save_weights(tmp_path / "m.weights.h5")
    dense = compiled(make_adam())
    dense.load_weights(tmp_path / "m.weights.h5")
    for a, b in zip(state_of(dense), state_of(lazy), strict=True):
        np.testing.assert_array_equal(a, b)


# Refusals


def test_tables_above_the_limit_are_refused_by_name_at_compile():
    model = make_model()  # 11, 7 and 30 rows of width 4
    message = "have 192 values .*max_values=191; the largest is 'C2' with 120"
    with pytest.raises(ValueError, match=message) as error:
        model.compile("sgd", embedding_optimizer=optimizers.DenseAdam(max_values=191))
    assert "{'C2': tf_dlrm.optimizers.SparseAdam(...), ...}" in str(error.value)
    assert "max_values=192" in str(error.value)
    model.compile("sgd", embedding_optimizer=optimizers.DenseAdam(max_values=192))
    small = optimizers.DenseAdam(max_values=100)
    model.compile("sgd", embedding_optimizer={"C0": small, "C1": small, "C2": "sgd"})


def test_the_limit_is_64_million_values_by_default():
    tables = [EmbeddingTable("big", 4_000_001, 16), EmbeddingTable("small", 10, 16)]
    optimizer = optimizers.DenseSGD(0.1, l2=1e-5)
    with pytest.raises(ValueError, match="max_values=64,000,000; the largest is 'big'"):
        optimizer.check_tables(tables)
    optimizer.check_tables(tables[1:])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: optimizers.DenseSGD(l2=-1.0), "`l2` must be finite and not negative"),
        (lambda: optimizers.DenseSGD(l2=float("nan")), "`l2` must be finite"),
        (lambda: optimizers.DenseAdam(max_values=0), "`max_values` must be at least 1"),
        (lambda: optimizers.DenseAdam(beta_1=1.0), "`beta_1`"),
        (lambda: optimizers.DenseAdam(epsilon=-1.0), "`epsilon` must not be negative"),
        (
            lambda: optimizers.DenseAdagrad(initial_accumulator_value=-1.0),
            "`initial_accumulator_value` must not be negative",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["dense_sgd", "dense_adagrad", "DenseAdam"])
def test_names_follow_the_rate_of_the_model(name):
    optimizer = tf_dlrm.optimizers.get(name)
    assert type(optimizer).__name__.lower() == name.lower().replace("_", "")
    assert optimizer.learning_rate is None
