"""Exchange of tensors between the replicas of several workers.

The collective operations of `tf.distribute` in the forms that tables need: tensors of
different sizes in each replica, several in one operation.

An operation takes part in an exchange if its instance key is the same in all replicas.
Each replica counts its operations as it runs them, so that the keys agree as long as
all replicas run the same operations in the same order, however often each was traced.
"""

import functools
import itertools
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime.place import Place

# Seconds after which a wait for another worker fails. A worker that died is noticed
# much sooner, by the health check of tf.distribute; this ends a wait for a hanging one.
LIMIT = 1800.0
_REPLICAS, _WORKERS = 780_001, 780_002  # group keys, unlike those of tf.distribute
_eager_keys = itertools.count(1)


@functools.cache
def _counter(device: str) -> tf.Variable:
    """Return the number of operations that the replica on a device has run."""

    def make():
        with tf.device(device):
            return tf.Variable(0, dtype=tf.int32, trainable=False)

    # A strategy's scope, and the graph that is traced, are local to a thread.
    with ThreadPoolExecutor(1) as executor:
        return executor.submit(make).result()


class Group:
    """All replicas of all workers, from one of them.

    Args:
        place: The place of this worker.
        replica: Number of this replica among those of all workers.
    """

    def __init__(self, place: Place, replica: int) -> None:
        self.size, self.replica = place.num_replicas, replica
        self._device = place.devices[replica - place.first_replica]

    def _options(self):
        return {
            "group_size": self.size,
            "group_key": _REPLICAS,
            "instance_key": _counter(self._device).assign_add(1),
            "ordering_token": [],
            "communication_hint": "auto",
            "timeout_seconds": LIMIT,
        }

    def _gather_equal(self, x):
        """Gather vectors `(n,)` of equal size: `(size, n)`."""
        with tf.device(self._device):
            rows = tf.raw_ops.CollectiveGatherV2(input=x, **self._options())
        return tf.reshape(rows, (self.size, -1))

    def gather(self, tensors: Mapping[str, tf.Tensor]) -> list[dict[str, tf.Tensor]]:
        """Return the tensors of each replica, by number of the replica.

        Args:
            tensors: Tensors of this replica. Those of another may have other sizes, but
                the same names, dtypes and ranks.
        """
        header, payload = _pack(tensors)
        headers = self._gather_equal(header)
        size = tf.reduce_max(headers[:, 0])
        missing = size - tf.size(payload, tf.int64)
        rows = self._gather_equal(tf.pad(payload, [[0, missing]]))
        return [_unpack(headers[r], rows[r], tensors) for r in range(self.size)]

    def swap(self, blocks: tf.Tensor) -> tf.Tensor:
        """Send block i to replica i, and return the blocks that arrived, by sender.

        Args:
            blocks: float32 `(size, ...)`, with the same shape in all replicas.
        """
        with tf.device(self._device):
            return tf.raw_ops.CollectiveAllToAllV2(input=blocks, **self._options())

    def sum(self, x: tf.Tensor) -> tf.Tensor:
        """Return the sum of the tensors of all replicas, which have equal shapes."""
        with tf.device(self._device):
            return tf.raw_ops.CollectiveReduceV2(
                input=x,
                merge_op="Add",
                final_op="Id",
                **self._options(),
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

    def gather(x):
        with tf.device(place.devices[0]):
            return tf.raw_ops.CollectiveGatherV2(
                input=x, ordering_token=[], **_of_workers(place)
            ).numpy()

    sizes = gather(tf.constant([len(array)], tf.int64))
    padded = np.zeros(max(sizes.max(), 1), array.dtype)
    padded[: len(array)] = array
    rows = gather(tf.constant(padded)).reshape(place.num_workers, -1)
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
        with tf.device(place.devices[0]):
            options = _of_workers(place)
            if place.worker == sender:
                return tf.raw_ops.CollectiveBcastSendV2(input=x, **options).numpy()
            return tf.raw_ops.CollectiveBcastRecvV2(
                T=dtype, shape=shape, **options
            ).numpy()

    size = np.array([0 if array is None else len(array)], np.int64)
    (num_values,) = send(tf.constant(size), [1], tf.int64)
    if not num_values:
        return np.zeros(0, dtype)
    own = tf.zeros(0) if array is None else tf.constant(np.asarray(array, dtype))
    return send(own, [int(num_values)], tf.as_dtype(dtype))


def _of_workers(place):
    return {
        "group_size": place.num_workers,
        "group_key": _WORKERS,
        "instance_key": next(_eager_keys),
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
