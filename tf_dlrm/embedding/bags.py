"""Bags of ids: from every accepted form to rows of a fused table.

A fused table holds the rows of several tables and, as its last row, a null row of
zeros. An id that is missing or out of range reads the null row. Lookups therefore need
no mask, and no id can read a row of another table.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime import accelerators
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.types import Ids

# Shapes: B batch, F features, L padded length, V values in the batch.


class Places(NamedTuple):
    """Places of F features in a fused table.

    Attributes:
        sizes: Vocabulary size of each feature's table, `(F,)`.
        offsets: First row of each feature's table, `(F,)`.
        combiners: F names: `"sum"`, `"mean"` or `"sqrtn"`.
        null_row: The row that missing and out-of-range ids read.
        row_dtype: `tf.int32`, or `tf.int64` for tables beyond `rows.INT32_ROWS`.
    """

    sizes: np.ndarray
    offsets: np.ndarray
    combiners: list[str]
    null_row: int
    row_dtype: tf.DType


class Lookup(NamedTuple):
    """Rows of a fused table that a batch reads.

    Attributes:
        rows: Rows of the fused table: `(B, F)` one-hot, `(B, F, L)` padded or
            `(V,)` ragged.
        segments: For ragged bags, the bag of each value, example * F + feature, as
            `(V,)`. Otherwise `None`.
        coefficients: Factor of each value in the sum of its bag, with the shape of
            `rows`; `None` if all are 1.
        num_features: Number of features, F.
        num_bags: Number of bags, B * F, int32 scalar tensor.
    """

    rows: tf.Tensor
    segments: tf.Tensor | None
    coefficients: tf.Tensor | None
    num_features: int
    num_bags: tf.Tensor

    @property
    def padded(self) -> bool:
        """True if the ids are padded to one length."""
        return self.segments is None and self.rows.shape.rank == 3

    def pool(self, embeddings: tf.Tensor) -> tf.Tensor:
        """Pool the embeddings of `rows`, `(..., D)`, to `(B, F, D)`."""
        if self.coefficients is not None:
            embeddings = embeddings * self.coefficients[..., None]
        return sum_bags(
            embeddings, self.segments, self.padded, self.num_features, self.num_bags
        )

    def unpool(self, gradients: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Compute the gradients of rows from those of pooled bags, `(B, F, D)`.

        Returns:
            The rows of all values, `(V,)`, with repetitions, and their gradients,
            `(V, D)`.
        """
        width = gradients.shape[-1]
        values = spread_bags(gradients, self.segments, self.padded)
        if self.coefficients is not None:
            values = values * self.coefficients[..., None]
        elif self.padded:
            shape = tf.concat([tf.shape(self.rows), [width]], 0)
            values = tf.broadcast_to(values, shape)
        return tf.reshape(self.rows, (-1,)), tf.reshape(values, (-1, width))


def standardize_ids(ids: Ids, num_features: int) -> Ids:
    """Check the ids of a batch and return them in one of three forms.

    Args:
        ids: int32/int64 `(B, F)`, `(B, F, L)` padded with -1, or ragged
            `(B, F, None)`; NumPy arrays are accepted.
        num_features: Number of features, F.

    Returns:
        A `tf.Tensor`, or a `tf.RaggedTensor` `(B * F, None)` of flat bags.

    Raises:
        TypeError: If the ids are not integers.
        ValueError: If the ids have another shape.
    """
    if isinstance(ids, tf.RaggedTensor):
        return _standardize_ragged(ids, num_features)
    ids = tf.convert_to_tensor(ids)
    if not ids.dtype.is_integer:
        why = ": float32 changes ids above 2^24" if ids.dtype.is_floating else ""
        raise TypeError(
            f"Ids must be int32 or int64{why}. Received: dtype {ids.dtype.name}"
        )
    ids = to_signed(ids)
    rank = ids.shape.rank
    rule = (
        f"Ids must be (batch, {num_features}), (batch, {num_features}, length) padded "
        f"with -1, or ragged (batch, {num_features}, None). Received shape:"
    )
    if rank is None:
        return _with_rank(ids, num_features, rule)
    if rank not in (2, 3) or ids.shape[1] not in (num_features, None):
        raise ValueError(f"{rule} {ids.shape}")
    if ids.shape[1] is None:
        shape = tf.shape(ids)
        ids = _checked(ids, tf.equal(shape[1], num_features), [rule, shape])
        # XLA removes assertions.
        ids = tf.ensure_shape(ids, [None, num_features, None][:rank])
    return ids


def _with_rank(ids, num_features, rule):
    """Return ids whose rank is known only at run time as `(B, F, L)`.

    Keras relaxes the rank if a dataset has both one-hot and padded batches.
    """
    shape = tf.shape(ids)
    good_rank = tf.logical_or(tf.equal(tf.size(shape), 2), tf.equal(tf.size(shape), 3))
    fits = tf.logical_and(good_rank, tf.reduce_all(tf.equal(shape[1:2], num_features)))
    ids = _checked(ids, fits, [rule, shape])
    length = tf.reduce_prod(shape[2:])
    return tf.reshape(ids, tf.stack([shape[0], num_features, length]))


