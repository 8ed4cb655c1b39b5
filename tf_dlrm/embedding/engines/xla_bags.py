"""Bags of ids under XLA: row lookup, bag sums, and a flat form for updates.

The results equal those of `bags.Lookup`, several times faster. Ids are padded to one of
a few shapes (`xla.capacity`) and have one of two forms: one-hot `(B, F)`, or values
`(V,)` with splits `(B * F + 1,)`. The padding is -1 and belongs to no bag.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding.bags import Places, bag_factors, values_of
from tf_dlrm.runtime import xla
from tf_dlrm.runtime.types import Ids

# Shapes: B batch, F features, V values, N bags (B * F), S parts of bags, D width.


class PackedIds(NamedTuple):
    """The ids of a batch, padded so that few different shapes occur.

    Attributes:
        ids: int32/int64 `(B, F)`, or values `(V,)`.
        splits: int32 `(N + 1,)` for values; `None` for the one-hot form.
        weights: float32 with the shape of `ids`, or `None`.
    """

    ids: tf.Tensor
    splits: tf.Tensor | None
    weights: tf.Tensor | None


def pack(ids: Ids, weights: tf.Tensor | None, num_features: int) -> PackedIds:
    """Pack standardized ids and weights (see `bags.standardize_ids`)."""
    splits = None
    if isinstance(ids, tf.RaggedTensor):
        splits = _pad_splits(tf.cast(ids.row_splits, tf.int32), num_features)
        ids = ids.values
    elif ids.shape.rank == 3:
        # Flatten before padding: padded examples would cost as much as real ones.
        shape = tf.shape(ids)
        num_bags = xla.capacity(shape[0]) * num_features + 1
        splits = tf.minimum(tf.range(num_bags), shape[0] * num_features) * shape[2]
        ids = tf.reshape(ids, (-1,))
        weights = None if weights is None else tf.reshape(weights, (-1,))
    weights = None if weights is None else xla.pad_rows(weights)
    return PackedIds(xla.pad_rows(ids, -1), splits, weights)


def _pad_splits(splits, num_features):
    """Append empty bags, so that the number of examples becomes its `xla.capacity`."""
    num_examples = (tf.shape(splits)[0] - 1) // num_features
    missing = (xla.capacity(num_examples) - num_examples) * num_features
    return tf.concat([splits, tf.repeat(splits[-1:], missing)], 0)


def pool_one_hot(
    read: Callable[[tf.Tensor], tf.Tensor], packed: PackedIds, places: Places
) -> tuple[tf.Tensor, tf.Tensor]:
    """Look up one-hot ids `(B, F)`.

    Args:
        read: Function that returns the embeddings of rows.
        packed: Ids without splits.
        places: Places of the features in the fused table.

    Returns:
        The embeddings, `(B, F, D)`, and whether any id is out of range.
    """
    ids, weights = values_of(packed.ids, places.sizes), packed.weights
    sizes = tf.constant(places.sizes, ids.dtype)
    valid = tf.logical_and(ids >= 0, ids < sizes)
    offsets = tf.constant(places.offsets, places.row_dtype)
    rows = _rows(ids, valid, offsets, places.null_row)
    pooled = read(rows)
    factors = _one_hot_factors(valid, weights, places.combiners)
    if factors is not None:
        pooled *= factors[..., None]
    bad = tf.reduce_any(tf.logical_and(tf.logical_not(valid), tf.not_equal(ids, -1)))
    return pooled, bad


def pool_bags(
    read: Callable[[tf.Tensor], tf.Tensor],
    packed: PackedIds,
    places: Places,
    lowest: int,
    part: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Look up and pool bags of ids, in O(values + bags) even if one bag is long.

    Each bag is split into parts of `part` values. The k-th values of all parts are
    gathered at once, and the sums of the parts are added to their bags.

    Args:
        read: Function that returns the embeddings of rows.
        packed: Ids with splits.
        places: Places of the features in the fused table.
        lowest: Smallest valid id: 0, or -1 if the ids may contain padding.
        part: Number of values in a part.

    Returns:
        The pooled embeddings, `(N / F, F, D)`, and whether any id is out of range.
    """
    values, splits, weights = packed
    values = values_of(values, places.sizes)
    num_bags, num_features = tf.shape(splits)[0] - 1, len(places.sizes)
    cut = _cut_bags(splits, tf.shape(values)[0], part)
    feature = tf.math.floormod(cut.bag, num_features)
    sizes = tf.gather(tf.constant(places.sizes, values.dtype), feature)
    offsets = tf.gather(tf.constant(places.offsets, places.row_dtype), feature)
    only_sums = all(combiner == "sum" for combiner in places.combiners)
    total = weight_sum = square_sum = bad = None
    for k in range(part):
        position = cut.begin + k
        inside = position < cut.end
        position = tf.minimum(position, tf.shape(values)[0] - 1)
        ids = tf.gather(values, position)
        in_range = tf.logical_and(ids >= 0, ids < sizes)
        valid = tf.logical_and(inside, in_range)
        wrong = tf.logical_and(
            inside, tf.logical_not(tf.logical_or(in_range, ids == lowest))
        )
        bad = wrong if bad is None else tf.logical_or(bad, wrong)
        rows = read(_rows(ids, valid, offsets, places.null_row))
        if weights is not None or not only_sums:
            w = tf.cast(valid, tf.float32)
            if weights is not None:
                w = tf.where(valid, tf.gather(weights, position), 0.0)
                rows *= w[:, None]
            weight_sum = w if weight_sum is None else weight_sum + w
            square_sum = w * w if square_sum is None else square_sum + w * w
        total = rows if total is None else total + rows
    pooled = tf.math.unsorted_segment_sum(total, cut.bag, num_bags)
    if not only_sums:
        factors = _factors_of_bags(
            tf.math.unsorted_segment_sum(weight_sum, cut.bag, num_bags),
            tf.math.unsorted_segment_sum(square_sum, cut.bag, num_bags),
            places.combiners,
        )
        pooled *= factors[:, None]
    shape = tf.concat([[-1, num_features], tf.shape(pooled)[1:]], 0)
    return tf.reshape(pooled, shape), tf.reduce_any(bad)


