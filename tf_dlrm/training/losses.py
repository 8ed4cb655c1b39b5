"""Checks of the losses of `compile`: exactness on replicas, and the range of labels."""

from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError


def check_reduction(loss: Any) -> None:
    """Check that the loss of a batch can be computed from the losses of its parts.

    Args:
        loss: The argument of `compile`: a loss, its name, or a structure of them.

    Raises:
        ValueError: If a loss is not a mean over the batch.
    """
    for single in tf.nest.flatten(loss):
        reduction = getattr(single, "reduction", "sum_over_batch_size")
        if reduction not in ("sum_over_batch_size", "mean"):
            raise UserError(
                "With several replicas, the loss must be a mean over the batch, with "
                "the reduction 'sum_over_batch_size'. Received: "
                f"reduction={reduction!r}"
            )


def is_cross_entropy(loss: Any) -> bool:
    """Return whether a loss of `compile` is binary cross-entropy.

    Labels must then lie in [0, 1].
    """
    kinds = (keras.losses.BinaryCrossentropy, keras.losses.BinaryFocalCrossentropy)
    functions = (
        keras.losses.binary_crossentropy,
        keras.losses.binary_focal_crossentropy,
    )
    losses = [keras.losses.get(single) for single in tf.nest.flatten(loss)]
    return any(isinstance(single, kinds) or single in functions for single in losses)
