"""Rows as tensors that `tf.data` can cut, join and shuffle, with one entry per row.

`tf.data` would split ragged tensors row by row, so a row has the first id of each
feature, and a row with bags has all of its ids packed into a string.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipelines.records.batch import Batch
from pipelines.records.features import make_features
from pipelines.schema import Schema


class RowTensors(NamedTuple):
    """Some rows as tensors.

    Attributes:
        label: float32 `(n,)`.
        dense: float32 `(n, num_dense)`.
        ids: int32 `(n, F)`, int64 with growing tables; for a row with bags, their
            lengths.
        bags: string `(n,)`: empty, or the ids of a row's bags and their float32
            weights, if the schema has weights.
        weight: float32 `(n,)`, the sample weight; 1 if the schema has none.
    """

    label: Any
    dense: Any
    ids: Any
    bags: Any
    weight: Any


def types_of(schema: Schema) -> tuple[tf.DType, ...]:
    """Return the types of `RowTensors`; ids of growing tables are int64."""
    ids = tf.int64 if schema.has_growing else tf.int32
    return tf.float32, tf.float32, ids, tf.string, tf.float32


class RowForm:
    """Convert between batches of NumPy arrays, rows of tensors, and features.

    Args:
        schema: The columns.
        labelled: Whether batches have a label, and a weight if the schema has one.
        expand: Function to apply to the features.

    Attributes:
        types: The types of `RowTensors`.
    """

    def __init__(self, schema: Schema, labelled: bool, expand: Callable):
        self._num_dense, self._num_sparse = len(schema.dense), len(schema.sparse)
        self.types = types_of(schema)
        self._has_weights = schema.has_id_weights
        self._id_type = np.int64 if schema.has_growing else np.int32
        self._is_weighted = schema.weight is not None
        self._labelled, self._expand = labelled, expand

    def pack(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Return a batch as the NumPy arrays of `RowTensors`."""
        label = batch.labels.astype(np.float32)
        num_rows = len(label)
        bags = np.full(num_rows, b"", object)
        weights = batch.weights
        weights = np.ones(num_rows, np.float32) if weights is None else weights
        if batch.lengths is None:
            return label, batch.dense, batch.ids, bags, weights
        ids = np.empty((num_rows, self._num_sparse), self._id_type)
        lengths = batch.lengths.sum(1, dtype=np.int64)
        ends = np.cumsum(lengths)
        has_bags = (batch.lengths != 1).any(1)
        if batch.id_weights is not None:
            rows = np.repeat(np.arange(num_rows), lengths)
            has_bags[rows[batch.id_weights != 1]] = True
        for row in np.flatnonzero(has_bags).tolist():
            own = slice(int(ends[row - 1]) if row else 0, int(ends[row]))
            # A first byte, so that a row of empty bags is not an empty string.
            bags[row] = b"#" + batch.ids[own].tobytes()
            if batch.id_weights is not None:
                bags[row] += batch.id_weights[own].tobytes()
        one_hot = batch.ids[np.repeat(~has_bags, lengths)]
        ids[~has_bags] = one_hot.reshape(-1, self._num_sparse)
        ids[has_bags] = batch.lengths[has_bags]
        return label, batch.dense, ids, bags, weights

    def with_shapes(self, row: Sequence[tf.Tensor]) -> RowTensors:
        """Set the static shapes."""
        rows = RowTensors(*row)
        rows.label.set_shape((None,))
        rows.dense.set_shape((None, self._num_dense))
        rows.ids.set_shape((None, self._num_sparse))
        rows.bags.set_shape((None,))
        rows.weight.set_shape((None,))
        return rows

    @tf.autograph.experimental.do_not_convert
    def to_batch(self, *row: tf.Tensor):
        """Return rows as features, `(features, label)` or with the sample weight."""
        rows = RowTensors(*row)
        num_rows, num_sparse = tf.size(rows.label, tf.int64), self._num_sparse
        has_bags = tf.not_equal(rows.bags, "")

        def one_hot():
            ids = tf.cast(tf.reshape(rows.ids, [-1]), tf.int64)
            weights = tf.ones(tf.shape(ids) if self._has_weights else (0,))
            return ids, tf.range(num_rows * num_sparse + 1), weights

        def ragged():
            lengths = tf.where(has_bags[:, None], rows.ids, tf.ones_like(rows.ids))
            splits = tf.cumsum(tf.cast(tf.reshape(lengths, [-1]), tf.int64))
            # All ids of each row as bytes: its one-hot ids or the packed ones.
            ids, weights = tf.numpy_function(
                self._join, [rows.ids, rows.bags], (tf.int64, tf.float32)
            )
            ids.set_shape((None,))
            weights.set_shape((None,))
            return ids, tf.concat([[0], splits], 0), weights

        ids, splits, weights = tf.cond(tf.reduce_any(has_bags), ragged, one_hot)
        features = make_features(
            rows.dense if self._num_dense else None,
            ids,
            splits,
            weights if self._has_weights else None,
            num_sparse,
            num_rows,
        )
        features = self._expand(features)
        if not self._labelled:
            return features
        targets = (rows.label, rows.weight) if self._is_weighted else (rows.label,)
        return (features, *targets)

    def _end(self, text):
        """Return where the ids end in a text of ids and float32 weights."""
        size = np.dtype(self._id_type).itemsize
        return len(text) * size // (size + 4)

    def _join(self, ids, bags):
        """Return the concatenated ids of all rows, and their weights if any."""
        texts = [
            bag[1:] if bag else row.tobytes()
            for row, bag in zip(ids, bags, strict=True)
        ]
        if not self._has_weights:
            joined = np.frombuffer(b"".join(texts), self._id_type)
            return joined.astype(np.int64), np.zeros(0, np.float32)
        ones = np.ones(self._num_sparse, np.float32).tobytes()
        halves = [
            (text[: self._end(text)], text[self._end(text) :]) if bag else (text, ones)
            for text, bag in zip(texts, bags, strict=True)
        ]
        all_ids = np.frombuffer(b"".join(ids for ids, _ in halves), self._id_type)
        weights = np.frombuffer(b"".join(weights for _, weights in halves), np.float32)
        return all_ids.astype(np.int64), weights
