"""What `MultiHot` refuses, and what it says."""

import numpy as np
import pytest
import tensorflow as tf

from pipelines.multi_hot import MultiHot

WRONG_ARGUMENTS = {
    "no size": (dict(vocabulary_sizes=[]), "`vocabulary_sizes` must be a sequence"),
    "one size": (dict(vocabulary_sizes=10), "`vocabulary_sizes` .*=10"),
    "text": (dict(vocabulary_sizes="12"), "`vocabulary_sizes` .*='12'"),
    "zero": (dict(vocabulary_sizes=[5, 0]), r"integers from 1 to .*=\[5, 0\]"),
    "huge": (dict(vocabulary_sizes=[5, 2**53 + 1]), f"from 1 to {2**53}"),
    "float": (dict(vocabulary_sizes=[5, 6.0]), "`vocabulary_sizes` .*6.0"),
    "bool": (dict(vocabulary_sizes=[5, True]), "`vocabulary_sizes` .*True"),
    "hotness": (dict(hotness=[1, 0]), r"`hotness` must be .*=\[1, 0\]"),
    "counts": (dict(hotness=[1]), "one number for each .* 1 numbers .* 2 in `voc"),
    "distribution": (dict(distribution="zipf"), "`distribution` must be .*'zipf'"),
    "seed": (dict(seed=-1), "`seed` must be .*seed=-1"),
    "large seed": (dict(seed=2**63), "`seed` must be an integer in"),
    "float seed": (dict(seed=1.0), "`seed` must be .*seed=1.0"),
}


@pytest.mark.parametrize(
    "arguments, text", WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS.keys()
)
def test_arguments_are_checked(arguments, text):
    with pytest.raises(ValueError, match=text):
        MultiHot(**{"vocabulary_sizes": [5, 6], "hotness": [1, 2], **arguments})


WRONG_IDS = {
    "float": (np.zeros((2, 2)), TypeError, "int32 or int64. Received: float64"),
    "rank": (np.zeros(2, int), ValueError, r"shape \(n, 2\). Received: \(2,\)"),
    "width": (np.zeros((2, 3), int), ValueError, r"Received: \(2, 3\)"),
    "large": (np.array([[1, 2], [1, 6]]), ValueError, "in column 1.*: 6 in row 1"),
    "negative": (np.array([[1, 2], [-2, 5]]), ValueError, "column 0.*: -2 in row 1"),
}


@pytest.mark.parametrize("ids, error, text", WRONG_IDS.values(), ids=WRONG_IDS.keys())
def test_ids_are_checked(ids, error, text):
    with pytest.raises(error, match=text):
        MultiHot([5, 6], [1, 2]).expand_ids(ids)


ZEROS = np.zeros((2, 2), np.int64)


WRONG_FEATURES = {
    "no ids": ({"label": 1}, ValueError, r"key 'sparse_features'.*\['label'\]"),
    "weights": (
        {"sparse_features": ZEROS, "sparse_weights": ZEROS},
        ValueError,
        "must not have 'sparse_weights'",
    ),
    "padded": (
        {"sparse_features": np.zeros((2, 2, 1), np.int64)},
        ValueError,
        r"must be \(batch, 2\) or ragged.*\(2, 2, 1\)",
    ),
    "width": ({"sparse_features": ZEROS[:, :1]}, ValueError, r"shape: \(2, 1\)"),
    "float": ({"sparse_features": ZEROS.astype(float)}, TypeError, "int32 or int64"),
}


@pytest.mark.parametrize(
    "features, error, text", WRONG_FEATURES.values(), ids=WRONG_FEATURES.keys()
)
def test_features_are_checked(features, error, text):
    with pytest.raises(error, match=text):
        MultiHot([5, 6], [1, 2]).expand(features)


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_only_one_hot_rows_can_be_expanded(wrap):
    expander = MultiHot([5, 6], [3, 2])
    ids = tf.ragged.constant([[[1], [2]], [[], [1, 3]]])
    text = r"must have at most one id in a bag (?s:.*)number of ids:\D*\b2\b"
    with pytest.raises(tf.errors.InvalidArgumentError, match=text):
        wrap(
            lambda ids: (
                expander.expand({"sparse_features": ids})["sparse_features"].flat_values
            )
        )(ids)
