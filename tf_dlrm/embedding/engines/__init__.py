"""Engines: ways of computing lookups and updates, one of them for each device."""

import tensorflow as tf

from tf_dlrm.embedding.engines.engine import Engine, PooledGradients, Step, TrainedPart
from tf_dlrm.embedding.engines.plain import PlainEngine
from tf_dlrm.embedding.engines.xla_cpu import XlaCpuEngine
from tf_dlrm.runtime import xla

__all__ = [
    "Engine",
    "PlainEngine",
    "PooledGradients",
    "Step",
    "TrainedPart",
    "XlaCpuEngine",
    "choose",
]


def choose(device: str) -> type[Engine]:
    """Return the engine for tables on a device.

    Args:
        device: TensorFlow's name of the device; `""` for wherever TensorFlow puts
            variables: on an accelerator if there is one.
    """
    if xla.is_disabled():
        return PlainEngine
    kind = tf.DeviceSpec.from_string(device).device_type if device else None
    if kind is None:
        kinds = {each.device_type for each in tf.config.list_logical_devices()}
        kind = "CPU" if kinds == {"CPU"} else "GPU"
    return XlaCpuEngine if kind == "CPU" else PlainEngine