def to_signed(ids: Ids) -> Ids:
    """Return ids as int32 or int64; larger uint64 ids become the smallest int64.

    No table has this id, not even a growing one.
    """
    if ids.dtype in (tf.int32, tf.int64):
        return ids
    signed = tf.cast(ids, tf.int64)
    if ids.dtype == tf.uint64:  # a plain cast may wrap to the padding value -1
        lowest = tf.constant(tf.int64.min, tf.int64)
        if isinstance(signed, tf.RaggedTensor):
            values = signed.flat_values
            return signed.with_flat_values(tf.where(values < 0, lowest, values))
        return tf.where(signed < 0, lowest, signed)
    return signed


def _checked(tensor, condition, data):
    """Return `tensor` after checking at run time that `condition` is true."""
    check = tf.debugging.Assert(condition, data)  # None in eager mode
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(tensor)


def _standardize_ragged(ids, num_features):
    shape = f"(batch, {num_features}, None) of ragged_rank 2"
    if ids.ragged_rank != 2 or ids.flat_values.shape.rank != 1:
        raise ValueError(
            f"Ragged ids must be {shape}. Received shape {ids.shape} of ragged_rank "
            f"{ids.ragged_rank}"
        )
    if not ids.flat_values.dtype.is_integer:
        raise TypeError(f"Ids must be int32 or int64. Received: dtype {ids.dtype.name}")
    ids = to_signed(ids)
    lengths = ids.uniform_row_length
    static = tf.get_static_value(lengths)
    if static == num_features:
        return ids.values
    if static is not None:
        raise ValueError(
            f"Ragged ids must be {shape}. Received: {static} bags in an example"
        )
    if lengths is None:
        # tf.gather and tf.concat forget that the middle dimension is uniform.
        lengths = ids.row_lengths()
    values = _checked(
        ids.flat_values,
        tf.reduce_all(tf.equal(lengths, num_features)),
        [f"Ragged ids must be {shape}; bags in each example:", lengths],
    )
    return ids.values.with_values(values)


def nest(ids: Ids, num_features: int) -> Ids:
    """Return standardized ids in the form that `standardize_ids` accepts."""
    if not isinstance(ids, tf.RaggedTensor):
        return ids
    return tf.RaggedTensor.from_uniform_row_length(
        ids, num_features, nrows=ids.nrows() // num_features, validate=False
    )


def standardize_weights(weights: Any, ids: Ids) -> tf.Tensor | None:
    """Return float32 weights with the shape of the standardized `ids`, flat if ragged.

    Raises:
        ValueError: If the shapes of weights and ids differ.
    """
    if weights is None:
        return None
    if isinstance(ids, tf.RaggedTensor):
        if not isinstance(weights, tf.RaggedTensor):
            raise ValueError("The weights of ragged ids must be ragged too.")
        values = tf.cast(weights.flat_values, tf.float32)
        splits = tf.cast(weights.values.row_splits, ids.row_splits.dtype)
        message = "Weights and ids must have the same number of values in each bag."
        check = tf.debugging.assert_equal(splits, ids.row_splits, message=message)
        with tf.control_dependencies([] if check is None else [check]):
            return tf.identity(values)
    weights = tf.cast(tf.convert_to_tensor(weights), tf.float32)
    message = "Weights must have the shape of the ids."
    if weights.shape.rank is None:
        shape = tf.shape(weights)
        fits = tf.reduce_all(tf.equal(shape[:2], tf.shape(ids)[:2]))
        weights = _checked(weights, fits, [message, "Received shape:", shape])
        return tf.reshape(weights, tf.shape(ids))
    if not weights.shape.is_compatible_with(ids.shape):
        raise ValueError(
            f"{message} Received: weights {weights.shape}, ids {ids.shape}"
        )
    if weights.shape.is_fully_defined() and ids.shape.is_fully_defined():
        return weights
    check = tf.debugging.assert_equal(tf.shape(weights), tf.shape(ids), message=message)
    with tf.control_dependencies([] if check is None else [check]):
        return tf.identity(weights)


def select_features(
    ids: Ids, weights: tf.Tensor | None, columns: Sequence[int], num_features: int
) -> tuple[Ids, tf.Tensor | None]:
    """Select the features at `columns` from standardized ids and weights."""
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


