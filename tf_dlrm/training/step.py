"""What a training step takes and gives, and each replica's part in it."""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_dlrm.embedding.contract import Lookup


class StepResult(NamedTuple):
    loss: tf.Tensor
    y_pred: tf.Tensor
    lookups: list[Lookup]
    pooled_gradients: list
    learning_rate: Any
    applies: Any


def pooled_of(lookups):
    return [lookup.pooled for lookup in lookups]


def floats_of(features):
    """What of the features is real numbers, for the guard to look at."""
    tensors = tf.nest.flatten(features, expand_composites=True)
    return [x for x in map(tf.convert_to_tensor, tensors) if x.dtype.is_floating]


def has_replicas() -> bool:
    return tf.distribute.get_strategy().num_replicas_in_sync > 1


def check_reduction(loss) -> None:
    """Raise unless the loss of a batch can be made of those of its parts.

    Args:
        loss: What `compile` was given: a loss, its name, or a structure of them.

    Raises:
        ValueError: If a loss is not a mean over the batch.
    """
    for each in tf.nest.flatten(loss):
        reduction = getattr(each, "reduction", "sum_over_batch_size")
        if reduction not in ("sum_over_batch_size", "mean"):
            raise ValueError(
                "Under several replicas the loss must be a mean over the batch, with "
                "the reduction 'sum_over_batch_size'. Received: "
                f"reduction={reduction!r}"
            )


def is_cross_entropy(loss) -> bool:
    """Whether a loss of `compile` is binary cross-entropy: labels are in [0, 1]."""
    kinds = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
    functions = (
        keras.losses.binary_crossentropy,
        keras.losses.binary_focal_crossentropy,
    )
    losses = [keras.losses.get(each) for each in tf.nest.flatten(loss)]
    return any(isinstance(each, kinds) or each in functions for each in losses)


def share_of_rows(y):
    """This replica's part of the rows of the global batch; `None` without others.

    Replicas may have different numbers of rows, also none: the mean of their means
    is not the mean of all rows.
    """
    if not has_replicas():
        return None
    num_rows = tf.cast(tf.shape(y)[0], tf.float32)
    context = tf.distribute.get_replica_context()
    return num_rows / context.all_reduce(tf.distribute.ReduceOp.SUM, num_rows)
