"""Rows as tensors that `tf.data` can cut, join and shuffle: one entry a row in each.

Ragged tensors it would take apart row by row, so rows travel with the first id of
each feature, and those with bags with all of their ids packed into a string.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipelines.formats.line_rules import NUM_DENSE, NUM_SPARSE
from pipelines.records.store import Batch

TYPES = (tf.float32, tf.float32, tf.int32, tf.string)


class Rows(NamedTuple):
    """Rows.

    Attributes:
        label: float32 `(n,)`.
        dense: float32 `(n, 13)`.
        ids: int32 `(n, 26)`; of a row with bags, their lengths.
        bags: string `(n,)`: empty, or the int32 ids of a row's bags.
    """

    label: tf.Tensor
    dense: tf.Tensor
    ids: tf.Tensor
    bags: tf.Tensor


def pack(batch: Batch) -> tuple[np.ndarray, ...]:
    """A batch as the NumPy arrays of `Rows`."""
    label = batch.labels.astype(np.float32)
    num_rows = len(label)
    bags = np.full(num_rows, b"", object)
    if batch.lengths is None:
        return label, batch.dense, batch.ids, bags
    ids = np.empty((num_rows, NUM_SPARSE), np.int32)
    ends = np.cumsum(batch.lengths.sum(1, dtype=np.int64))
    has_bags = (batch.lengths != 1).any(1)
    for row in np.flatnonzero(has_bags).tolist():
        begin = int(ends[row - 1]) if row else 0
        # A first byte, so that a row of empty bags is no empty string.
        bags[row] = b"#" + batch.ids[begin : ends[row]].tobytes()
    one_hot = batch.ids[np.repeat(~has_bags, batch.lengths.sum(1))]
    ids[~has_bags] = one_hot.reshape(-1, NUM_SPARSE)
    ids[has_bags] = batch.lengths[has_bags]
    return label, batch.dense, ids, bags


def with_shapes(row: Sequence[tf.Tensor]) -> Rows:
    """Set the static shapes."""
    row = Rows(*row)
    row.label.set_shape((None,))
    row.dense.set_shape((None, NUM_DENSE))
    row.ids.set_shape((None, NUM_SPARSE))
    row.bags.set_shape((None,))
    return row


def to_batch(rows: Rows, labelled: bool, expand: Callable):
    """Rows as `(features, label)`, or as features.

    Args:
        rows: The rows.
        labelled: Whether the label is wanted.
        expand: Function of the features that they go through.
    """
    num_rows = tf.size(rows.label, tf.int64)
    has_bags = tf.not_equal(rows.bags, "")

    def one_hot():
        ids = tf.cast(tf.reshape(rows.ids, [-1]), tf.int64)
        return ids, tf.range(num_rows * NUM_SPARSE + 1)

    def ragged():
        lengths = tf.where(has_bags[:, None], rows.ids, tf.ones_like(rows.ids))
        splits = tf.cumsum(tf.cast(tf.reshape(lengths, [-1]), tf.int64))
        # Of each row, all ids as bytes: its own, or those that were packed.
        ids = tf.numpy_function(_join, [rows.ids, rows.bags], tf.int64)
        ids.set_shape((None,))
        return ids, tf.concat([[0], splits], 0)

    ids, splits = tf.cond(tf.reduce_any(has_bags), ragged, one_hot)
    bags = tf.RaggedTensor.from_row_splits(ids, splits, validate=False)
    features = {
        "dense_features": rows.dense,
        "sparse_features": tf.RaggedTensor.from_uniform_row_length(
            bags, NUM_SPARSE, nrows=num_rows
        ),
    }
    features = expand(features)
    return (features, rows.label) if labelled else features


def _join(ids, bags):
    """All ids of rows, one after another."""
    texts = [
        bag[1:] if bag else row.tobytes() for row, bag in zip(ids, bags, strict=True)
    ]
    return np.frombuffer(b"".join(texts), np.int32).astype(np.int64)
