"""`Group`: the shards of equal width on one device, fused.

# B rows of a batch, F features of a group, V values
"""

import collections
from collections.abc import Sequence, Set

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import bags, penalties
from tf_dlrm.embedding.engines import Step
from tf_dlrm.embedding.fused_table import FusedTable
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime.types import Ids
from tf_dlrm.sharding.planning.plans import Shard


def key_of(
    shard: Shard, table_width: int, summed_densely: Set[str] = frozenset()
) -> tuple[int, str, str]:
    """Return the properties that all shards of a group have in common.

    Args:
        shard: A `Shard`.
        table_width: Number of columns of its table, which is the width of gradients of
            whole rows (row-wise optimizers need these).
        summed_densely: Names of the data-parallel tables whose gradients are summed
            densely over devices.

    Returns:
        The width, the columns, and the kind of copy.
    """
    columns, copy = "all", ""
    if shard.kind == "column_wise":
        columns = f"{shard.first_column}_of_{table_width}"
    elif shard.kind == "data_parallel":
        copy = "dense_copy" if shard.table in summed_densely else "copy"
    return shard.num_columns, columns, copy


class Group:
    """Shards of equal width on one device, with one variable, lookup and update.

    Args:
        device: Number of the device.
        key: The `key_of` all shards.
        shards: The `Shard`s.
        features: All `(feature, EmbeddingTable)` pairs of the collection, in order.
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
        self.name = "_".join(str(part) for part in (device, *key) if part != "")
        self.needs_whole_rows = False
        width = self.shards[0].num_columns
        self.is_copy = self.shards[0].kind == "data_parallel"
        self.is_summed_densely = key[-1] == "dense_copy"
        places = collections.defaultdict(list)
        for column, (_, table) in enumerate(features):
            places[table.name].append((column, table))
        # Column in the model, and shard, of each feature of the group.
        self.columns, self.feature_shards, parts = [], [], []
        for number, shard in enumerate(self.shards):
            (_, table), *_ = places[shard.table]
            self.columns += [column for column, _ in places[shard.table]]
            self.feature_shards += [shard] * len(places[shard.table])
            split = shard.num_rows < table.vocabulary_size
            parts.append(
                EmbeddingTable(
                    f"{shard.table}_{number}",
                    shard.num_rows,
                    width,
                    # Parts of a bag are summed; combiners' factors come as weights.
                    combiner="sum" if split else table.combiner,
                    features=[f"{number}_{c}" for c, _ in places[shard.table]],
                    regularizer=table.regularizer if table.trainable else None,
                )
            )
        self.fused = FusedTable(width, parts, parts)
        self._optimizers: dict[str, SparseOptimizer] = {}
        self.names = [part.name for part in parts]
        self._first_rows = np.array([shard.first_row for shard in self.feature_shards])
        self._num_rows = np.array([shard.num_rows for shard in self.feature_shards])
        combiners = {t.name: t.combiner for _, t in features}
        sizes = {t.name: t.vocabulary_size for _, t in features}
        self._is_split = [s.num_rows < sizes[s.table] for s in self.feature_shards]
        self._needs_factors = any(
            split and combiners[s.table] != "sum"
            for split, s in zip(self._is_split, self.feature_shards)
        )
        self._table_widths = {t.name: t.embedding_dim for _, t in features}
        self._sizes = [sizes[s.table] for s in self.feature_shards]
        self._combiners = [combiners[s.table] for s in self.feature_shards]

    def choose_optimizers(self, optimizers: dict[str, SparseOptimizer]) -> None:
        """Set the optimizers, on which the gradients that the group needs depend.

        Args:
            optimizers: Names of the trainable logical tables to their optimizers.
        """
        self._optimizers = optimizers
        self._part_optimizers = {
            name: optimizers[shard.table]
            for name, shard in zip(self.names, self.shards, strict=True)
            if shard.table in optimizers  # other tables are not trained
        }
        shard = self.shards[0]
        by_rows = any(o.uses_mean_squares for o in self._part_optimizers.values())
        if shard.kind == "column_wise":
            for name, optimizer in self._part_optimizers.items():
                penalties.check_columns(self.fused.by_name[name], optimizer)
        self.needs_whole_rows = shard.kind == "column_wise" and by_rows
        self.fused.gradient_columns = (
            shard.columns if self.needs_whole_rows else slice(None)
        )

    def build_optimizer(self, optimizers: dict[str, SparseOptimizer]) -> None:
        """Choose the optimizers, see `choose_optimizers`, and create the slots."""
        self.choose_optimizers(optimizers)
        self.fused.build_optimizer(self._part_optimizers)

    @property
    def gradient_widths(self) -> list[int]:
        """Widths of the gradients of the group's features, see `gradients`."""
        if not self.needs_whole_rows:
            return [shard.num_columns for shard in self.feature_shards]
        return [self._table_widths[shard.table] for shard in self.feature_shards]

    def optimizer_of(self, name: str) -> SparseOptimizer:
        """Return the optimizer of a trainable logical table."""
        return self._optimizers[name]

    def name_of(self, shard: Shard) -> str:
        """Return the name of a shard in the fused table."""
        return self.names[self.shards.index(shard)]

    def gradients(self, feature_gradients: Sequence[tf.Tensor]) -> tf.Tensor:
        """Return the group's part of the gradients `(B, width)` of all features.

        Returns:
            `(B, F, D)`, the group's columns, or whole rows if an optimizer needs their
            mean squares.
        """
        return tf.stack(self.gradient_parts(feature_gradients), axis=1)

    def gradient_parts(self, feature_gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Return what `gradients` stacks: `(B, D)` of each of the group's features."""
        gradients = []
        for column, shard in zip(self.columns, self.feature_shards, strict=True):
            columns = slice(None) if self.needs_whole_rows else shard.columns
            gradients.append(feature_gradients[column][:, columns])
        return gradients

    @property
    def tables(self) -> set[str]:
        """Names of the logical tables of the shards."""
        return {shard.table for shard in self.shards}

    def trains(self, name: str) -> bool:
        """Return whether a logical table has an optimizer."""
        return name in self._optimizers

    def dense_sums(
        self, ids: Ids, weights: tf.Tensor | None, gradients: tf.Tensor
    ) -> tf.Tensor:
        """Sum the gradients of each row, and count its ids.

        Args:
            ids: Ids from `select`.
            weights: Weights from `select`.
            gradients: Gradients of the group's features, `(B, F, D)`.

        Returns:
            `(V, D + 1)`, with the number of ids in the last column.
        """
        rows, values = self.fused.lookup(ids, weights).unpool(gradients)
        values = tf.concat([values, tf.ones_like(values[:, :1])], axis=1)
        num_rows = self.fused.num_rows
        # The last row is the null row, which missing ids read.
        return tf.math.unsorted_segment_sum(values, rows, num_rows + 1)[:num_rows]

    def apply_dense_sums(self, sums: tf.Tensor, step: Step) -> None:
        """Update the rows that have ids, according to the counts in `dense_sums`."""
        rows = tf.cast(tf.where(sums[:, -1] > 0)[:, 0], self.fused.row_dtype)
        gradients = tf.gather(sums[:, :-1], rows)
        self.fused.update_rows(rows, gradients, step)

    def place(self, shard: Shard) -> int:
        """Return the first row of a shard in the fused variable."""
        return self.fused.first_row[self.name_of(shard)]

    def select(
        self, ids: Ids, weights: tf.Tensor | None, num_features: int
    ) -> tuple[Ids, tf.Tensor | None]:
        """Select the ids of the group's features and convert them to its own rows.

        Args:
            ids: Standardized ids of all features of the collection.
            weights: Standardized weights of the ids, or `None`.
            num_features: Number of all features.

        Returns:
            Standardized ids and weights of the group's features. Ids of other rows are
            omitted (ragged) or -1.
        """
        ids, weights = bags.select_features(ids, weights, self.columns, num_features)
        if self._needs_factors:
            weights = self._factors(ids, weights)
        if not any(self._is_split):
            return ids, weights
        return self._to_own_rows(ids, weights)

    def _factors(self, ids, weights):
        """Return the weights times the factors of the combiners of split tables.

        The other tables of the group apply their combiners themselves.
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
        return None  # one-hot ids without weights: every factor is 1

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
        own_ids = tf.ragged.boolean_mask(
            tf.RaggedTensor.from_row_splits(own, ids.row_splits, validate=False),
            tf.RaggedTensor.from_row_splits(inside, ids.row_splits, validate=False),
        )
        if weights is not None:
            weights = tf.boolean_mask(weights, inside)
        return own_ids, weights
