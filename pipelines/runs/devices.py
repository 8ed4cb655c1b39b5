"""The devices that a run trains on: GPUs, or parts of the CPU if there are none."""

import tensorflow as tf

from pipelines.runtime import UserError


def make_strategy(num_devices: int) -> tf.distribute.MirroredStrategy | None:
    """Return a `MirroredStrategy` over devices of this machine.

    Without GPUs the CPU is divided into logical devices. They share its cores, so
    training does not get faster, but sharding can be tried on any machine.

    Args:
        num_devices: Number of devices.

    Returns:
        The strategy, or `None` for one device.

    Raises:
        ValueError: If there are GPUs but fewer than `num_devices`, or if TensorFlow is
            already initialized with fewer devices.
    """
    if num_devices < 1:
        raise UserError(
            f"`num_devices` must be at least 1. Received: num_devices={num_devices}"
        )
    if num_devices == 1:
        return None
    gpus = tf.config.list_logical_devices("GPU") if _physical("GPU") else []
    if gpus:
        if len(gpus) < num_devices:
            raise UserError(
                f"`num_devices` must not exceed the number of GPUs, {len(gpus)}. "
                f"Received: num_devices={num_devices}"
            )
        return tf.distribute.MirroredStrategy([d.name for d in gpus[:num_devices]])
    (cpu,) = _physical("CPU")
    wanted = [tf.config.LogicalDeviceConfiguration()] * num_devices
    try:
        current = tf.config.get_logical_device_configuration(cpu) or []
        if len(current) < num_devices:
            tf.config.set_logical_device_configuration(cpu, wanted)
    except RuntimeError:
        raise UserError(
            "TensorFlow is already initialized with fewer than "
            f"{num_devices} devices: create the strategy first, in a new process."
        ) from None
    return tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(num_devices)])


def _physical(kind):
    return tf.config.list_physical_devices(kind)
