"""Which losses of `compile` train exactly, and what they say of the labels."""

from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError


def check_reduction(loss: Any) -> None:
    """Raise unless the loss of a batch can be made of those of its parts.

    Args:
        loss: What `compile` was given: a loss, its name, or a structure of them.

    Raises:
        ValueError: If a loss is not a mean over the batch.
    """
    for each in tf.nest.flatten(loss):
        reduction = getattr(each, "reduction", "sum_over_batch_size")
        if reduction not in ("sum_over_batch_size", "mean"):
            raise UserError(
                "Under several replicas the loss must be a mean over the batch, with "
                "the reduction 'sum_over_batch_size'. Received: "
                f"reduction={reduction!r}"
            )


def is_cross_entropy(loss: Any) -> bool:
    """Return whether a loss of `compile` is binary cross-entropy.

    Its labels are in [0, 1].
    """
    kinds = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
    functions = (
        keras.losses.binary_crossentropy,
        keras.losses.binary_focal_crossentropy,
    )
    losses = [keras.losses.get(each) for each in tf.nest.flatten(loss)]
    return any(isinstance(each, kinds) or each in functions for each in losses)
