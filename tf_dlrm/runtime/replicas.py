"""The replicas of the current strategy: their devices, and functions of all of them."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import keras
import tensorflow as tf

from tf_dlrm.runtime import xla
from tf_dlrm.runtime.errors import UserError

Result = TypeVar("Result")


def count() -> int:
    """Return the number of replicas; 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def number() -> int:
    """Return the number of the current replica; 0 outside of replicas."""
    context = tf.distribute.get_replica_context()
    if context is None:
        return 0
    number = context.replica_id_in_sync_group
    return number if isinstance(number, int) else int(tf.get_static_value(number))


def device_names() -> tuple[str, ...]:
    """Return the names of the devices, by replica; `""` without a strategy.

    Raises:
        ValueError: Under a strategy whose replicas are not all in this process, where
            the tables of its workers would come to differ.
    """
    if not tf.distribute.has_strategy():
        return ("",)  # wherever TensorFlow puts it
    strategy = tf.distribute.get_strategy()
    devices = tuple(strategy.extended.worker_devices)
    elsewhere = (
        tf.distribute.experimental.ParameterServerStrategy,
        tf.distribute.TPUStrategy,
    )
    if len(devices) != count() or isinstance(strategy, elsewhere):
        raise UserError(
            "Embedding tables can be trained under tf.distribute.MirroredStrategy, on "
            f"the devices of one process. Received: {type(strategy).__name__} with "
            f"{count()} replicas, {len(devices)} of them in this process"
        )
    return devices


def check_devices(layer: keras.layers.Layer, what: str) -> None:
    """Raise unless an embedding layer was made under the current strategy.

    Args:
        layer: The layer; one whose `devices` is `None` fits any.
        what: What was called, for the message.

    Raises:
        ValueError: If its tables are for other devices.
    """
    devices = layer.devices
    if devices is not None and devices != device_names():
        raise UserError(
            f"{what} needs an embedding layer that was made under the same strategy: "
            "make the layer, the model and its optimizer, and compile, inside of one "
            f"`with strategy.scope():`. The layer's devices: {devices}, the current "
            f"strategy's: {device_names()}"
        )


def on_device(device: str, make: Callable[[], Result]) -> Result:
    """Call `make` on a device, outside of the strategy, which would mirror variables.

    The scope of a strategy is its thread's own, so another thread is out of it.
    """

    def call():
        with tf.device(device):
            return make()

    with ThreadPoolExecutor(1) as executor:
        return executor.submit(call).result()


@tf.autograph.experimental.do_not_convert
def run_for_all(
    function: Callable[[list[dict[str, Any]]], list], arguments: dict[str, Any]
) -> Any:
    """Call `function` once, with the arguments of all replicas.

    To be called by each replica. Outside of replicas there is one set of arguments.

    Args:
        function: Takes a list with the arguments of each replica, and returns a list
            with a result for each.
        arguments: Dict of tensors of this replica.

    Returns:
        The result for this replica.
    """
    context = tf.distribute.get_replica_context()
    if context is None or count() == 1:
        return function([arguments])[0]
    names = list(arguments)
    settings = xla.settings()  # a thread's own, and what is merged has another

    def merged(strategy, *values):
        num_replicas = strategy.num_replicas_in_sync
        found = [strategy.experimental_local_results(value) for value in values]
        # One tensor that all replicas were given comes once.
        found = [each * num_replicas if len(each) == 1 else each for each in found]
        of_replicas = zip(*found, strict=True)
        with settings:
            return tuple(
                function([dict(zip(names, each, strict=True)) for each in of_replicas])
            )

    return context.merge_call(merged, args=tuple(arguments.values()))[number()]
