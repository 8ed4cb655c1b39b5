"""Exchange between devices: ids to owners of rows, vectors back, then gradients.

# B rows of a replica's batch, F features, D width
"""

import collections
from collections.abc import Sequence

import tensorflow as tf

from tf_dlrm.embedding import bags
from tf_dlrm.embedding.engines import PooledGradients, Step
from tf_dlrm.embedding.fused_table import Call
from tf_dlrm.embedding.global_batch import join, unpack
from tf_dlrm.sharding.dense_sums import all_reduce
from tf_dlrm.sharding.groups import Group
from tf_dlrm.sharding.planning.plans import Shard


class Exchange:
    """Lookups and updates in the groups of all devices, for all replicas at once.

    Args:
        groups: The `Group`s.
        devices: Names of the devices; replica i is on device i.
        num_features: Number of features, F.
    """

    def __init__(
        self, groups: Sequence[Group], devices: Sequence[str], num_features: int
    ) -> None:
        self._groups, self._devices = groups, devices
        self._num_features = num_features

    def pool(self, replicas: Sequence[dict[str, tf.Tensor]]) -> list[list[tf.Tensor]]:
        """Look up and pool the global batch.

        Args:
            replicas: The result of `pack` for each replica.

        Returns:
            A list with the vectors `(B, D)` of each feature, for each replica.
        """
        batches = [unpack(replica) for replica in replicas]
        num_rows = [bags.num_examples(ids, self._num_features) for ids, _ in batches]
        # The parts that shards return, by replica and feature.
        parts: list[dict[int, list[tuple[Shard, tf.Tensor]]]]
        parts = [collections.defaultdict(list) for _ in replicas]
        for group in self._groups:
            if group.is_copy and len(replicas) > 1:
                served: Sequence[int] = [group.device]
            else:
                served = range(len(replicas))
            if group.is_copy and len(replicas) == 1 and group.device:
                continue
            selections = []
            for replica in served:
                with tf.device(self._devices[replica]):
                    batch = batches[replica]
                    selections.append(group.select(*batch, self._num_features))
            with tf.device(self._devices[group.device]):
                ids, weights = join(selections)
                # No tape records these lookups.
                pooled, _ = group.fused.pool(ids, weights, Call())
                replica_vectors = [pooled]
                if len(served) > 1:
                    replica_vectors = tf.split(pooled, [num_rows[r] for r in served])
                # Split on this device, so that only what a replica needs is sent.
                vectors = [tf.unstack(own, axis=1) for own in replica_vectors]
            for replica, feature_vectors in zip(served, vectors, strict=True):
                for column, shard, vector in zip(
                    group.columns, group.feature_shards, feature_vectors, strict=True
                ):
                    parts[replica][column].append((shard, vector))
        results = []
        for replica, feature_parts in enumerate(parts):
            with tf.device(self._devices[replica]):
                results.append(
                    [assemble(feature_parts[c]) for c in range(self._num_features)]
                )
        return results

    def penalty(self, replicas: Sequence[dict[str, tf.Tensor]]) -> list[tf.Tensor]:
        """Return the penalty on the rows of the global batch, for each replica.

        Args:
            replicas: The result of `pack` for each replica.
        """
        ids, _ = join([unpack(replica) for replica in replicas])
        parts = []
        for group in self._groups:
            is_counted = not (group.is_copy and group.device)
            if is_counted and group.fused.is_penalized:
                with tf.device(self._devices[group.device]):
                    own, _ = group.select(ids, None, self._num_features)
                    parts.append(group.fused.penalty(own))
        return [tf.add_n(parts)] * len(replicas)

    def update(self, replicas: Sequence[dict[str, tf.Tensor]], step: Step) -> None:
        """Update the rows that the global batch looked up, on their devices.

        Args:
            replicas: The result of `pack` for each replica, with the gradients of the
                features' vectors as `gradient_0`, `gradient_1`, ...
            step: The optimizer step.
        """
        batches = [unpack(replica) for replica in replicas]
        feature_gradients = [
            [replica[f"gradient_{i}"] for i in range(self._num_features)]
            for replica in replicas
        ]
        dense_copies = collections.defaultdict(list)
        for group in self._groups:
            if group.is_summed_densely:
                dense_copies[group.key].append(group)
                continue
            selections, gradients = [], []
            for replica in range(len(replicas)):
                with tf.device(self._devices[replica]):
                    batch = batches[replica]
                    selections.append(group.select(*batch, self._num_features))
                    gradients.append(group.gradients(feature_gradients[replica]))
            with tf.device(self._devices[group.device]):
                ids, weights = join(selections)
                joined = (
                    gradients[0] if len(gradients) == 1 else tf.concat(gradients, 0)
                )
                group.fused.update(PooledGradients(ids, weights, joined), step)
        for copies in dense_copies.values():
            self._update_densely(copies, batches, feature_gradients, step)

    def _update_densely(self, copies, batches, feature_gradients, step):
        """Update copies of tables from dense sums of gradients over all devices."""
        sums = []
        for group, batch, gradients in zip(copies, batches, feature_gradients):
            with tf.device(self._devices[group.device]):
                selection = group.select(*batch, self._num_features)
                sums.append(group.dense_sums(*selection, group.gradients(gradients)))
        if len(sums) == 1:  # outside of replicas, there is one batch for all devices
            sums *= len(copies)
        else:
            sums = all_reduce(sums, self._devices)
        for group, total in zip(copies, sums, strict=True):
            with tf.device(self._devices[group.device]):
                group.apply_dense_sums(total, step)


def assemble(parts: Sequence[tuple[Shard, tf.Tensor]]) -> tf.Tensor:
    """Return a feature's vectors: the sum or concatenation of those of its shards."""
    (shard, vectors), *others = parts
    if not others:
        return vectors
    if shard.kind == "row_wise":
        return tf.add_n([vectors for _, vectors in parts])
    if shard.kind != "column_wise":
        raise NotImplementedError(f"Cannot assemble shards of kind {shard.kind!r}.")
    ordered = sorted(parts, key=lambda part: part[0].first_column)
    return tf.concat([vectors for _, vectors in ordered], axis=1)
