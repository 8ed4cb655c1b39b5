"""Accelerators beside the CPU, and what they change in a step.

On a GPU TensorFlow computes with int32 on the host, and a condition makes the device
wait for its predicate. So there rows and bags are numbered in int64, and what would be
a condition is a mask.
"""

import tensorflow as tf


def are_visible() -> bool:
    """Return whether TensorFlow has a device that is not a CPU."""
    return first() is not None


def first() -> str | None:
    """Return the name of the first device that is not a CPU; `None` without one."""
    for device in tf.config.list_logical_devices():
        if device.device_type != "CPU":
            return device.name
    return None


def index_dtype() -> tf.DType:
    """Return the dtype in which a step counts and numbers: int32, or int64 there."""
    return tf.int64 if are_visible() else tf.int32


def assign_unless(
    condition: tf.Tensor, variable: tf.Variable, value: tf.Tensor
) -> None:
    """Assign to a variable, unless a bool scalar tensor is true; by a mask."""
    variable.assign(tf.where(condition, variable, value))