class FlatIds(NamedTuple):
    """The values of a batch in one flat list, for updates.

    Attributes:
        rows: Rows of the table, `(V,)`, -1 for none.
        slot_rows: Rows of the optimizer's slots, `(V,)`, -1 for none.
        bags: The bag of each value, int32 `(V,)`; `None` if each value is a bag.
        weights: Factors of the values, `(V,)`, including those of the combiner; `None`
            if all are 1.
    """

    rows: tf.Tensor
    slot_rows: tf.Tensor
    bags: tf.Tensor | None
    weights: tf.Tensor | None

    def spread(
        self, gradients: tf.Tensor, positions: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Return the gradients of values, `(n, D)`, from those of bags, `(N, D)`.

        Args:
            gradients: Gradients of the pooled bags.
            positions: Positions of the values, `(n,)`; default: all.
        """
        bags, weights = self.bags, self.weights
        if positions is not None:
            bags = positions if bags is None else tf.gather(bags, positions)
            weights = None if weights is None else tf.gather(weights, positions)
        if bags is not None:
            gradients = tf.gather(gradients, bags)
        return gradients if weights is None else gradients * weights[:, None]


def flatten(packed: PackedIds, places: Places, slot_offsets: np.ndarray) -> FlatIds:
    """Find the row, bag and factor of each value.

    Args:
        packed: The ids.
        places: Places of the features in the fused table.
        slot_offsets: First slot row of each feature, `(F,)`, or -1 for features that
            another optimizer trains.
    """
    ids, splits, weights = packed
    ids = values_of(ids, places.sizes)
    sizes = tf.constant(places.sizes, ids.dtype)
    offsets = tf.constant(places.offsets, places.row_dtype)
    slot_offsets = tf.constant(slot_offsets, places.row_dtype)
    bags = None
    if splits is not None:
        bags = _bag_of_values(splits, tf.shape(ids)[0])
        feature = tf.math.floormod(bags, len(places.sizes))
        sizes, offsets, slot_offsets = (
            tf.gather(values, feature) for values in (sizes, offsets, slot_offsets)
        )
    # Values after the last bag are padding, which is -1.
    valid = tf.logical_and(ids >= 0, ids < sizes)
    if splits is None:
        weights = _one_hot_factors(valid, weights, places.combiners)
    else:
        weights = _bag_weights(valid, weights, bags, splits, places.combiners)
    valid = tf.logical_and(valid, slot_offsets >= 0)
    rows = _rows(ids, valid, offsets, -1)
    slot_rows = _rows(ids, valid, slot_offsets, -1)
    rows, slot_rows = tf.reshape(rows, (-1,)), tf.reshape(slot_rows, (-1,))
    weights = None if weights is None else tf.reshape(weights, (-1,))
    return FlatIds(rows, slot_rows, bags, weights)


def _bag_weights(valid, weights, bags, splits, combiners):
    only_sums = all(combiner == "sum" for combiner in combiners)
    if weights is None and only_sums:
        return None
    w = tf.cast(valid, tf.float32)
    if weights is not None:
        w = tf.where(valid, weights, 0.0)
    if only_sums:
        return w
    num_bags = tf.shape(splits)[0] - 1
    factors = _factors_of_bags(
        tf.math.unsorted_segment_sum(w, bags, num_bags),
        tf.math.unsorted_segment_sum(w * w, bags, num_bags),
        combiners,
    )
    return w * tf.gather(factors, bags)


class _CutBags(NamedTuple):
    bag: tf.Tensor  # (S,) bag of each part
    begin: tf.Tensor  # (S,) position of the part's first value
    end: tf.Tensor  # (S,) end of the part's bag


def _cut_bags(splits, num_values, part):
    """Split bags into as many parts as may be needed; unused parts are empty."""
    num_bags = tf.shape(splits)[0] - 1
    num_parts = num_values // part + num_bags
    counts = (splits[1:] - splits[:-1] + part - 1) // part
    ends = tf.cumsum(counts)
    bag = _bag_of_values(tf.concat([[0], ends], 0), num_parts)
    within = tf.range(num_parts) - tf.gather(ends - counts, bag)
    begin = tf.gather(splits, bag) + within * part
    return _CutBags(bag, begin, tf.gather(splits, bag + 1))


def _bag_of_values(splits, num_values):
    """Return the bag of each value, int32 `(V,)`; padding gets the last bag."""
    inner = splits[1:-1]
    ends = tf.zeros((num_values,), tf.int32)
    ends = tf.tensor_scatter_nd_add(ends, inner[:, None], tf.ones_like(inner))
    return tf.cumsum(ends)


def _rows(ids, valid, offsets, default: int):
    """Return the rows of ids in the dtype of `offsets`; `default` for invalid ids."""
    rows = tf.cast(ids, offsets.dtype) + offsets
    return tf.where(valid, rows, tf.cast(default, offsets.dtype))


def _one_hot_factors(valid, weights, combiners):
    """Return the factors `(B, F)` of one-hot bags, or `None` if all are 1."""
    if weights is None:
        return None
    w = tf.where(valid, weights, 0.0)
    return w * bag_factors(w, w * w, combiners)


def _factors_of_bags(weight_sums, square_sums, combiners):
    """Return the `bag_factors` of a flat list of bags, `(N,)`."""
    shape = (-1, len(combiners))
    sums, squares = tf.reshape(weight_sums, shape), tf.reshape(square_sums, shape)
    return tf.reshape(bag_factors(sums, squares, combiners), (-1,))
