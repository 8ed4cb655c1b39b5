"""Exchange of tensors between the replicas of several workers.

The collective operations of `tf.distribute` in the forms that tables need: tensors of
different sizes in each replica, several in one operation.

An operation takes part in an exchange if its instance key is the same in all replicas.
TensorFlow remembers each key, with the shape of its tensors, for as long as the process
lives. So a key depends only on the name of the exchange, on how often the function uses
the name, and on the size, of which there are few: tensors are padded.
"""

import collections
import weakref
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime import xla
from tf_dlrm.runtime.place import Place

# Seconds after which a wait for another worker fails. A worker that died is noticed
# much sooner, by the health check of tf.distribute; this ends a wait for a hanging one.
LIMIT = 1800.0
_REPLICAS, _WORKERS = 780_001, 780_002  # group keys, unlike those of tf.distribute
_FIRST_KEY = 1 << 30  # instance keys, unlike those of tf.distribute
_CLASS_BITS = 10

# How often a graph has used a name in a replica.
_Uses = collections.Counter[tuple[str, int]]
_uses: weakref.WeakKeyDictionary[tf.Graph, _Uses] = weakref.WeakKeyDictionary()


def _key(name: str, replica: int = 0, size_class: Any = 0) -> Any:
    """Return the instance key of an operation: an int, or a tensor for a tensor.

    Args:
        name: Name of the operation.
        replica: Number of the replica that runs it.
        size_class: Number of the size of its tensors, see `_round_up`.
    """
    use = 0
    if not tf.executing_eagerly():
        uses = _uses.setdefault(_outermost_graph(), collections.Counter())
        use = uses[name, replica]
        uses[name, replica] += 1
    bits = 30 - _CLASS_BITS
    number = zlib.crc32(f"{name}:{use}".encode()) & ((1 << bits) - 1)
    return _FIRST_KEY + (number << _CLASS_BITS) + size_class


def _outermost_graph():
    graph = tf.compat.v1.get_default_graph()
    while hasattr(getattr(graph, "outer_graph", None), "outer_graph"):
        graph = graph.outer_graph
    return graph


