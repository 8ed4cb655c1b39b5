"""Exchange between devices: ids to the owners of rows, vectors back, then gradients.

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
    """Lookups and updates of the groups of all devices, for all replicas at once.

    Args:
        groups: The `Group`s.
        devices: Names of the devices; replica i is on device i.
        num_features: F.
    """

    def __init__(
        self, groups: Sequence[Group], devices: Sequence[str], num_features: int
    ) -> None:
        self._groups, self._devices = groups, devices
        self._num_features = num_features

    def pool(self, replicas: Sequence[dict[str, tf.Tensor]]) -> list[list[tf.Tensor]]:
        """Look up and pool the global batch.

        Args:
            replicas: What `pack` gave of each replica.

        Returns:
            For each replica, a list of the features' vectors `(B, D)`.
        """
        sent = [unpack(replica) for replica in replicas]
        num_rows = [bags.num_examples(ids, self._num_features) for ids, _ in sent]
        # By replica and feature, the parts that its shards return.
        parts: list[dict[int, list[tuple[Shard, tf.Tensor]]]]
        parts = [collections.defaultdict(list) for _ in replicas]
        for group in self._groups:
            if group.is_copy and len(replicas) > 1:
                chosen: Sequence[int] = [group.device]
            else:
                chosen = range(len(replicas))
            if group.is_copy and len(replicas) == 1 and group.device:
                continue
            selected = []
            for replica in chosen:
                with tf.device(self._devices[replica]):
                    selected.append(group.select(*sent[replica], self._num_features))
            with tf.device(self._devices[group.device]):
                ids, weights = join(selected)
                # No tape sees these lookups.
                pooled, _ = group.fused.pool(ids, weights, Call())
                of_replicas = [pooled]
                if len(chosen) > 1:
                    of_replicas = tf.split(pooled, [num_rows[r] for r in chosen])
                # Taken apart here: what crosses is what the other side needs.
                vectors = [tf.unstack(each, axis=1) for each in of_replicas]
            for replica, of_features in zip(chosen, vectors, strict=True):
                for column, shard, vector in zip(
                    group.columns, group.of_feature, of_features, strict=True
                ):
                    parts[replica][column].append((shard, vector))
        results = []
        for replica, of_features in enumerate(parts):
            with tf.device(self._devices[replica]):
                results.append(
                    [assemble(of_features[c]) for c in range(self._num_features)]
                )
        return results

    def update(self, replicas: Sequence[dict[str, tf.Tensor]], step: Step) -> None:
        """Update the rows that the global batch looked up, each where it lies.

        Args:
            replicas: What `pack` gave of each replica, with `gradient_0`, ... of the
                features' vectors.
            step: The step.
        """
        sent = [unpack(replica) for replica in replicas]
        of_features = [
            [each[f"gradient_{i}"] for i in range(self._num_features)]
            for each in replicas
        ]
        dense_copies = collections.defaultdict(list)
        for group in self._groups:
            if group.is_summed_densely:
                dense_copies[group.key].append(group)
                continue
            selected, gradients = [], []
            for replica in range(len(replicas)):
                with tf.device(self._devices[replica]):
                    selected.append(group.select(*sent[replica], self._num_features))
                    gradients.append(group.gradients(of_features[replica]))
            with tf.device(self._devices[group.device]):
                ids, weights = join(selected)
                joined = (
                    gradients[0] if len(gradients) == 1 else tf.concat(gradients, 0)
                )
                group.fused.update(PooledGradients(ids, weights, joined), step)
        for copies in dense_copies.values():
            self._update_densely(copies, sent, of_features, step)

    def _update_densely(self, copies, sent, of_features, step):
        """Each device sums its own batch's gradients; the sums are summed."""
        sums = []
        for group, batch, gradients in zip(copies, sent, of_features):
            with tf.device(self._devices[group.device]):
                selected = group.select(*batch, self._num_features)
                sums.append(group.dense_sums(*selected, group.gradients(gradients)))
        if len(sums) == 1:  # one batch for all, outside of replicas
            sums *= len(copies)
        else:
            sums = all_reduce(sums, self._devices)
        for group, total in zip(copies, sums, strict=True):
            with tf.device(self._devices[group.device]):
                group.apply_dense_sums(total, step)


def assemble(parts: Sequence[tuple[Shard, tf.Tensor]]) -> tf.Tensor:
    """Return a feature's vectors from those of its shards: sums, or side by side."""
    (shard, vectors), *others = parts
    if not others:
        return vectors
    if shard.kind == "row_wise":
        return tf.add_n([vectors for _, vectors in parts])
    if shard.kind != "column_wise":
        raise NotImplementedError(f"No way to assemble shards of {shard.kind!r}.")
    ordered = sorted(parts, key=lambda part: part[0].first_column)
    return tf.concat([vectors for _, vectors in ordered], axis=1)
