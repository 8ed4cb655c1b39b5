"""The part of a sharded collection that lies on one device, fused by width.

# B rows of a batch, F features of a group, V values
"""

import collections

import numpy as np
import tensorflow as tf

from tf_dlrm.features import EmbeddingTable
from tf_dlrm.layers import bags
from tf_dlrm.layers.fused_table import FusedTable


class Group:
    """Shards of equal width on one device: one variable, one lookup, one update.

    Args:
        device: Number of the device.
        width: Columns of the shards.
        shards: The `Shard`s, all data-parallel or none.
        features: `(feature, EmbeddingTable)` of the collection, in order.
    """

    def __init__(self, device: int, width: int, shards, features):
        self.device, self.shards = device, tuple(shards)
        self.is_copy = self.shards[0].kind == "data_parallel"
        places = collections.defaultdict(list)
        for column, (_, table) in enumerate(features):
            places[table.name].append((column, table))
        # Of each feature of the group: its column in the model, its shard.
        self.columns, self.of_feature, parts = [], [], []
        for number, shard in enumerate(self.shards):
            (_, table), *_ = places[shard.table]
            self.columns += [column for column, _ in places[shard.table]]
            self.of_feature += [shard] * len(places[shard.table])
            split = shard.num_rows < table.vocabulary_size
            parts.append(
                EmbeddingTable(
                    f"{shard.table}_{number}",
                    shard.num_rows,
                    width,
                    # Parts of a bag are only summed; factors come with the ids.
                    combiner="sum" if split else table.combiner,
                    features=[f"{number}_{c}" for c, _ in places[shard.table]],
                )
            )
        self.fused = FusedTable(width, parts, parts)
        self.names = [part.name for part in parts]
        self._first_rows = np.array([shard.first_row for shard in self.of_feature])
        self._num_rows = np.array([shard.num_rows for shard in self.of_feature])
        combiners = {t.name: t.combiner for _, t in features}
        sizes = {t.name: t.vocabulary_size for _, t in features}
        self._is_split = [s.num_rows < sizes[s.table] for s in self.of_feature]
        self._needs_factors = any(
            split and combiners[s.table] != "sum"
            for split, s in zip(self._is_split, self.of_feature)
        )
        self._sizes = [sizes[s.table] for s in self.of_feature]
        self._combiners = [combiners[s.table] for s in self.of_feature]

    def place(self, shard) -> int:
        """First row of a shard in the fused variable."""
        return self.fused.first_row[self.names[self.shards.index(shard)]]

    def select(self, ids, weights, num_features: int):
        """What this group needs of a batch: the ids of its features, in its rows.

        Args:
            ids: Standardized ids of all features of the collection.
            weights: Their standardized weights, or `None`.
            num_features: Number of all features.

        Returns:
            Standardized ids and weights of the group's features; ids of other
            rows are left out (ragged) or -1.
        """
        ids, weights = bags.select_features(ids, weights, self.columns, num_features)
        if self._needs_factors:
            weights = self._factors(ids, weights)
        if not any(self._is_split):
            return ids, weights
        return self._to_own_rows(ids, weights)

    def _factors(self, ids, weights):
        """Weights with the factors of the combiners of tables that are split.

        The other tables of the group apply their combiners themselves, where a
        factor that all weights of a bag have cancels out.
        """
        places = bags.Places(
            np.array(self._sizes),
            np.zeros(len(self._sizes), np.int64),
            [
                combiner if split else "sum"
                for combiner, split in zip(self._combiners, self._is_split)
            ],
            0,
            tf.int64,
        )
        factors = bags.make_lookup(ids, weights, places).coefficients
        if factors is not None:
            return factors
        # One-hot without weights: every factor is 1.
        return None

    def _to_own_rows(self, ids, weights):
        if not isinstance(ids, tf.RaggedTensor):
            shape = (1, -1) if ids.shape.rank == 2 else (1, -1, 1)
            first = tf.reshape(tf.constant(self._first_rows, tf.int64), shape)
            size = tf.reshape(tf.constant(self._num_rows, tf.int64), shape)
            own = tf.cast(ids, tf.int64) - first
            inside = tf.logical_and(own >= 0, own < size)
            return tf.where(inside, own, tf.constant(-1, tf.int64)), weights
        feature = tf.math.floormod(ids.value_rowids(), len(self.columns))
        own = tf.cast(ids.values, tf.int64)
        own -= tf.gather(tf.constant(self._first_rows, tf.int64), feature)
        inside = own >= 0
        inside &= own < tf.gather(tf.constant(self._num_rows, tf.int64), feature)
        kept = tf.ragged.boolean_mask(
            tf.RaggedTensor.from_row_splits(own, ids.row_splits, validate=False),
            tf.RaggedTensor.from_row_splits(inside, ids.row_splits, validate=False),
        )
        if weights is not None:
            weights = tf.boolean_mask(weights, inside)
        return kept, weights

    def join(self, parts):
        """Ids and weights of all replicas, one after another.

        Args:
            parts: What `select` gave of each replica.
        """
        ids, weights = zip(*parts, strict=True)
        if isinstance(ids[0], tf.RaggedTensor):
            # Without the check that tf.concat makes of nested splits.
            values = tf.concat([part.values for part in ids], 0)
            lengths = tf.concat([part.row_lengths() for part in ids], 0)
            splits = tf.concat([[0], tf.cumsum(lengths)], 0)
            splits = tf.cast(splits, ids[0].row_splits.dtype)
            joined = tf.RaggedTensor.from_row_splits(values, splits, validate=False)
        elif ids[0].shape.rank == 3:
            # Replicas may have padded to other lengths.
            length = tf.reduce_max([tf.shape(part)[2] for part in ids])
            joined = tf.concat([_pad(part, length, -1) for part in ids], 0)
            if weights[0] is not None:
                weights = [_pad(part, length, 0) for part in weights]
        else:
            joined = tf.concat(ids, 0)
        weights = None if weights[0] is None else tf.concat(weights, 0)
        return joined, weights


def _pad(x, length, value):
    missing = length - tf.shape(x)[2]
    return tf.pad(x, [[0, 0], [0, 0], [0, missing]], constant_values=value)
