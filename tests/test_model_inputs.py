"""The forms in which a Keras user hands batches to DLRM, and wrong ones."""

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from helpers.small_model import (
    NUM_ROWS,
    compiled,
    make_data,
    make_model,
    tables_of,
)

import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec, layers


@pytest.mark.integration
def test_numpy_dataset_and_columns_train_alike():
    features, label = make_data()
    columns = {f"C{i}": features["sparse_features"][:, i] for i in range(3)}
    columns |= {f"I{i}": features["dense_features"][:, i] for i in range(2)}
    frame = pd.DataFrame(columns)
    options = {"verbose": 0, "shuffle": False, "batch_size": 16}
    results = []
    for data in (
        (features, label),
        (features, label[:, None]),
        (columns, label),
        (dict(frame), pd.Series(label)),
    ):
        keras.utils.set_random_seed(1)
        model = compiled("sgd")
        model.fit(*data, **options)
        results.append(tables_of(model))
    keras.utils.set_random_seed(1)
    model = compiled("sgd")
    dataset = tf.data.Dataset.from_tensor_slices((features, label)).batch(16)
    model.fit(dataset, verbose=0, shuffle=False)
    results.append(tables_of(model))
    for result in results[1:]:
        for got, expected in zip(result, results[0]):
            np.testing.assert_array_equal(got, expected)


@pytest.mark.integration
def test_large_ids_arrive_exactly():
    """Above 2^24 float32 has no odd numbers."""
    size = (1 << 24) + 2
    spec = FeatureSpec(("I0",), [EmbeddingTable("C0", size, 1, initializer="zeros")])
    model = tf_dlrm.DLRM(spec, (1,), (1,), interaction="cat")
    model.compile("sgd")
    ids = np.full((2, 1), size - 1)
    for features in (
        {"dense_features": np.ones((2, 1)), "sparse_features": ids},
        {"I0": np.ones(2), "C0": ids[:, 0]},
        dict(pd.DataFrame({"I0": [1.0, 1.0], "C0": ids[:, 0]})),
    ):
        model.embedding.set_table("C0", np.zeros((size, 1), "float32"))
        model.fit(features, np.ones(2), verbose=0)
        assert np.flatnonzero(model.embedding.get_table("C0")[:, 0]).tolist() == [
            size - 1
        ]


@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "call"])
def test_a_data_frame_is_refused_with_the_way_to_go(method):
    model = compiled()
    frame = pd.DataFrame({"I0": [1.0]})
    arguments = [] if method in ("predict", "call") else [np.ones(1)]
    function = model if method == "call" else getattr(model, method)
    with pytest.raises((TypeError, ValueError), match="pipelines.from_dataframe"):
        function(frame, *arguments)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict"])
def test_columns_of_types_that_numpy_lacks_are_named(method):
    """And the dict that the message for a frame gives works, Int64 included."""
    model = compiled()
    spec = model.spec
    frame = pd.DataFrame({name: [1.0, 2.0] for name in spec.dense})
    for name in spec.sparse_features:
        frame[name] = pd.array([1, 2], "Int64")
    labels = [] if method == "predict" else [np.ones(2)]
    function = getattr(model, method)
    message = r"has the pandas type Int64.*\(missing ids as -1"
    with pytest.raises(TypeError, match=message):
        function(dict(frame), *labels, verbose=0)
    names = (*spec.dense, *spec.sparse_features)
    arrays = {name: frame[name].to_numpy() for name in names}
    function(arrays, *labels, verbose=0)
    if labels:
        with pytest.raises(TypeError, match="'the labels' has the pandas type Int64"):
            function(arrays, pd.Series([0, 1], dtype="Int64"), verbose=0)


