"""The number of steps of an epoch for several workers with batches of their own.

Called by `keras_hooks`, with Keras' private `EpochIterator`.
"""

from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime.collectives import gather_arrays
from tf_dlrm.runtime.place import place_of


def agree_on_size(epoch_iterator: Any) -> None:
    """Make all workers take as many steps as the one with the most batches.

    Keras would count the batches of this worker. One whose data end first continues
    with empty batches, which `tf.distribute` makes.
    """
    strategy = epoch_iterator._distribute_strategy
    dataset = getattr(epoch_iterator.data_adapter, "_dataset", None)
    place = place_of(strategy)
    is_own = isinstance(dataset, tf.distribute.DistributedDataset)
    if place.num_workers == 1 or not is_own or hasattr(epoch_iterator, "_of_worker"):
        return
    epoch_iterator._of_worker = epoch_iterator.data_adapter.num_batches
    own = np.array([epoch_iterator._of_worker or -1], np.int64)
    sizes = np.concatenate(gather_arrays(place, own))
    most = None if sizes.min() < 0 else int(sizes.max())
    reset = epoch_iterator.reset

    def reset_to_most():
        reset()
        epoch_iterator._num_batches = most

    epoch_iterator.reset, epoch_iterator._num_batches = reset_to_most, most
