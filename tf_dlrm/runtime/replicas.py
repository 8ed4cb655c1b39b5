"""The replicas of the current strategy: devices, and functions of all replicas."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import keras
import tensorflow as tf

from tf_dlrm.runtime import xla
from tf_dlrm.runtime.collectives import Group
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.place import ALONE, Place, place_of

Result = TypeVar("Result")


def count() -> int:
    """Return the number of replicas; 1 without a strategy."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def number() -> int:
    """Return the number of the current replica, or 0 outside of replicas."""
    context = tf.distribute.get_replica_context()
    if context is None:
        return 0
    number = context.replica_id_in_sync_group
    return number if isinstance(number, int) else int(tf.get_static_value(number))


def local_number() -> int:
    """Return the number of the current replica among those of this process."""
    return number() - place().first_replica if count() > 1 else 0


def place() -> Place:
    """Return the place of this process under the current strategy."""
    if not tf.distribute.has_strategy():
        return ALONE
    return place_of(tf.distribute.get_strategy())


def device_names() -> tuple[str, ...]:
    """Return the names of the replicas' devices in this process.

    Without a strategy, the result is `("",)`.

    Raises:
        ValueError: If the strategy has replicas that are not workers' devices, because
            its tables would diverge.
    """
    return place().devices


def check_devices(layer: keras.layers.Layer, what: str) -> None:
    """Check that an embedding layer was created under the current strategy.

    Args:
        layer: The layer. If its `devices` is `None`, it fits any strategy.
        what: Subject of the message, such as "`fit`".

    Raises:
        ValueError: If the layer's tables are on other devices.
    """
    devices = layer.devices
    if devices is not None and devices != device_names():
        raise UserError(
            f"{what} needs an embedding layer created under the same strategy. "
            "Create the layer, the model and its optimizer, and compile, in the same "
            f"`with strategy.scope():`. Received: devices {devices} of the layer, "
            f"{device_names()} of the strategy"
        )


def on_device(device: str, make: Callable[[], Result]) -> Result:
    """Call `make` on a device, outside of the strategy, which would mirror variables.

    A strategy's scope is local to its thread, so `make` is called in another thread.
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

    Each replica must call `run_for_all`. Outside of replicas, there is one set of
    arguments. With several workers, each of them calls `function` once.

    Args:
        function: Function that takes a list with the arguments of each replica, and
            returns a list with a result for each replica.
        arguments: Dict of tensors of this replica.

    Returns:
        The result for this replica.
    """
    context = tf.distribute.get_replica_context()
    if context is None or count() == 1:
        return function([arguments])[0]
    own = place_of(context.strategy)
    if own.num_workers > 1:
        gathered = Group(own, number()).gather(arguments, function.__name__)
        anything = next(iter(arguments.values()))
        return run_for_worker(lambda _: function(gathered), anything)
    names = list(arguments)
    settings = xla.settings()  # local to the thread; `merged` runs in another one

    def merged(strategy, *values):
        num_replicas = strategy.num_replicas_in_sync
        columns = [strategy.experimental_local_results(value) for value in values]
        # A tensor that all replicas share appears only once.
        columns = [c * num_replicas if len(c) == 1 else c for c in columns]
        rows = zip(*columns, strict=True)
        with settings:
            return tuple(function([dict(zip(names, r, strict=True)) for r in rows]))

    return context.merge_call(merged, args=tuple(arguments.values()))[number()]


@tf.autograph.experimental.do_not_convert
def run_for_worker(
    function: Callable[[list[tuple[tf.Tensor, ...]]], list], *tensors: tf.Tensor
) -> Any:
    """Call `function` once in this worker, with the tensors of its replicas.

    Each replica of the worker must call this function.

    Args:
        function: Function that takes the tensors of each replica of the worker, and
            returns a list with a result for each replica of all workers.
        *tensors: Tensors of this replica, at least one.

    Returns:
        The result for this replica.
    """
    if len(place().devices) == 1:
        return function([tensors])[number()]
    settings = xla.settings()  # local to the thread; `merged` runs in another one

    def merged(strategy, *values):
        columns = [strategy.experimental_local_results(value) for value in values]
        with settings:
            return tuple(function(list(zip(*columns, strict=True))))

    context = tf.distribute.get_replica_context()
    return context.merge_call(merged, args=tensors)[number()]
