"""The devices of the current strategy, and variables that lie on one of them."""

from concurrent.futures import ThreadPoolExecutor

import tensorflow as tf


def device_names() -> tuple[str, ...]:
    """Names of the devices, in the order of the replicas; `""` without a strategy."""
    if not tf.distribute.has_strategy():
        return ("",)  # wherever TensorFlow puts it
    return tuple(tf.distribute.get_strategy().extended.worker_devices)


def on_device(device: str, make):
    """Calls `make` on a device, outside of the strategy: it would mirror variables.

    The scope of a strategy is its thread's own, so another thread is out of it.
    """

    def call():
        with tf.device(device):
            return make()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(call).result()
