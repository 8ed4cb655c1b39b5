"""Initial values of rows, keyed by seed, table and id."""

import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from tf_dlrm import growing_ids
from tf_dlrm.embedding.growing import hashes
from tf_dlrm.features import EmbeddingTable


class KeyedRows:
    """Initial rows of growing tables.

    Args:
        tables: The growing tables.
    """

    def __init__(self, tables: Sequence[EmbeddingTable]) -> None:
        rules = [table.growing for table in tables if table.growing is not None]
        names = [table.name for table in tables]
        self._keys = hashes.keys([r.seed for r in rules], names, hashes.ROW_SALT)
        kinds = [
            growing_ids.distribution(table.initializer, table.vocabulary_size)
            for table in tables
        ]
        self._is_normal = np.array([kind == "normal" for kind, _, _ in kinds])
        # low and range, or mean and deviation
        first, second = (np.array([k[i] for k in kinds], np.float32) for i in (1, 2))
        self._first = first
        self._span = np.where(self._is_normal, second, second - first)

    def values(self, ids: tf.Tensor, tables: tf.Tensor, columns: range) -> tf.Tensor:
        """Return the initial values of some columns.

        Args:
            ids: int64 `(n,)`.
            tables: Number of the table of each id, `(n,)`.
            columns: The columns.

        Returns:
            float32 `(n, number of columns)`.
        """
        own = tf.gather(tf.constant(self._keys), tables)[:, None]
        numbers = tf.constant(list(columns), tf.int64)[None, :]
        units = hashes.uniform(ids[:, None], own, numbers)
        if self._is_normal.any():
            others = hashes.uniform(ids[:, None], own, numbers + (1 << 32))
            # Box and Muller; 1 - u is never 0.
            radius = tf.sqrt(-2.0 * tf.math.log(1.0 - units))
            normal = radius * tf.cos(2.0 * math.pi * others)
            is_normal = tf.gather(tf.constant(self._is_normal), tables)[:, None]
            units = tf.where(is_normal, normal, units)
        first = tf.gather(tf.constant(self._first), tables)[:, None]
        return first + units * tf.gather(tf.constant(self._span), tables)[:, None]