@pytest.mark.parametrize(
    "change, error, message",
    [
        (lambda f: f.pop("dense_features"), ValueError, "Missing: .'dense_features'."),
        (
            lambda f: f.update(other=np.ones(NUM_ROWS)),
            ValueError,
            "unknown: .'other'.",
        ),
        (
            lambda f: f.update(dense_features=np.ones((NUM_ROWS, 3))),
            ValueError,
            r"'dense_features' must be \(batch, 2\)",
        ),
        (
            lambda f: f.update(sparse_features=np.ones((NUM_ROWS, 3))),
            TypeError,
            "above 2\\^24",
        ),
    ],
)
def test_wrong_features_are_named(change, error, message):
    features, _ = make_data()
    change(features)
    with pytest.raises(error, match=message):
        make_model()(features)


def test_wrong_columns_and_labels_are_named():
    model = compiled()
    with pytest.raises(ValueError, match="Features are missing: I1, C1"):
        model({"I0": np.ones(2), "C0": np.ones(2, int), "C2": np.ones(2, int)})
    with pytest.raises(TypeError, match="must be a dict"):
        model(np.ones((2, 5)))
    features, label = make_data()
    with pytest.raises(ValueError, match="Labels are needed"):
        model.train_on_batch(features)
    with pytest.raises(ValueError, match="Labels must be"):
        model.train_on_batch(features, np.ones((NUM_ROWS, 2)))


@pytest.mark.breadth(2)
@pytest.mark.parametrize("call", ["fit", "evaluate", "predict", "train_on_batch"])
@pytest.mark.parametrize("jit", ["auto", False, True], ids=["auto", "plain", "jit"])
def test_an_id_out_of_range_raises_and_changes_nothing(call, jit):
    model = compiled(jit_compile=jit)
    features, label = make_data()
    features["sparse_features"][5, 1] = 7
    before = tables_of(model)
    arguments = {} if call == "train_on_batch" else {"verbose": 0}
    if call == "fit":
        arguments["batch_size"] = NUM_ROWS
    labels = [] if call == "predict" else [label]
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="table C1 received id 7, .*size 7"
    ):
        getattr(model, call)(features, *labels, **arguments)
    for got, expected in zip(tables_of(model), before):
        np.testing.assert_array_equal(got, expected)
    assert int(model.embedding.iterations) == int(model.optimizer.iterations) == 0


def test_small_and_odd_id_types():
    features, _ = make_data()
    expected = make_model()(features).shape
    model = make_model()
    for dtype in ("int8", "uint8", "int16", "uint64"):
        ids = features["sparse_features"].astype(dtype)
        flat = tf.RaggedTensor.from_row_lengths(ids.reshape(-1), [1] * ids.size)
        ragged = tf.RaggedTensor.from_uniform_row_length(flat, 3)
        for form in (ids, ragged):
            out = model(features | {"sparse_features": form})
            assert out.shape == expected
    with pytest.raises(TypeError, match="must be int32 or int64"):
        model(features | {"sparse_features": np.full((NUM_ROWS, 3), "a")})


@pytest.mark.breadth(0)
@pytest.mark.parametrize("method", ["fit", "evaluate", "predict", "train_on_batch"])
def test_one_hot_and_padded_batches_may_come_in_turn(method):
    features, label = make_data()
    ids = features["sparse_features"]
    padded = features | {"sparse_features": np.stack([ids, 0 * ids - 1], axis=2)}
    model = compiled("sgd")
    arguments = {} if method == "train_on_batch" else {"verbose": 0}
    labels = [] if method == "predict" else [label]
    for form in (features, padded, features):
        getattr(model, method)(form, *labels, **arguments)
    np.testing.assert_array_equal(
        model.predict(padded, verbose=0), model.predict(features, verbose=0)
    )


def test_weights_of_other_bags_are_refused():
    layer = layers.EmbeddingCollection([EmbeddingTable("t", 9, 2)])
    ids = tf.RaggedTensor.from_uniform_row_length(tf.ragged.constant([[1, 2], [3]]), 1)
    weights = tf.ragged.constant([[1.0], [5.0, 7.0]])
    weights = tf.RaggedTensor.from_uniform_row_length(weights, 1)
    with pytest.raises(tf.errors.InvalidArgumentError, match="in each bag"):
        layer(ids, weights=weights)