def _round_up(size: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return one of a few sizes that is at least `size`, and its number."""
    sizes = tf.constant(xla.SIZE_CLASSES, tf.int32)
    number = tf.searchsorted(sizes, tf.cast(size, tf.int32)[None])[0]
    return tf.gather(sizes, number), number


class Group:
    """All replicas of all workers, from one of them.

    Args:
        place: The place of this worker.
        replica: Number of this replica among those of all workers.
    """

    def __init__(self, place: Place, replica: int) -> None:
        self.size, self.replica = place.num_replicas, replica
        self._device = place.devices[replica - place.first_replica]

    def _options(self, key):
        return {
            "group_size": self.size,
            "group_key": _REPLICAS,
            "instance_key": key,
            "ordering_token": [],
            "communication_hint": "auto",
            "timeout_seconds": LIMIT,
        }

    def _gather_equal(self, x, key):
        """Gather vectors `(n,)` of equal size: `(size, n)`."""
        with tf.device(self._device):
            rows = tf.raw_ops.CollectiveGatherV2(input=x, **self._options(key))
        return tf.reshape(rows, (self.size, -1))

    def gather(
        self, tensors: Mapping[str, tf.Tensor], name: str
    ) -> list[dict[str, tf.Tensor]]:
        """Return the tensors of each replica, by number of the replica.

        Args:
            tensors: Tensors of this replica. Those of another may have other sizes, but
                the same names, dtypes and ranks.
            name: Name of the exchange.
        """
        header, payload = _pack(tensors)
        key = _key(f"{name}/shapes/{header.shape[0]}", self.replica)
        headers = self._gather_equal(header, key)
        length, size_class = _round_up(tf.reduce_max(headers[:, 0]))
        padded = tf.pad(payload, [[0, length - tf.size(payload)]])
        rows = self._gather_equal(padded, _key(name, self.replica, size_class))
        return [_unpack(headers[r], rows[r], tensors) for r in range(self.size)]

    def swap(self, blocks: tf.Tensor, name: str) -> tf.Tensor:
        """Send block i to replica i, and return the blocks that arrived, by sender.

        Args:
            blocks: float32 `(size, ...)`, with the same shape in all replicas.
            name: Name of the exchange.
        """
        shape, flat = tf.shape(blocks), tf.reshape(blocks, (self.size, -1))
        num_values = tf.shape(flat)[1]
        length, size_class = _round_up(num_values)
        padded = tf.pad(flat, [[0, 0], [0, length - num_values]])
        key = _key(name, self.replica, size_class)
        with tf.device(self._device):
            rows = tf.raw_ops.CollectiveAllToAllV2(input=padded, **self._options(key))
        arrived = tf.reshape(rows[:, :num_values], shape)
        return tf.ensure_shape(arrived, blocks.shape)

    def sum(self, x: tf.Tensor, name: str) -> tf.Tensor:
        """Return the sum of the tensors of all replicas.

        Args:
            x: A tensor of static shape, which is the same in all replicas.
            name: Name of the exchange.
        """
        key = _key(f"{name}/{x.shape.as_list()}", self.replica)
        with tf.device(self._device):
            return tf.raw_ops.CollectiveReduceV2(
                input=x, merge_op="Add", final_op="Id", **self._options(key)
            )


def gather_arrays(place: Place, array: np.ndarray) -> list[np.ndarray]:
    """Return the one-dimensional array of each worker, by number of the worker.

    All workers must call this function, outside of functions that are traced.

    Args:
        place: The place of this worker.
        array: One-dimensional int64 or float32 array, of any size.
    """
    if place.num_workers == 1:
        return [array]

    def gather(x, name):
        with tf.device(place.devices[0]):
            return tf.raw_ops.CollectiveGatherV2(
                input=x, ordering_token=[], **_of_workers(place, name)
            ).numpy()

    sizes = gather(tf.constant([len(array)], tf.int64), "sizes")
    length = xla.capacity(max(int(sizes.max()), 1))
    padded = np.zeros(length, array.dtype)
    padded[: len(array)] = array
    rows = gather(tf.constant(padded), f"arrays/{array.dtype}/{length}")
    rows = rows.reshape(place.num_workers, -1)
    return [row[:size] for row, size in zip(rows, sizes, strict=True)]


def wait_for_all(place: Place) -> None:
    """Wait until all workers have called this function."""
    gather_arrays(place, np.zeros(1, np.int64))


def broadcast_array(
    place: Place, sender: int, array: np.ndarray | None, dtype: Any = np.float32
) -> np.ndarray:
    """Return the one-dimensional array of one worker, in all workers.

    All workers must call this function, outside of functions that are traced.

    Args:
        place: The place of this worker.
        sender: Number of the worker whose array is sent.
        array: In this worker, the array; in all others, it is ignored.
        dtype: Type of the array.
    """
    if place.num_workers == 1:
        if array is None:
            raise ValueError("The sender must pass an array.")
        return array

    def send(x, shape, dtype):
        name = f"from {sender}/{dtype.name}/{shape}"  # a key remembers its sender
        with tf.device(place.devices[0]):
            options = _of_workers(place, name)
            if place.worker == sender:
                return tf.raw_ops.CollectiveBcastSendV2(input=x, **options).numpy()
            return tf.raw_ops.CollectiveBcastRecvV2(
                T=dtype, shape=shape, **options
            ).numpy()

    size = np.array([0 if array is None else len(array)], np.int64)
    (num_values,) = send(tf.constant(size), [1], tf.int64)
    if not num_values:
        return np.zeros(0, dtype)
    padded = np.zeros(xla.capacity(int(num_values)), dtype)
    if array is not None and place.worker == sender:
        padded[: len(array)] = array
    received = send(tf.constant(padded), [len(padded)], tf.as_dtype(dtype))
    return received[: int(num_values)]


def _of_workers(place, name):
    return {
        "group_size": place.num_workers,
        "group_key": _WORKERS,
        "instance_key": _key(f"workers/{name}"),
        "communication_hint": "auto",
        "timeout_seconds": LIMIT,
    }


def _pack(tensors):
    """Return the sizes of tensors, int64, and their bytes as float32 vectors."""
    shapes, parts = [], []
    for tensor in tensors.values():
        shapes.append(tf.shape(tensor, tf.int64))
        tensor = tf.cast(tensor, tf.int32) if tensor.dtype == tf.bool else tensor
        parts.append(tf.reshape(tf.bitcast(tensor, tf.float32), [-1]))
    payload = tf.concat([tf.zeros(1), *parts], 0)  # never empty
    size = tf.size(payload, tf.int64)
    return tf.concat([[size], *shapes], 0), payload


def _unpack(header, payload, like: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Return the tensors that `_pack` packed, in another replica."""
    tensors, place, first = {}, 1, tf.ones((), tf.int64)
    for name, own in like.items():
        rank = own.shape.rank
        shape = header[place : place + rank]
        place += rank
        dtype = tf.int32 if own.dtype == tf.bool else own.dtype
        words = dtype.size // 4
        end = first + tf.reduce_prod(shape) * words
        part = payload[first:end]
        if words > 1:
            part = tf.reshape(part, (-1, words))
        tensor = tf.reshape(tf.bitcast(part, dtype), shape)
        tensor = tf.cast(tensor, own.dtype)
        tensor.set_shape([None, *own.shape[1:]] if rank else [])
        tensors[name], first = tensor, end
    return tensors
