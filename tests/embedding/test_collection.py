"""EmbeddingCollection: pooling, ranges, state, and life inside other Keras models."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tf_dlrm import EmbeddingTable, optimizers
from tf_dlrm.layers import EmbeddingCollection

pytestmark = pytest.mark.engines


@pytest.mark.parametrize("combiner", ["sum", "mean", "sqrtn"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_pooling_equals_tensorflow(combiner, weighted):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 5, 20)  # TensorFlow's own lookup has no empty bags
    ids = tf.RaggedTensor.from_row_lengths(rng.integers(0, 9, lengths.sum()), lengths)
    weights = ids.with_values(rng.uniform(0.5, 2, lengths.sum()).astype("float32"))
    layer = EmbeddingCollection([EmbeddingTable("t", 9, 4, combiner)])
    expected = tf.nn.embedding_lookup_sparse(
        layer.get_table("t"),
        ids.to_sparse(),
        weights.to_sparse() if weighted else None,
        combiner=combiner,
    )
    bags = tf.RaggedTensor.from_uniform_row_length(ids, 1)
    factors = tf.RaggedTensor.from_uniform_row_length(weights, 1)
    pooled = layer(bags, weights=factors if weighted else None)
    np.testing.assert_allclose(pooled[:, 0], expected, atol=1e-6)


def test_widths_that_differ_come_as_a_list():
    rng = np.random.default_rng(0)
    tables = [
        EmbeddingTable("a", 5, 2),
        EmbeddingTable("b", 6, 3, features=("b1", "b2")),
        EmbeddingTable("c", 7, 2, "mean"),
    ]
    layer = EmbeddingCollection(tables)
    ids = rng.integers(0, 5, (4, 4, 3))
    weights = rng.uniform(1, 2, (4, 4, 3)).astype("float32")
    flat = tf.RaggedTensor.from_row_lengths(ids.reshape(-1), [3] * 16)
    ragged = tf.RaggedTensor.from_uniform_row_length(flat, 4)
    ragged_weights = ragged.with_flat_values(weights.reshape(-1))
    padded = layer(ids, weights=weights)
    assert [tuple(x.shape) for x in padded] == [(4, 2), (4, 3), (4, 3), (4, 2)]
    names = ["a", "b", "b", "c"]
    for i, (x, y) in enumerate(zip(padded, layer(ragged, weights=ragged_weights))):
        rows = layer.get_table(names[i])[ids[:, i]]
        w = weights[:, i, :, None]
        expected = (rows * w).sum(1) / (w.sum(1) if names[i] == "c" else 1)
        np.testing.assert_allclose(x, expected, atol=1e-5)
        np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.breadth(3, 4)
@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
@pytest.mark.parametrize("bad", [50, -2, 1 << 40, -(1 << 40)])
def test_ids_out_of_range_read_no_row(bad, jit):
    """Without the check, as in an export: the id counts as none, under XLA too."""
    tables = [EmbeddingTable(n, 50, 4, initializer="ones") for n in "ab"]
    layer = EmbeddingCollection(tables)
    ids = tf.constant([[3, bad], [bad, 4]], tf.int64)
    lookup = tf.function(layer.lookup, jit_compile=jit)
    expected = np.array([[1, 0], [0, 1]])[:, :, None] * np.ones(4)
    np.testing.assert_array_equal(lookup(ids), expected)
    np.testing.assert_array_equal(lookup(ids[:, :, None]), expected)
    flat = tf.RaggedTensor.from_row_lengths(tf.reshape(ids, (-1,)), [1, 1, 1, 1])
    ragged = tf.RaggedTensor.from_uniform_row_length(flat, 2)
    if not jit:
        np.testing.assert_array_equal(lookup(ragged), expected)


@pytest.mark.breadth(3, 4)
@pytest.mark.parametrize("form", ["one_hot", "padded", "ragged"])
@pytest.mark.parametrize("bad", [7, -2, 1 << 40])
def test_ids_out_of_range_raise_with_table_and_value(form, bad):
    tables = [EmbeddingTable("wide", 50, 2), EmbeddingTable("t", 7, 2, features=("f",))]
    layer = EmbeddingCollection(tables)
    ids = tf.constant([[3, 6], [49, bad]], tf.int64)
    if form == "padded":
        ids = tf.stack([ids, -tf.ones_like(ids)], axis=2)
    if form == "ragged":
        flat = tf.RaggedTensor.from_row_lengths(tf.reshape(ids, (-1,)), [1] * 4)
        ids = tf.RaggedTensor.from_uniform_row_length(flat, 2)
    message = f"feature f of table t received id {bad}, .*vocabulary_size 7"
    for function in (layer, tf.function(lambda x: layer(x))):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            function(ids)


def test_minus_one_in_a_ragged_bag_raises():
    layer = EmbeddingCollection([EmbeddingTable("t", 7, 2)])
    ids = tf.RaggedTensor.from_uniform_row_length(tf.ragged.constant([[-1]]), 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="received id -1"):
        layer(ids)


def test_ragged_that_lost_its_uniform_length_is_accepted_or_refused():
    layer = EmbeddingCollection([EmbeddingTable(n, 7, 2) for n in "ab"])
    ids = tf.ragged.constant([[[1], [2, 3]], [[], [4]]], tf.int64)
    assert ids.uniform_row_length is None
    expected = layer(tf.constant([[[1, -1], [2, 3]], [[-1, -1], [4, -1]]]))
    np.testing.assert_allclose(layer(ids), expected, atol=1e-7)
    wrong = tf.ragged.constant([[[1]], [[], [4], [5]]], tf.int64)
    with pytest.raises(tf.errors.InvalidArgumentError, match="of ragged_rank 2"):
        layer(wrong)


@pytest.mark.parametrize(
    "ids, error, message",
    [
        (np.zeros((2, 3), "int64"), ValueError, r"\(batch, 2\)"),
        (np.zeros((2,), "int64"), ValueError, r"\(batch, 2\)"),
        (np.zeros((2, 2), "float32"), TypeError, "above 2\\^24"),
        (tf.ragged.constant([[1], [2]]), ValueError, "ragged_rank 1"),
    ],
)
def test_wrong_ids_are_named(ids, error, message):
    layer = EmbeddingCollection([EmbeddingTable(n, 7, 2) for n in "ab"])
    with pytest.raises(error, match=message):
        layer(ids)


def test_empty_batches():
    layer = EmbeddingCollection([EmbeddingTable(n, 7, 2, "mean") for n in "ab"])
    layer.build_optimizer(optimizers.SparseAdagrad(0.1))
    before = layer.get_table("a")
    empty = tf.RaggedTensor.from_row_lengths(
        tf.zeros((0,), tf.int64), tf.zeros((0,), tf.int64)
    )
    ragged = tf.RaggedTensor.from_uniform_row_length(
        empty, 2, nrows=tf.constant(0, tf.int64)
    )
    for ids in (tf.zeros((0, 2), tf.int64), tf.zeros((0, 2, 3), tf.int64), ragged):
        assert tuple(layer(ids).shape) == (0, 2, 2)
        layer.apply_gradients(tf.zeros((0, 2, 2)), ids)
    np.testing.assert_array_equal(layer.get_table("a"), before)


@pytest.mark.breadth(1, 4)
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
@pytest.mark.parametrize("form", ["functional", "subclass"])
def test_trains_correctly_inside_any_keras_model(form, optimizer):
    """Repeated ids and all: as a dense variable under the same Keras optimizer."""
    table = EmbeddingTable("t", 6, 3)
    layer = EmbeddingCollection([table], name="tables")
    if form == "functional":
        ids = keras.Input((1,), dtype="int64")
        out = keras.layers.Dense(1)(keras.layers.Flatten()(layer(ids)))
        model = keras.Model(ids, out)
    else:

        class Model(keras.Model):
            def __init__(self):
                super().__init__()
                self.tables, self.head = layer, keras.layers.Dense(1)

            def call(self, ids):
                return self.head(self.tables(ids)[:, 0, :])

        model = Model()
    ids = np.array([[1], [1], [4], [1], [-1]])
    y = np.arange(5.0, dtype="float32")[:, None]
    model(ids)
    head = model.layers[-1]
    dense = keras.Variable(
        np.vstack([layer.get_table("t"), np.zeros((1, 3))]), dtype="float32"
    )
    kernel, bias = keras.Variable(head.kernel), keras.Variable(head.bias)
    reference = keras.optimizers.get({"class_name": optimizer, "config": {}})
    assert len(model.trainable_variables) == 3
    model.compile(optimizer, "mse")
    one_hot = tf.one_hot(ids[:, 0] % 7, 7)
    for _ in range(3):
        model.train_on_batch(ids, y)
        with tf.GradientTape() as tape:
            rows = one_hot @ dense.value
            rows = rows * tf.constant([[1.0], [1], [1], [1], [0]])
            loss = tf.reduce_mean((rows @ kernel.value + bias.value - y) ** 2)
        variables = [dense, kernel, bias]
        gradients = tape.gradient(loss, [v.value for v in variables])
        reference.apply(gradients, variables)
    np.testing.assert_allclose(layer.get_table("t"), dense.numpy()[:6], atol=1e-5)
    np.testing.assert_array_equal(layer(np.array([[-1]])), np.zeros((1, 1, 3)))


def test_initial_values_are_the_papers():
    tables = [EmbeddingTable("big", 40_000, 8), EmbeddingTable("one", 1, 8)]
    layer = EmbeddingCollection(tables, seed=1)
    rows, limit = layer.get_table("big"), 40_000**-0.5
    assert np.abs(rows).max() <= limit
    # Uniform in +-limit: mean 0, standard deviation limit / sqrt(3).
    assert abs(rows.mean()) < 5 * limit / np.sqrt(3 * rows.size)
    assert rows.std() == pytest.approx(limit / np.sqrt(3), rel=0.01)
    assert np.abs(layer.get_table("one")).max() <= 1.0
    again = EmbeddingCollection(tables[::-1], seed=1)
    np.testing.assert_array_equal(again.get_table("big"), rows)
    other = EmbeddingCollection(tables, seed=2)
    assert np.abs(other.get_table("big") - rows).max() > 0


def test_initial_values_follow_the_global_seed():
    def rows():
        keras.utils.set_random_seed(3)
        return EmbeddingCollection([EmbeddingTable("t", 5, 2)]).get_table("t")

    np.testing.assert_array_equal(rows(), rows())


def test_state_round_trip_and_errors():
    layer = EmbeddingCollection([EmbeddingTable(n, 7, 2) for n in "ab"])
    layer.build_optimizer(optimizers.SparseAdam(0.1))
    for _ in range(2):
        layer.apply_gradients(tf.ones((1, 2, 2)), tf.constant([[3, 4]]))
    state = layer.get_state()
    assert state["iterations"] == 2
    other = EmbeddingCollection([EmbeddingTable(n, 7, 2) for n in "ab"])
    with pytest.raises(ValueError, match="Call `build_optimizer` before"):
        other.set_state(state)
    other.build_optimizer(optimizers.SparseAdam(0.1))
    other.set_state(state)
    for name in "ab":
        other.set_table(name, layer.get_table(name))
        layer.apply_gradients(tf.ones((1, 2, 2)), tf.constant([[3, 5]]))
        other.apply_gradients(tf.ones((1, 2, 2)), tf.constant([[3, 5]]))
    np.testing.assert_array_equal(other.get_table("a"), layer.get_table("a"))
    with pytest.raises(ValueError, match="has shape"):
        other.set_table("a", np.zeros((7, 3)))
    with pytest.raises(ValueError, match="There is no table 'z'"):
        other.get_table("z")
    with pytest.raises(ValueError, match="has no optimizer slot 'x'"):
        other.set_state({"iterations": 0, "slots": {"a": {"x": np.zeros((7, 2))}}})
    with pytest.raises(RuntimeError, match="The tables have no optimizer"):
        EmbeddingCollection([EmbeddingTable("a", 7, 2)]).apply_gradients(
            tf.ones((1, 1, 2)), tf.constant([[3]])
        )
    message = r"unknown or frozen tables: \['z'\], .* \['b'\]"
    with pytest.raises(ValueError, match=message):
        other.build_optimizer(dict.fromkeys("az", optimizers.SparseSGD(0.1)))


def test_set_weights_of_any_keras_model_leaves_the_null_row_at_zeros():
    table = EmbeddingTable("a", 4, 2)
    inputs = keras.Input((1,), dtype="int64")
    model = keras.Model(inputs, EmbeddingCollection([table])(inputs))
    model.set_weights([np.ones((5, 2), np.float32)])
    pooled = model.predict(np.array([[3], [-1]]), verbose=0)
    np.testing.assert_array_equal(pooled, [[[1, 1]], [[0, 0]]])
