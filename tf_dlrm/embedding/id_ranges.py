"""The range check of ids, which runs outside XLA because XLA removes assertions."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import bags
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.growing_ids import LARGEST_ID
from tf_dlrm.runtime import deferred_checks
from tf_dlrm.runtime.types import Ids

# Feature, table, id, rule, number of ids.
_MESSAGE = (
    "Id out of range: feature {} of table {} received id {}, but ids must be at least "
    "0 and {} (ids out of range in this batch: {})."
)


def sizes_of(tables: Sequence[EmbeddingTable]) -> list[int]:
    """Return the number of valid ids of each table, at most the largest int64."""
    return [
        table.vocabulary_size if table.growing is None else LARGEST_ID
        for table in tables
    ]


def _rule(table: EmbeddingTable) -> str:
    if table.growing is not None:
        return "below 2^63, in a growing table"
    return f"below its vocabulary_size {table.vocabulary_size}"


def any_out_of_range(ids: Ids, sizes: Sequence[int] | np.ndarray) -> tf.Tensor:
    """Return whether any id is out of range and not padding, bool scalar tensor."""
    _, outside, _ = _find_outside(ids, sizes)
    return tf.reduce_any(outside)


def _find_outside(ids, sizes):
    """Return the values of standardized ids, which are out of range, and segments."""
    values, segments, lowest = bags.values_of(ids, sizes), None, -1
    if isinstance(ids, tf.RaggedTensor):
        segments, lowest = bags.segments_of(ids), 0
    # The largest int64 is a valid id of a growing table.
    last = [size - (size < LARGEST_ID) for size in sizes]
    (last,) = bags.per_value(ids, segments, tf.constant(last, values.dtype))
    return values, tf.logical_or(values < lowest, values > last), segments


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
            sizes_of([table for _, table in features]),
            [feature for feature, _ in features],
            [table.name for _, table in features],
            [_rule(table) for _, table in features],
        )
        return tf.constant(True)

    return tf.cond(bad, refuse, lambda: tf.constant(False))


def _refuse(ids, sizes, feature_names, table_names, rules):
    values, outside, segments = _find_outside(ids, sizes)
    (feature,) = bags.per_value(ids, segments, tf.range(len(sizes)))
    feature = tf.broadcast_to(feature, tf.shape(values))
    value = tf.boolean_mask(values, outside)[0]
    place = tf.boolean_mask(feature, outside)[0]
    details = [
        tf.gather(tf.constant(feature_names), place),
        tf.gather(tf.constant(table_names), place),
        tf.strings.as_string(value),
        tf.gather(tf.constant(rules), place),
        tf.strings.as_string(tf.math.count_nonzero(outside)),
        "",
    ]
    words = zip(_MESSAGE.split("{}"), details, strict=True)
    message = tf.strings.join([part for pair in words for part in pair])
    tf.debugging.Assert(False, [message])


def _defer(checks, bad, ids, features):
    """Record the first id out of range without waiting for the device."""
    values, outside, segments = _find_outside(
        ids, sizes_of([table for _, table in features])
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
            _MESSAGE.format(feature, table.name, value, _rule(table), count),
        )

    name = f"ids of {', '.join(feature for feature, _ in features)}"
    checks.note(name, bad, tf.stack(details), describe)
