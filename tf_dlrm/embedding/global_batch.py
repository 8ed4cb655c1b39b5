"""Ids and weights of the replicas, packed, sent and joined into the global batch."""

from collections.abc import Sequence

import tensorflow as tf

from tf_dlrm.runtime import replicas
from tf_dlrm.runtime.types import Ids


def pack(ids: Ids, weights: tf.Tensor | None) -> dict[str, tf.Tensor]:
    """Return standardized ids and weights as a dict of tensors to send to replicas."""
    packed = {"ids": ids}
    if isinstance(ids, tf.RaggedTensor):
        packed = {"ids": ids.values, "splits": ids.row_splits}
    if weights is not None:
        packed["weights"] = weights
    return packed


def unpack(arguments: dict[str, tf.Tensor]) -> tuple[Ids, tf.Tensor | None]:
    """Return the `(ids, weights)` that `pack` packed; other entries are ignored."""
    ids = arguments["ids"]
    if "splits" in arguments:
        splits = arguments["splits"]
        ids = tf.RaggedTensor.from_row_splits(ids, splits, validate=False)
    return ids, arguments.get("weights")


def join(
    parts: Sequence[tuple[Ids, tf.Tensor | None]],
) -> tuple[Ids, tf.Tensor | None]:
    """Concatenate the ids and weights of all replicas.

    Args:
        parts: Standardized `(ids, weights)` of each replica.
    """
    ids, weights = zip(*parts, strict=True)
    if len(ids) == 1:
        return ids[0], weights[0]
    if isinstance(ids[0], tf.RaggedTensor):
        # tf.concat would validate the nested splits, which takes time.
        values = tf.concat([part.values for part in ids], 0)
        lengths = tf.concat([part.row_lengths() for part in ids], 0)
        splits = tf.concat([[0], tf.cumsum(lengths)], 0)
        splits = tf.cast(splits, ids[0].row_splits.dtype)
        joined = tf.RaggedTensor.from_row_splits(values, splits, validate=False)
    elif ids[0].shape.rank == 3:
        # Replicas may have padded to different lengths.
        length = tf.reduce_max([tf.shape(part)[2] for part in ids])
        joined = tf.concat([_pad(part, length, -1) for part in ids], 0)
        if weights[0] is not None:
            weights = tuple(_pad(part, length, 0) for part in weights)
    else:
        joined = tf.concat(ids, 0)
    return joined, None if weights[0] is None else tf.concat(weights, 0)


def gather(ids: Ids) -> Ids:
    """Return the ids of all replicas, in each of them, from those of this replica."""

    def gather_all(batches):
        joined = pack(*join([unpack(batch) for batch in batches]))
        return [joined] * len(batches)

    gathered, _ = unpack(replicas.run_for_all(gather_all, pack(ids, None)))
    return gathered


def _pad(x, length, value):
    missing = length - tf.shape(x)[2]
    return tf.pad(x, [[0, 0], [0, 0], [0, missing]], constant_values=value)
