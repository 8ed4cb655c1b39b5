"""From what users hand over to one `Batch`."""

import numpy as np
import pytest
import tensorflow as tf
from helpers.small_model import compiled, make_data, tables_of

import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec
from tf_dlrm.inputs import standardize_features


def as_columns(features):
    columns = {f"C{i}": features["sparse_features"][:, i] for i in range(3)}
    return columns | {f"I{i}": features["dense_features"][:, i] for i in range(2)}


@pytest.mark.breadth(2)
@pytest.mark.parametrize("form", ["packed", "columns"])
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_ids_beyond_int64_raise(method, form):
    """2^64 - 1 as int64 is -1: no id."""
    model = compiled("sgd")
    features, label = make_data()
    ids = features["sparse_features"].astype(np.uint64)
    ids[5, 1] = 2**64 - 1
    features = features | {"sparse_features": ids}
    if form == "columns":
        features = as_columns(features)
    before = tables_of(model)
    labels = [] if method == "predict" else [label]
    with pytest.raises(tf.errors.InvalidArgumentError, match="table C1 received id"):
        getattr(model, method)(features, *labels, batch_size=64, verbose=0)
    for got, expected in zip(tables_of(model), before):
        np.testing.assert_array_equal(got, expected)


def test_one_column_of_ids_does_not_train_all_features():
    model = compiled("sgd")
    features, label = make_data()
    features = features | {"sparse_features": features["sparse_features"][:, :1]}
    signature = (
        {
            "dense_features": tf.TensorSpec((None, 2), tf.float32),
            "sparse_features": tf.TensorSpec((None, None), tf.int64),
        },
        tf.TensorSpec((None,), tf.float32),
    )
    dataset = tf.data.Dataset.from_generator(
        lambda: iter([(features, label)]), output_signature=signature
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="Ids must be"):
        model.fit(dataset, verbose=0)


@pytest.mark.integration
def test_sparse_tensors_are_bags():
    """As `tf.io.VarLenFeature` parses them; by column and packed."""
    spec = FeatureSpec(("d",), [EmbeddingTable("a", 9, 4), EmbeddingTable("b", 9, 4)])
    model = tf_dlrm.DLRM(spec, (8, 4), (8, 1))
    bags = {"a": [[3, 3], [], [5]], "b": [[1], [2, 4, 8], []]}
    d = np.ones((3, 1), "float32")
    ragged = {k: tf.ragged.constant(v, dtype=tf.int64) for k, v in bags.items()}
    expected = model.predict({"d": d, **ragged}, verbose=0)
    sparse = {k: v.to_sparse() for k, v in ragged.items()}
    np.testing.assert_array_equal(model.predict_on_batch({"d": d, **sparse}), expected)
    # As `tf.io.RaggedFeature` parses them.
    mixed = {**sparse, "b": ragged["b"].with_row_splits_dtype(tf.int32)}
    np.testing.assert_array_equal(model.predict_on_batch({"d": d, **mixed}), expected)
    dataset = tf.data.Dataset.from_tensors({"d": d, **sparse})
    np.testing.assert_array_equal(model.predict(dataset, verbose=0), expected)
    indices = [
        [row, i, k]
        for row in range(3)
        for i, n in enumerate("ab")
        for k in range(len(bags[n][row]))
    ]
    values = [bags["ab"[i]][row][k] for row, i, k in indices]
    packed = tf.SparseTensor(indices, tf.constant(values, tf.int64), (3, 2, 3))
    features = {"dense_features": d, "sparse_features": packed}
    np.testing.assert_allclose(model(features), expected, atol=1e-7)


def test_nested_lists_of_ids_are_arrays_or_refused():
    spec = FeatureSpec(("d",), [EmbeddingTable("a", 9, 4), EmbeddingTable("b", 9, 4)])
    model = tf_dlrm.DLRM(spec, (8, 4), (8, 1))
    d = np.ones((2, 1), "float32")
    lists = {"dense_features": d, "sparse_features": [[1, 2], [3, 4]]}
    arrays = {"dense_features": d, "sparse_features": np.array([[1, 2], [3, 4]])}
    np.testing.assert_array_equal(
        standardize_features(lists, spec).ids, arrays["sparse_features"]
    )
    lists["sparse_features"] = [[[1], [2, 3]], [[4], [5]]]
    with pytest.raises(ValueError, match="lists of different lengths"):
        model.standardize(lists)
