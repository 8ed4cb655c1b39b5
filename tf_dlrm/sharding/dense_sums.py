"""Dense sums over devices, for gradients of small tables with a copy on each device.

# V rows of the copies, D width
"""

from collections.abc import Sequence

import tensorflow as tf


def share_rows(num_rows: int, num_devices: int) -> list[int]:
    """Return the number of rows that each device sums: nearly equal shares.

    >>> share_rows(10, 4)
    [3, 3, 2, 2]
    """
    share, rest = divmod(num_rows, num_devices)
    return [share + (device < rest) for device in range(num_devices)]


def all_reduce(values: Sequence[tf.Tensor], devices: Sequence[str]) -> list[tf.Tensor]:
    """Sum a tensor over all devices, and return the sum on each device.

    Each device receives one range of rows from all others, sums it, and sends the sums
    to all others. As in a ring all-reduce, each device sends and receives 2 (N - 1) / N
    of the tensor, but without the ring's sequence of steps.

    Args:
        values: A tensor on each device, float32 `(V, D)` with static V.
        devices: Names of the devices.

    Returns:
        The sum on each device, `(V, D)`.
    """
    if len(values) == 1:
        return list(values)
    sizes = share_rows(values[0].shape[0], len(values))
    ranges = []
    for device, value in zip(devices, values, strict=True):
        with tf.device(device):
            ranges.append(tf.split(value, sizes))
    sums = []
    for device, parts in zip(devices, zip(*ranges, strict=True), strict=True):
        with tf.device(device):
            sums.append(tf.add_n(parts))
    results = []
    for device in devices:
        with tf.device(device):
            results.append(tf.concat(sums, 0))
    return results