def make_lookup(ids: Ids, weights: tf.Tensor | None, places: Places) -> Lookup:
    """Find the fused rows and the coefficients of standardized ids.

    Args:
        ids: Ids from `standardize_ids`, of the F features of one fused table.
        weights: Weights from `standardize_weights`, or `None`.
        places: Places of the features in the fused table.
    """
    num_features = len(places.sizes)
    values = values_of(ids, places.sizes)
    segments = None
    if isinstance(ids, tf.RaggedTensor):
        num_bags = tf.shape(ids.row_splits)[0] - 1
        segments = segments_of(ids)
    else:
        num_bags = tf.shape(ids)[0] * num_features
    size, offset = per_value(
        ids,
        segments,
        tf.constant(places.sizes, values.dtype),
        tf.constant(places.offsets, places.row_dtype),
    )
    valid = tf.logical_and(values >= 0, values < size)
    rows = tf.where(
        valid,
        tf.cast(values, places.row_dtype) + offset,
        tf.constant(places.null_row, places.row_dtype),
    )
    coefficients = _coefficients(
        valid, weights, segments, places.combiners, num_features, num_bags
    )
    return Lookup(rows, segments, coefficients, num_features, num_bags)


def segments_of(ids: tf.RaggedTensor) -> tf.Tensor:
    """Return the bag of each value of standardized ragged ids, `(V,)`."""
    if not accelerators.are_visible():
        return tf.cast(ids.value_rowids(), tf.int32)
    # `value_rowids` would wait for several sizes from the device.
    position = tf.cumsum(tf.ones_like(ids.values, tf.int64), exclusive=True)
    splits = tf.cast(ids.row_splits, tf.int64)
    return tf.searchsorted(splits, position, side="right", out_type=tf.int64) - 1


def values_of(ids: Ids, sizes: Sequence[int] | np.ndarray) -> tf.Tensor:
    """Return ids, or the values of ragged ids, in a dtype that also holds the sizes."""
    values = ids.values if isinstance(ids, tf.RaggedTensor) else ids
    if row_ops.row_dtype(max(sizes)) == tf.int64:
        values = tf.cast(values, tf.int64)
    return values


def per_value(
    ids: Ids, segments: tf.Tensor | None, *feature_tensors: tf.Tensor
) -> Sequence[tf.Tensor]:
    """Spread tensors with an entry for each feature over the values of the ids."""
    if segments is not None:
        feature = tf.math.floormod(segments, feature_tensors[0].shape[0])
        return [tf.gather(tensor, feature) for tensor in feature_tensors]
    if ids.shape.rank == 3:
        return [tensor[:, None] for tensor in feature_tensors]
    return feature_tensors


def _coefficients(valid, weights, segments, combiners, num_features, num_bags):
    padded = valid.shape.rank == 3
    one_hot = segments is None and not padded
    only_sums = all(combiner == "sum" for combiner in combiners)
    if weights is None and (one_hot or only_sums):
        return None
    w = tf.cast(valid, tf.float32)
    if weights is not None:
        # Not a product: the weight of a missing id may be NaN.
        w = tf.where(valid, weights, tf.zeros_like(weights))
    if only_sums:
        return w
    sums = sum_bags(w, segments, padded, num_features, num_bags)
    squares = sum_bags(w * w, segments, padded, num_features, num_bags)
    factors = bag_factors(sums, squares, combiners)
    return w * spread_bags(factors, segments, padded)


def bag_factors(
    weight_sums: tf.Tensor, square_sums: tf.Tensor, combiners: Sequence[str]
) -> tf.Tensor:
    """Return the factor of each bag by its combiner: 1, 1 / Σw or 1 / √Σw².

    The factor is 0 where the divisor is 0.

    Args:
        weight_sums: Σw, `(B, F)`.
        square_sums: Σw², `(B, F)`.
        combiners: F names.

    Returns:
        float32 `(B, F)`.
    """
    is_mean = tf.constant([combiner == "mean" for combiner in combiners])
    is_sum = tf.constant([combiner == "sum" for combiner in combiners])
    divisor = tf.where(is_mean, weight_sums, tf.sqrt(square_sums))
    divisor = tf.where(is_sum, tf.ones_like(divisor), divisor)
    return tf.math.divide_no_nan(tf.ones_like(divisor), divisor)


def sum_bags(
    values: tf.Tensor,
    segments: tf.Tensor | None,
    padded: bool,
    num_features: int,
    num_bags: tf.Tensor,
) -> tf.Tensor:
    """Sum scalars or rows over their bags, to `(B, F)` or `(B, F, D)`."""
    if segments is None:
        return tf.reduce_sum(values, axis=2) if padded else values
    summed = tf.math.unsorted_segment_sum(values, segments, num_bags)
    return tf.reshape(summed, tf.concat([[-1, num_features], tf.shape(values)[1:]], 0))


def spread_bags(bags: tf.Tensor, segments: tf.Tensor | None, padded: bool) -> tf.Tensor:
    """Return the entry of each value's bag: the transpose of `sum_bags`."""
    if segments is None:
        return tf.expand_dims(bags, 2) if padded else bags
    flat = tf.reshape(bags, tf.concat([[-1], tf.shape(bags)[2:]], 0))
    return tf.gather(flat, segments)


def num_examples(ids: Ids, num_features: int) -> tf.Tensor:
    """Return the number of examples in standardized ids, int32 scalar tensor."""
    if isinstance(ids, tf.RaggedTensor):
        return tf.cast(ids.nrows(), tf.int32) // num_features
    return tf.shape(ids)[0]
