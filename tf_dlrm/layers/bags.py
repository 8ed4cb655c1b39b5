"""Bags of ids: from the forms of the batch contract to rows of a fused table.

A fused table holds several tables one under the other and, below them all, a null
row of zeros. An id that is missing, or outside of its table, reads the null row, so
no lookup needs a mask and none can read a row of another table.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

# Shapes: B batch, F features, L padded length, V values in the batch.


class Lookup(NamedTuple):
    """Where a batch reads a fused table.

    Attributes:
        rows: Rows of the fused table: `(B, F)` one-hot, `(B, F, L)` padded or
            `(V,)` ragged.
        segments: For ragged bags, `(V,)` the bag of each value: example * F +
            feature. Otherwise `None`.
        coefficients: Factor of each value in its bag's sum, shaped as `rows`;
            `None` where all are 1.
        num_features: F.
        num_bags: B * F, scalar tensor.
    """

    rows: tf.Tensor
    segments: tf.Tensor | None
    coefficients: tf.Tensor | None
    num_features: int
    num_bags: tf.Tensor

    @property
    def padded(self) -> bool:
        """Whether the ids came padded to one length."""
        return self.segments is None and self.rows.shape.rank == 3

    def pool(self, embeddings):
        """Pools the embeddings of `rows`, shaped as they and D wide: `(B, F, D)`."""
        if self.coefficients is not None:
            embeddings = embeddings * self.coefficients[..., None]
        return sum_bags(
            embeddings, self.segments, self.padded, self.num_features, self.num_bags
        )

    def unpool(self, gradients):
        """Carries gradients of pooled bags `(B, F, D)` to flat rows.

        Returns `(V,)` rows, repeated as they come, and their `(V, D)` gradients.
        """
        width = gradients.shape[-1]
        values = spread_bags(gradients, self.segments, self.padded)
        if self.coefficients is not None:
            values = values * self.coefficients[..., None]
        elif self.padded:
            shape = tf.concat([tf.shape(self.rows), [width]], 0)
            values = tf.broadcast_to(values, shape)
        return tf.reshape(self.rows, (-1,)), tf.reshape(values, (-1, width))


def standardize_ids(ids, num_features: int):
    """Checks the ids of a batch and returns them in one of three forms.

    Args:
        ids: int32/int64 `(B, F)`, `(B, F, L)` padded with -1, or ragged
            `(B, F, None)`; NumPy arrays are accepted.
        num_features: F.

    Returns:
        A `tf.Tensor`, or a `tf.RaggedTensor` `(B * F, None)` of flat bags.

    Raises:
        TypeError: If the ids are not integers.
        ValueError: If the shape is none of the three.
    """
    if isinstance(ids, tf.RaggedTensor):
        return _standardize_ragged(ids, num_features)
    ids = tf.convert_to_tensor(ids)
    if not ids.dtype.is_integer:
        raise TypeError(
            "Ids must be int32 or int64: float32 changes ids above 2^24 without a "
            f"word. Received: dtype {ids.dtype.name}"
        )
    if ids.dtype not in (tf.int32, tf.int64):
        ids = tf.cast(ids, tf.int64)
    if ids.shape.rank is None:
        # Keras relaxes the rank when one-hot and padded batches come in turn.
        num_examples = tf.shape(ids)[0]
        length = tf.size(ids) // tf.maximum(num_examples * num_features, 1)
        ids = tf.reshape(ids, (num_examples, num_features, length))
    if ids.shape.rank not in (2, 3) or ids.shape[1] not in (num_features, None):
        raise ValueError(
            f"Ids must be (batch, {num_features}), (batch, {num_features}, length) "
            f"padded with -1, or ragged (batch, {num_features}, None). Received "
            f"shape: {ids.shape}"
        )
    return ids


def _standardize_ragged(ids, num_features):
    shape = f"(batch, {num_features}, None) of ragged_rank 2"
    if ids.ragged_rank != 2 or ids.flat_values.shape.rank != 1:
        raise ValueError(
            f"Ragged ids must be {shape}. Received shape {ids.shape} of ragged_rank "
            f"{ids.ragged_rank}"
        )
    if not ids.flat_values.dtype.is_integer:
        raise TypeError(f"Ids must be int32 or int64. Received: dtype {ids.dtype.name}")
    if ids.dtype not in (tf.int32, tf.int64):
        ids = tf.cast(ids, tf.int64)
    if ids.uniform_row_length is None:
        # tf.gather and tf.concat forget that the middle dimension is uniform.
        lengths = ids.row_lengths()
        check = tf.debugging.Assert(
            tf.reduce_all(tf.equal(lengths, num_features)),
            [f"Ragged ids must be {shape}; bags in each example:", lengths],
        )
        with tf.control_dependencies([] if check is None else [check]):
            return ids.values.with_values(tf.identity(ids.flat_values))
    static_length = tf.get_static_value(ids.uniform_row_length)
    if static_length is not None and static_length != num_features:
        raise ValueError(
            f"Ragged ids must be {shape}. Received: {static_length} bags in an example"
        )
    return ids.values


def standardize_weights(weights, ids):
    """Returns float32 weights shaped as the standardized `ids`, flat if ragged."""
    if weights is None:
        return None
    if isinstance(ids, tf.RaggedTensor):
        if not isinstance(weights, tf.RaggedTensor):
            raise ValueError("The weights of ragged ids must be ragged as the ids.")
        values = tf.cast(weights.flat_values, tf.float32)
        splits = tf.cast(weights.values.row_splits, ids.row_splits.dtype)
        message = "Weights and ids must have one number of values in each bag."
        check = tf.debugging.assert_equal(splits, ids.row_splits, message=message)
        with tf.control_dependencies([] if check is None else [check]):
            values = tf.identity(values)
        return values
    weights = tf.cast(tf.convert_to_tensor(weights), tf.float32)
    if weights.shape.rank is None:
        return tf.reshape(weights, tf.shape(ids))
    if not weights.shape.is_compatible_with(ids.shape):
        raise ValueError(
            "Weights must be shaped as the ids. Received: weights "
            f"{weights.shape}, ids {ids.shape}"
        )
    if weights.shape.is_fully_defined() and ids.shape.is_fully_defined():
        return weights
    message = "Weights must be shaped as the ids."
    check = tf.debugging.assert_equal(tf.shape(weights), tf.shape(ids), message=message)
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(weights)


def select_features(ids, weights, columns, num_features: int):
    """Keeps the features at `columns` of standardized ids and weights."""
    if isinstance(ids, tf.RaggedTensor):
        num_examples = ids.nrows() // num_features
        bags = (
            tf.range(num_examples)[:, None] * num_features
            + tf.constant(columns, ids.row_splits.dtype)[None, :]
        )
        bags = tf.reshape(bags, (-1,))
        if weights is not None:
            weights = tf.gather(ids.with_values(weights), bags).values
        return tf.gather(ids, bags), weights
    ids = tf.gather(ids, columns, axis=1)
    return ids, None if weights is None else tf.gather(weights, columns, axis=1)


def make_lookup(
    ids, weights, sizes, offsets, combiners, null_row: int, row_dtype
) -> Lookup:
    """Finds the fused rows and the coefficients of standardized ids.

    Args:
        ids: As `standardize_ids` returns them, for the F features of one table.
        weights: As `standardize_weights` returns them, or `None`.
        sizes: F vocabulary sizes (NumPy).
        offsets: F first rows in the fused table (NumPy).
        combiners: F combiners.
        null_row: The row that missing and out-of-range ids read.
        row_dtype: `tf.int32`, or `tf.int64` for tables beyond 2^31 rows.
    """
    num_features = len(sizes)
    segments = None
    size = tf.constant(sizes, ids.dtype)
    offset = tf.constant(offsets, row_dtype)
    if isinstance(ids, tf.RaggedTensor):
        values = ids.values
        num_bags = tf.cast(ids.nrows(), tf.int32)
        segments = tf.cast(ids.value_rowids(), tf.int32)
        feature = tf.math.floormod(segments, num_features)
        size, offset = tf.gather(size, feature), tf.gather(offset, feature)
    else:
        values = ids
        num_bags = tf.shape(ids)[0] * num_features
        if ids.shape.rank == 3:
            size, offset = size[:, None], offset[:, None]
    valid = tf.logical_and(values >= 0, values < size)
    rows = tf.where(
        valid, tf.cast(values, row_dtype) + offset, tf.constant(null_row, row_dtype)
    )
    coefficients = _coefficients(
        valid, weights, segments, combiners, num_features, num_bags
    )
    return Lookup(rows, segments, coefficients, num_features, num_bags)


def _coefficients(valid, weights, segments, combiners, num_features, num_bags):
    padded = valid.shape.rank == 3
    one_hot = segments is None and not padded
    only_sums = all(combiner == "sum" for combiner in combiners)
    if weights is None and (one_hot or only_sums):
        return None
    w = tf.cast(valid, tf.float32)
    if weights is not None:
        # where, not a product: the weight of a missing id may be anything.
        w = tf.where(valid, weights, tf.zeros_like(weights))
    if only_sums:
        return w
    sums = sum_bags(w, segments, padded, num_features, num_bags)  # (B, F)
    squares = sum_bags(w * w, segments, padded, num_features, num_bags)
    is_mean = tf.constant([combiner == "mean" for combiner in combiners])
    is_sum = tf.constant([combiner == "sum" for combiner in combiners])
    divisor = tf.where(is_mean, sums, tf.sqrt(squares))
    divisor = tf.where(is_sum, tf.ones_like(divisor), divisor)
    factors = tf.math.divide_no_nan(tf.ones_like(divisor), divisor)
    return w * spread_bags(factors, segments, padded)


def sum_bags(values, segments, padded: bool, num_features: int, num_bags):
    """Sums scalars or rows of width D over their bags: to `(B, F)` or `(B, F, D)`."""
    if segments is None:
        return tf.reduce_sum(values, axis=2) if padded else values
    summed = tf.math.unsorted_segment_sum(values, segments, num_bags)
    return tf.reshape(summed, tf.concat([[-1, num_features], tf.shape(values)[1:]], 0))


def spread_bags(bags, segments, padded: bool):
    """Gives each value the entry of its bag: the transpose of `sum_bags`."""
    if segments is None:
        return tf.expand_dims(bags, 2) if padded else bags
    flat = tf.reshape(bags, tf.concat([[-1], tf.shape(bags)[2:]], 0))
    return tf.gather(flat, segments)


def num_examples(ids, num_features: int):
    """Number of examples of standardized ids, int32 scalar tensor."""
    if isinstance(ids, tf.RaggedTensor):
        return tf.cast(ids.nrows(), tf.int32) // num_features
    return tf.shape(ids)[0]


def any_out_of_range(ids, sizes):
    """Whether an id is out of range and not -1 for no id: bool scalar tensor."""
    values, size, low = ids, tf.constant(np.asarray(sizes), ids.dtype), -1
    if isinstance(ids, tf.RaggedTensor):
        values, size, low = ids.values, tf.gather(size, _feature_of(ids, sizes)), 0
    elif ids.shape.rank == 3:
        size = size[:, None]
    return tf.reduce_any(tf.logical_or(values < low, values >= size))


def refuse_ids(ids, sizes, feature_names, table_names):
    """Raises for ids one of which is out of range, naming table and value.

    Raises:
        tf.errors.InvalidArgumentError: At the first id out of range.
    """
    low = 0 if isinstance(ids, tf.RaggedTensor) else -1
    values, size = ids, tf.constant(np.asarray(sizes), ids.dtype)
    if isinstance(ids, tf.RaggedTensor):
        values, feature = ids.values, _feature_of(ids, sizes)
        size = tf.gather(size, feature)
    elif ids.shape.rank == 3:
        size = size[:, None]
        feature = tf.broadcast_to(tf.range(len(sizes))[:, None], tf.shape(ids))
    else:
        feature = tf.broadcast_to(tf.range(len(sizes)), tf.shape(ids))
    outside = tf.logical_or(values < low, values >= size)
    value = tf.boolean_mask(values, outside)[0]
    place = tf.boolean_mask(feature, outside)[0]
    message = tf.strings.join(
        [
            "Id out of range: feature ",
            tf.gather(tf.constant(feature_names), place),
            " of table ",
            tf.gather(tf.constant(table_names), place),
            " received id ",
            tf.strings.as_string(value),
            ", but ids must be at least 0 and below its vocabulary_size ",
            tf.strings.as_string(tf.gather(tf.constant(sizes, tf.int64), place)),
            " (ids at fault in this batch: ",
            tf.strings.as_string(tf.math.count_nonzero(outside)),
            ").",
        ]
    )
    tf.debugging.Assert(False, [message])


def _feature_of(ids, sizes):
    rowids = tf.cast(ids.value_rowids(), tf.int32)
    return tf.math.floormod(rowids, len(sizes))
