"""The devices that a run trains on: GPUs, or parts of the CPU if there are none."""

import json
import os

import tensorflow as tf

from pipelines.runtime import UserError

_JOBS = {"chief", "worker"}


def count_workers() -> int:
    """Return the number of workers that the environment variable `TF_CONFIG` names.

    Without it, the result is 1.

    Raises:
        ValueError: If it is not JSON, or this process or another is not a worker.
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return 1
    try:
        config = json.loads(text)
        cluster, task = config.get("cluster", {}), config.get("task", {})
        sizes = {job: len(addresses) for job, addresses in cluster.items()}
        job, index = task.get("type"), task.get("index")
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"TF_CONFIG is not valid JSON. Received: {text!r}") from None
    if sum(sizes.values()) <= 1:
        return 1
    if not set(sizes) <= _JOBS:
        raise UserError(
            "TF_CONFIG must name only jobs 'chief' and 'worker': training on parameter "
            f"servers is not supported. Received: {', '.join(sizes)}"
        )
    if not isinstance(index, int) or not 0 <= index < sizes.get(job, 0):
        raise UserError(
            "TF_CONFIG must say which worker this process is, such as "
            '{"task": {"type": "worker", "index": 0}}. Received: ' + repr(task)
        )
    return sum(sizes.values())


def make_strategy(num_devices: int) -> tf.distribute.Strategy | None:
    """Return a strategy over devices of this machine, or of all workers.

    If `TF_CONFIG` names several workers, it is a `MultiWorkerMirroredStrategy`.

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
    if count_workers() > 1:
        if num_devices > 1:
            raise UserError(
                "With several workers, which TF_CONFIG names, each uses the devices "
                f"that it sees. Received: num_devices={num_devices}"
            )
        return tf.distribute.MultiWorkerMirroredStrategy()
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
