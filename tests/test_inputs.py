"""From what users hand over to one `Batch`."""

import numpy as np
import pytest
import tensorflow as tf
from small_model import compiled, make_data, tables_of


def as_columns(features):
    columns = {f"C{i}": features["sparse_features"][:, i] for i in range(3)}
    return columns | {f"I{i}": features["dense_features"][:, i] for i in range(2)}


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
