"""Ids and weights of every shape and type: taken exactly, or refused by name."""

import numpy as np
import pytest
import tensorflow as tf

from tf_dlrm import EmbeddingTable
from tf_dlrm.embedding import bags, id_ranges
from tf_dlrm.embedding.engines import xla_bags
from tf_dlrm.layers import EmbeddingCollection
from tf_dlrm.runtime import rows as row_ops

pytestmark = pytest.mark.engines

NUM_FEATURES, SIZE = 3, 9


def make_layer():
    return EmbeddingCollection([EmbeddingTable(n, SIZE, 2) for n in "abc"])


def make_ragged(values, num_features=NUM_FEATURES):
    """Ragged bags of one id each."""
    inner = tf.RaggedTensor.from_row_lengths(values, [1] * len(values))
    return tf.RaggedTensor.from_uniform_row_length(inner, num_features)


@pytest.mark.breadth(3, 4)
@pytest.mark.parametrize(
    "spec, shape",
    [
        ((None, None), (2, 1)),
        ((None, None), (2, 4)),
        ((None, None, None), (3, 1, 2)),
        ((None, None, None), (4, 1, 2)),
        (None, (1, 6)),
        (None, (3, 1, 3)),
        (None, (6, 1)),
        (None, (3,)),
        (None, (1, 3, 1, 2)),
    ],
)
def test_the_number_of_columns_is_checked_at_run_time(spec, shape):
    """Where no static shape says it: one column would do for all features."""
    layer, ids = make_layer(), tf.zeros(shape, tf.int64)
    signature = [tf.TensorSpec(spec, tf.int64)]
    for function in (layer, layer.lookup):
        run = tf.function(lambda x: function(x), input_signature=signature)  # noqa: B023
        with pytest.raises(tf.errors.InvalidArgumentError, match="Ids must be .*, 3"):
            run(ids)
    if spec is not None:  # assertions vanish under XLA
        run = tf.function(layer.lookup, input_signature=signature, jit_compile=True)
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            run(ids)


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("known", [True, False], ids=["rank", "nothing"])
def test_ids_of_unknown_shape_equal_those_of_known(rank, known):
    layer = make_layer()
    ids = np.random.default_rng(0).integers(-1, SIZE, (4, NUM_FEATURES, 5)[:rank])
    spec = tf.TensorSpec((None,) * rank if known else None, tf.int64)
    run = tf.function(lambda x: layer(x), input_signature=[spec])
    np.testing.assert_array_equal(run(tf.constant(ids)), layer(ids))


