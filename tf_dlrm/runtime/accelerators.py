"""Accelerators, and how they change a training step.

With a GPU, TensorFlow computes int32 operations on the host, and a condition makes the
device wait for its predicate. On accelerators, steps therefore number rows and bags in
int64 and use masks instead of conditions.
"""

import tensorflow as tf


def are_visible() -> bool:
    """Return whether TensorFlow has a device other than CPUs."""
    return first() is not None


def first() -> str | None:
    """Return the name of the first device that is not a CPU, or `None`."""
    for device in tf.config.list_logical_devices():
        if device.device_type != "CPU":
            return device.name
    return None


def index_dtype() -> tf.DType:
    """Return the dtype of counts and indices: int64 with an accelerator, else int32."""
    return tf.int64 if are_visible() else tf.int32


def assign_unless(
    condition: tf.Tensor, variable: tf.Variable, value: tf.Tensor
) -> None:
    """Assign to a variable unless a bool scalar tensor is true, using a mask."""
    variable.assign(tf.where(condition, variable, value))
