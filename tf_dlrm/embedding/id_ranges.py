"""The range check of ids, outside of XLA, where assertions vanish."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import bags
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime.types import Ids


def any_out_of_range(ids: Ids, sizes: Sequence[int] | np.ndarray) -> tf.Tensor:
    """Return whether an id is out of range and not -1, bool scalar tensor."""
    _, outside, _ = _find_outside(ids, sizes)
    return tf.reduce_any(outside)


def _find_outside(ids, sizes):
    """Values of standardized ids, which are out of range, and their segments."""
    values, segments, lowest = bags.values_of(ids, sizes), None, -1
    if isinstance(ids, tf.RaggedTensor):
        segments, lowest = tf.cast(ids.value_rowids(), tf.int32), 0
    (size,) = bags.per_value(ids, segments, tf.constant(sizes, values.dtype))
    return values, tf.logical_or(values < lowest, values >= size), segments


def refuse_if(
    bad: tf.Tensor, ids: Ids, features: Sequence[tuple[str, EmbeddingTable]]
) -> tf.Tensor:
    """Raise for ids one of which is out of range, naming table and value.

    Args:
        bad: Whether one is, bool scalar tensor.
        ids: Standardized ids.
        features: `(feature, EmbeddingTable)` of each column.

    Returns:
        What waits for the check.

    Raises:
        tf.errors.InvalidArgumentError: At the first id out of range.
    """

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
