"""The range check of ids, which runs outside XLA because XLA removes assertions."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import bags
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime import deferred_checks
from tf_dlrm.runtime.types import Ids

# Feature, table, id, vocabulary size, number of ids.
_MESSAGE = (
    "Id out of range: feature {} of table {} received id {}, but ids must be at least "
    "0 and below its vocabulary_size {} (ids out of range in this batch: {})."
)


def any_out_of_range(ids: Ids, sizes: Sequence[int] | np.ndarray) -> tf.Tensor:
    """Return whether any id is out of range and not padding, bool scalar tensor."""
    _, outside, _ = _find_outside(ids, sizes)
    return tf.reduce_any(outside)


def _find_outside(ids, sizes):
    """Return the values of standardized ids, which are out of range, and segments."""
    values, segments, lowest = bags.values_of(ids, sizes), None, -1
    if isinstance(ids, tf.RaggedTensor):
        segments, lowest = bags.segments_of(ids), 0
    (size,) = bags.per_value(ids, segments, tf.constant(sizes, values.dtype))
    return values, tf.logical_or(values < lowest, values >= size), segments


def refuse_if(
    bad: tf.Tensor, ids: Ids, features: Sequence[tuple[str, EmbeddingTable]]
) -> tf.Tensor:
    """Raise an error that names table and value if an id is out of range.

    Args:
        bad: Whether any id is out of range, bool scalar tensor.
        ids: Standardized ids.
        features: `(feature, EmbeddingTable)` of each column.

    Returns:
        A tensor to use as a control dependency of everything that needs valid ids.

    Raises:
        tf.errors.InvalidArgumentError: For the first id out of range. Deferred checks
            raise it when they are read.
    """
    checks = deferred_checks.current()
    if checks is not None:
        _defer(checks, bad, ids, features)
        return bad

    def refuse():
        _refuse(
            ids,
            [table.vocabulary_size for _, table in features],
            [feature for feature, _ in features],
            [table.name for _, table in features],
        )
        return tf.constant(True)

    return tf.cond(bad, refuse, lambda: tf.constant(False))


def _refuse(ids, sizes, feature_names, table_names):
    values, outside, segments = _find_outside(ids, sizes)
    (feature,) = bags.per_value(ids, segments, tf.range(len(sizes)))
    feature = tf.broadcast_to(feature, tf.shape(values))
    value = tf.boolean_mask(values, outside)[0]
    place = tf.boolean_mask(feature, outside)[0]
    details = [
        tf.gather(tf.constant(feature_names), place),
        tf.gather(tf.constant(table_names), place),
        tf.strings.as_string(value),
        tf.strings.as_string(tf.gather(tf.constant(sizes, tf.int64), place)),
        tf.strings.as_string(tf.math.count_nonzero(outside)),
        "",
    ]
    words = zip(_MESSAGE.split("{}"), details, strict=True)
    message = tf.strings.join([part for pair in words for part in pair])
    tf.debugging.Assert(False, [message])


def _defer(checks, bad, ids, features):
    """Record the first id out of range without waiting for the device."""
    values, outside, segments = _find_outside(
        ids, [t.vocabulary_size for _, t in features]
    )
    columns = tf.constant(np.arange(len(features)))
    (column,) = bags.per_value(ids, segments, columns)
    column = tf.broadcast_to(column, tf.shape(values, tf.int64))
    # One more entry, so that an empty batch has one.
    extra = tf.zeros((1,), tf.int64)
    values, column, outside = (
        tf.concat([tf.reshape(tf.cast(x, tf.int64), (-1,)), extra], 0)
        for x in (values, column, outside)
    )
    first = tf.argmax(tf.cast(outside, tf.float32))
    details = [
        tf.gather(values, first),
        tf.gather(column, first),
        tf.reduce_sum(outside),
    ]

    def describe(details):
        value, column, count = (int(detail) for detail in details)
        feature, table = features[column]
        return tf.errors.InvalidArgumentError(
            None,
            None,
            _MESSAGE.format(feature, table.name, value, table.vocabulary_size, count),
        )

    name = f"ids of {', '.join(feature for feature, _ in features)}"
    checks.note(name, bad, tf.stack(details), describe)
