"""The part of a sharded collection that lies on one device, fused by width.

# B rows of a batch, F features of a group, V values
"""

import collections
from collections.abc import Sequence, Set

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import bags
from tf_dlrm.embedding.engines import Step
from tf_dlrm.embedding.fused_table import FusedTable
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime.types import Ids
from tf_dlrm.sharding.planning.plans import Shard


def key_of(
    shard: Shard, table_width: int, summed_densely: Set[str] = frozenset()
) -> tuple[int, str, str]:
    """Return what a group's shards share: width, columns, and the kind of copy.

    Args:
        shard: A `Shard`.
        table_width: Number of columns of its table. Gradients of whole rows, which
            row-wise statistics take, are as wide.
        summed_densely: Names of the tables whose copies' gradients are.
    """
    columns, copy = "all", ""
    if shard.kind == "column_wise":
        columns = f"{shard.first_column}_of_{table_width}"
    elif shard.kind == "data_parallel":
        copy = "dense_copy" if shard.table in summed_densely else "copy"
    return shard.num_columns, columns, copy


class Group:
    """Shards of equal width on one device: one variable, one lookup, one update.

    Args:
        device: Number of the device.
        key: Their `key_of`.
        shards: The `Shard`s.
        features: `(feature, EmbeddingTable)` of the collection, in order.
    """

    def __init__(
        self,
        device: int,
        key: tuple[int, str, str],
        shards: Sequence[Shard],
        features: Sequence[tuple[str, EmbeddingTable]],
    ) -> None:
        self.device, self.shards = device, tuple(shards)
        self.key = key
        self.name = "_".join(str(each) for each in (device, *key) if each != "")
        self.needs_whole_rows = False
        width = self.shards[0].num_columns
        self.is_copy = self.shards[0].kind == "data_parallel"
        self.is_summed_densely = key[-1] == "dense_copy"
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
        self._optimizers: dict[str, SparseOptimizer] = {}
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

    def build_optimizer(self, optimizers: dict[str, SparseOptimizer]) -> None:
        """Create slots: `optimizers` maps each logical table to its optimizer."""
        self._optimizers = optimizers
        of_parts = {
            name: optimizers[shard.table]
            for name, shard in zip(self.names, self.shards, strict=True)
            if shard.table in optimizers  # others are not trained
        }
        shard = self.shards[0]
        by_rows = any(each.uses_mean_squares for each in of_parts.values())
        self.needs_whole_rows = shard.kind == "column_wise" and by_rows
        self.fused.gradient_columns = (
            shard.columns if self.needs_whole_rows else slice(None)
        )
        self.fused.build_optimizer(of_parts)

    def optimizer_of(self, name: str) -> SparseOptimizer:
        """Return the optimizer of a logical table that is trained."""
        return self._optimizers[name]

    def name_of(self, shard: Shard) -> str:
        """Return the name of a shard among the tables of the fused variable."""
        return self.names[self.shards.index(shard)]

    def gradients(self, of_features: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return the group's part of the gradients `(B, width)` of all features.

        Returns:
            `(B, F, D)`: the group's columns, or whole rows where an optimizer needs
            their mean squares.
        """
        needed = [
            of_features[column][:, slice(None) if self.needs_whole_rows else s.columns]
            for column, s in zip(self.columns, self.of_feature, strict=True)
        ]
        return tf.stack(needed, axis=1)

    def dense_sums(
        self, ids: Ids, weights: tf.Tensor | None, gradients: tf.Tensor
    ) -> tf.Tensor:
        """Sum the gradients of each row, and count its ids.

        Args:
            ids: What `select` gave of a batch.
            weights: As the ids.
            gradients: Of its features, `(B, F, D)`.

        Returns:
            `(V, D + 1)`, the last column the number of ids.
        """
        rows, values = self.fused.lookup(ids, weights).unpool(gradients)
        values = tf.concat([values, tf.ones_like(values[:, :1])], axis=1)
        num_rows = self.fused.num_rows
        # The row of missing ids is the one after all others.
        return tf.math.unsorted_segment_sum(values, rows, num_rows + 1)[:num_rows]

    def apply_dense_sums(self, sums: tf.Tensor, step: Step) -> None:
        """Update the rows that `sums` counts ids of."""
        touched = tf.where(sums[:, -1] > 0)[:, 0]
        rows = tf.cast(touched, self.fused.row_dtype)
        gradients = tf.gather(sums[:, :-1], rows)
        self.fused.update_rows(rows, gradients, step)

    def place(self, shard: Shard) -> int:
        """Return the first row of a shard in the fused variable."""
        return self.fused.first_row[self.name_of(shard)]

    def select(
        self, ids: Ids, weights: tf.Tensor | None, num_features: int
    ) -> tuple[Ids, tf.Tensor | None]:
        """Select what the group needs of a batch: its features' ids, as its own rows.

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
