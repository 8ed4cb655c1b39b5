"""Ids of growing tables in a batch of any form, and their rows put back.

# B rows, F features, G features of growing tables, L padded length, V values
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import bags
from tf_dlrm.runtime.types import Ids


class Translation:
    """Selection of the ids of growing tables.

    Args:
        numbers: Number of the growing table of each of F features; -1 for others.
    """

    def __init__(self, numbers: Sequence[int]) -> None:
        self._numbers = np.array(numbers, np.int32)

    def select(
        self, ids: Ids, columns: Sequence[int]
    ) -> tuple[tf.Tensor, tf.Tensor, Callable[[tf.Tensor], Ids]]:
        """Return the ids of growing tables in the order of the batch.

        Args:
            ids: Standardized ids of the features at `columns`.
            columns: Positions of features.

        Returns:
            The ids, int64 `(V,)`; the number of the table of each, int32 `(V,)`; and
            a function of their rows, int64 `(V,)`, that returns `ids` with rows in
            their place.
        """
        numbers = self._numbers[np.asarray(columns)]
        if isinstance(ids, tf.RaggedTensor):
            return self._select_ragged(ids, numbers)
        ids = tf.cast(ids, tf.int64)
        own = np.flatnonzero(numbers >= 0)
        is_all = len(own) == len(numbers)
        values = ids if is_all else tf.gather(ids, own, axis=1)
        table = tf.constant(numbers[own])
        if ids.shape.rank == 3:
            table = table[:, None]
        shape = tf.shape(values)
        tables = tf.reshape(tf.broadcast_to(table, shape), (-1,))

        def put_back(rows):
            rows = tf.reshape(rows, shape)
            rows = tf.ensure_shape(rows, values.shape)
            if is_all:
                return rows
            places = np.arange(len(numbers))
            places[own] = len(numbers) + np.arange(len(own))
            return tf.gather(tf.concat([ids, rows], 1), places, axis=1)

        return tf.reshape(values, (-1,)), tables, put_back

    def _select_ragged(self, ids, numbers):
        values = tf.cast(ids.values, tf.int64)
        feature = tf.math.floormod(bags.segments_of(ids), len(numbers))
        table = tf.gather(tf.constant(numbers), feature)
        if (numbers >= 0).all():
            return values, table, ids.with_values
        own = tf.where(table >= 0)

        def put_back(rows):
            return ids.with_values(tf.tensor_scatter_nd_update(values, own, rows))

        return tf.gather_nd(values, own), tf.gather_nd(table, own), put_back
