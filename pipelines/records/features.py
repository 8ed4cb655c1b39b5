"""Arrays of rows as the features of a batch."""

from typing import Any

import tensorflow as tf


def make_features(
    dense: tf.Tensor | None,
    ids: tf.Tensor,
    row_splits: tf.Tensor,
    id_weights: tf.Tensor | None,
    num_sparse: int,
    num_rows: tf.Tensor,
) -> dict[str, Any]:
    """Return the features of n rows, as a model takes them.

    Args:
        dense: float32 `(n, num_dense)`; `None` without dense features.
        ids: int64 `(V,)`, the ids of all bags.
        row_splits: int64 `(n * num_sparse + 1,)`, ends of the bags.
        id_weights: float32 `(V,)`; `None` if ids have no weights.
        num_sparse: Number of sparse features.
        num_rows: n, int64.
    """

    def bags(values):
        bags = tf.RaggedTensor.from_row_splits(values, row_splits, validate=False)
        return tf.RaggedTensor.from_uniform_row_length(bags, num_sparse, nrows=num_rows)

    features = {} if dense is None else {"dense_features": dense}
    features["sparse_features"] = bags(ids)
    if id_weights is not None:
        features["sparse_weights"] = bags(id_weights)
    return features