def test_the_bags_of_ragged_ids_are_counted():
    layer = make_layer()
    with pytest.raises(ValueError, match="Received: 2 bags in an example"):
        layer(make_ragged([1, 2, 3, 4], 2))

    @tf.function(input_signature=[tf.TensorSpec((), tf.int64)])
    def run(num_features):
        inner = tf.RaggedTensor.from_row_lengths([1, 2, 3, 4, 5, 6], [1] * 6)
        return layer(tf.RaggedTensor.from_uniform_row_length(inner, num_features))

    assert run(3).shape == (2, 3, 2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Ragged ids must be"):
        run(2)


def test_ragged_ids_must_be_integers():
    with pytest.raises(TypeError, match="Ids must be int32 or int64.*float32"):
        make_layer()(make_ragged([1.0, 2.0, 3.0]))


@pytest.mark.parametrize("form", ["one_hot", "padded", "ragged"])
@pytest.mark.parametrize("value", [2**63, 2**64 - 1])
def test_ids_beyond_int64_are_out_of_range(form, value):
    """A cast would wrap them: 2^64 - 1 to -1, which is no id and trains nothing."""
    layer = make_layer()
    ids = np.array([[1, value, 2]], np.uint64)
    if form == "padded":
        ids = ids[:, :, None]
    if form == "ragged":
        ids = make_ragged(ids[0])
    with pytest.raises(tf.errors.InvalidArgumentError, match="table b received id"):
        layer(ids)
    pooled = layer.lookup(ids)[0].numpy()
    assert not pooled[1].any()
    np.testing.assert_array_equal(pooled[0], layer.get_table("a")[1])


def test_weights_that_are_not_shaped_as_the_ids_are_refused():
    layer, ids = make_layer(), np.zeros((2, NUM_FEATURES), "int64")
    message = "Weights must have the shape of the ids"
    with pytest.raises(ValueError, match=f"{message}. Received: weights \\(3, 2\\)"):
        layer(ids, weights=np.ones((3, 2)))
    with pytest.raises(ValueError, match="must be ragged too"):
        layer(make_ragged([1, 2, 3]), weights=np.ones((1, 3)))
    for spec in ((None, None), None):
        run = tf.function(
            lambda w: layer(ids, weights=w),
            input_signature=[tf.TensorSpec(spec, tf.float32)],
        )
        assert run(tf.ones((2, 3))).shape == (2, 3, 2)
        for shape in ((3, 3), (1, 3), (3, 2)):
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                run(tf.ones(shape))


# Tables of 2^31 rows and more: their sizes and rows do not fit into int32 ids.

HUGE = 3_000_000_000
PLACES = bags.Places(
    sizes=np.array([HUGE, 7]),
    offsets=np.array([0, HUGE]),
    combiners=["sum", "sum"],
    null_row=HUGE + 7,
    row_dtype=row_ops.row_dtype(HUGE + 8),
)


@pytest.mark.parametrize("form", ["one_hot", "padded", "ragged"])
@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_rows_of_huge_tables(form, dtype):
    ids = np.array([[5, 6], [2**31 - 1, -1]], dtype)
    expected = [5, HUGE + 6, 2**31 - 1, HUGE + 7]
    if form == "padded":
        ids = ids[:, :, None]
    if form == "ragged":
        inner = tf.RaggedTensor.from_row_lengths(ids.reshape(-1)[:3], [1, 1, 1, 0])
        ids = tf.RaggedTensor.from_uniform_row_length(inner, 2)
        expected = expected[:3]
    ids = bags.standardize_ids(ids, 2)
    lookup = bags.make_lookup(ids, None, PLACES)
    assert lookup.rows.numpy().reshape(-1).tolist() == expected
    assert not id_ranges.any_out_of_range(ids, PLACES.sizes)
    packed = xla_bags.pack(ids, None, 2)
    flat = xla_bags.flatten(packed, PLACES, np.array([0, HUGE]))
    found = flat.rows.numpy()
    assert found[found >= 0].tolist() == [5, HUGE + 6, 2**31 - 1]
    if form == "one_hot":
        rows, bad = xla_bags.pool_one_hot(lambda r: r, packed, PLACES)
        rows = rows[:2]
    else:
        # A sum of one row and of null rows, which are told by their number.
        rows, bad = xla_bags.pool_bags(
            lambda r: tf.where(r == PLACES.null_row, tf.zeros_like(r), r)[:, None],
            packed,
            PLACES,
            lowest=-1,
            part=2,
        )
        expected = expected[:3] + [0]
        rows = rows[:2, :, 0]
    assert rows.numpy().reshape(-1).tolist() == expected
    assert not bad


def test_ids_out_of_range_of_huge_tables_are_named():
    ids = tf.constant([[5, 7]], tf.int32)
    assert id_ranges.any_out_of_range(ids, PLACES.sizes)
    with pytest.raises(tf.errors.InvalidArgumentError, match="table b received id 7,"):
        tables = [EmbeddingTable(n, size, 4) for n, size in zip("ab", PLACES.sizes)]
        id_ranges.refuse_if(True, ids, list(zip("fg", tables)))


@pytest.mark.parametrize("num_examples", range(1, 9))
def test_packing_pads_values_and_not_examples(num_examples):
    ids = tf.zeros((num_examples, NUM_FEATURES, 1000), tf.int64)
    packed = xla_bags.pack(ids, None, NUM_FEATURES)
    assert packed.splits.shape[0] == 8 * NUM_FEATURES + 1
    assert packed.ids.shape[0] <= 1.125 * num_examples * NUM_FEATURES * 1000
    assert np.diff(packed.splits)[: num_examples * NUM_FEATURES].tolist() == [1000] * (
        num_examples * NUM_FEATURES
    )
    assert int(packed.splits[-1]) == num_examples * NUM_FEATURES * 1000
