"""Exchange between the replicas of several workers, in blocks of equal size.

Each replica runs the exchange for itself: it looks up and updates the rows of its own
device for the global batch.

# B rows of a replica's batch, F features, N replicas, W columns of a block
"""

import collections
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tf_dlrm.embedding import bags
from tf_dlrm.embedding.engines import PooledGradients, Step
from tf_dlrm.embedding.fused_table import Call
from tf_dlrm.embedding.global_batch import join, pack, unpack
from tf_dlrm.runtime import collectives, replicas
from tf_dlrm.runtime.place import Place
from tf_dlrm.runtime.types import Ids
from tf_dlrm.sharding.exchange import assemble
from tf_dlrm.sharding.groups import Group
from tf_dlrm.sharding.planning.plans import Shard


class WorkerExchange:
    """Lookups and updates in the groups of all workers' devices.

    Args:
        groups: The `Group`s of all devices.
        place: The place of this worker.
        num_features: Number of features, F.
    """

    def __init__(
        self, groups: Sequence[Group], place: Place, num_features: int
    ) -> None:
        self._place, self._num_features = place, num_features
        self._groups: list[list[Group]] = [[] for _ in range(place.num_replicas)]
        for group in groups:
            self._groups[group.device].append(group)

    def _replicas(self) -> collectives.Group:
        return collectives.Group(self._place, replicas.number())

    def _sent(self, device: int) -> list[Group]:
        """Return the groups of a device whose vectors are sent to other devices."""
        return [group for group in self._groups[device] if not group.is_copy]

    # Vectors

    def pool(self, ids: Ids, weights: tf.Tensor | None) -> list[tf.Tensor]:
        """Look up and pool the global batch in this replica's groups.

        Args:
            ids: This replica's standardized ids.
            weights: Their standardized weights, or `None`.

        Returns:
            The vectors `(B, D)` of each feature, for this replica.
        """
        own = replicas.number()
        parts: dict[int, list[tuple[Shard, tf.Tensor]]] = collections.defaultdict(list)

        def keep(group, pooled):
            vectors = zip(group.columns, group.feature_shards, pooled, strict=True)
            for column, shard, vector in vectors:
                parts[column].append((shard, vector))

        for group in self._groups[own]:
            if group.is_copy:
                selected = group.select(ids, weights, self._num_features)
                pooled, _ = group.fused.pool(*selected, Call())
                keep(group, tf.unstack(pooled, axis=1))
        widths = [
            sum(shard.num_columns for g in self._sent(d) for shard in g.feature_shards)
            for d in range(len(self._groups))
        ]
        if not any(widths):  # every table has a copy on each device
            return [assemble(parts[c]) for c in range(self._num_features)]
        exchange = self._replicas()
        batches = [unpack(b) for b in exchange.gather(pack(ids, weights), "pooled ids")]
        num_rows = [bags.num_examples(b[0], self._num_features) for b in batches]
        flat = []
        for group in self._sent(own):
            selections = [group.select(*b, self._num_features) for b in batches]
            pooled, _ = group.fused.pool(*join(selections), Call())
            flat.append(tf.reshape(pooled, (-1, pooled.shape[1] * pooled.shape[2])))
        columns = _joined(flat, tf.add_n(num_rows), max(widths))
        most = tf.maximum(tf.reduce_max(num_rows), 1)  # no block is empty
        blocks = [_padded(x, most) for x in tf.split(columns, num_rows)]
        arrived = exchange.swap(tf.stack(blocks), "vectors")  # (N, B, W)
        own_rows = bags.num_examples(ids, self._num_features)
        for device, block in enumerate(tf.unstack(arrived[:, :own_rows], axis=0)):
            first = 0
            for group in self._sent(device):
                ends = []
                for shard in group.feature_shards:
                    ends.append(block[:, first : first + shard.num_columns])
                    first += shard.num_columns
                keep(group, ends)
        return [assemble(parts[c]) for c in range(self._num_features)]

    def penalty(self, ids: Ids) -> tf.Tensor:
        """Return the penalty on the rows of the global batch, from all workers."""
        exchange, own = self._replicas(), replicas.number()
        joined, _ = join(
            [unpack(b) for b in exchange.gather(pack(ids, None), "penalized ids")]
        )
        parts = [tf.zeros(())]
        for group in self._groups[own]:
            if group.fused.is_penalized and not (group.is_copy and own):
                rows, _ = group.select(joined, None, self._num_features)
                parts.append(group.fused.penalty(rows))
        return exchange.sum(tf.add_n(parts), "penalty")

    # Gradients

    def run(self, function: Any, arguments: dict[str, tf.Tensor]) -> None:
        """Send gradients to the owners of the rows, and call `function` once.

        Args:
            function: Function of a list with the arguments of each replica, without
                the gradients of features but with those that `update` takes.
            arguments: The arguments of this replica, with the gradients of the
                features' vectors as `gradient_0`, `gradient_1`, ...
        """
        names = [f"gradient_{c}" for c in range(self._num_features)]
        gradients = [arguments[name] for name in names]
        others = {k: v for k, v in arguments.items() if k not in names}
        exchange = self._replicas()
        batches = exchange.gather(others, "updated ids")
        own_batch = unpack(arguments)
        tensors = [self._swap_gradients(exchange, gradients)]
        for group in self._summed(replicas.number()):
            selected = group.select(*own_batch, self._num_features)
            sums = group.dense_sums(*selected, group.gradients(gradients))
            tensors.append(exchange.sum(sums, "dense sums"))

        def call(of_replicas):
            own = self._place.own_replicas
            extra = dict(zip(own, of_replicas, strict=True))
            return function([{**batch, "sent": extra} for batch in batches])

        replicas.run_for_worker(call, *tensors)

    def _summed(self, device: int) -> list[Group]:
        return [g for g in self._groups[device] if g.is_summed_densely]

    def _trained(self, device: int) -> list[Group]:
        """Return the groups of a device to which gradients of features are sent."""
        return [g for g in self._groups[device] if not g.is_summed_densely]

    def _swap_gradients(self, exchange, gradients):
        """Return the gradients of this device's groups from each replica: (N, B, W)."""
        num_rows = tf.shape(gradients[0])[0]
        widths = [
            sum(sum(group.gradient_widths) for group in self._trained(device))
            for device in range(len(self._groups))
        ]
        if not any(widths):
            return tf.zeros((len(self._groups), 0, 0))
        counts = exchange.gather({"rows": num_rows}, "rows")
        most = tf.maximum(tf.reduce_max([count["rows"] for count in counts]), 1)
        blocks = []
        for device in range(len(self._groups)):
            flat = [
                tf.concat(group.gradient_parts(gradients), axis=1)
                for group in self._trained(device)
            ]
            joined = _joined(flat, num_rows, max(widths))
            blocks.append(_padded(joined, most))
        return exchange.swap(tf.stack(blocks), "gradients")

    def update(self, batches: Sequence[dict[str, Any]], step: Step) -> None:
        """Update the rows of this worker that the global batch looked up.

        Args:
            batches: What `run` passes to its function.
            step: The optimizer step.
        """
        sent = batches[0]["sent"]
        parts = [unpack(batch) for batch in batches]
        num_rows = [bags.num_examples(ids, self._num_features) for ids, _ in parts]
        for device, name in zip(
            self._place.own_replicas, self._place.devices, strict=True
        ):
            blocks, *sums = sent[device]
            with tf.device(name):
                rows = [blocks[r, : num_rows[r]] for r in range(len(num_rows))]
                joined = tf.concat(rows, axis=0)
                first = 0
                for group in self._trained(device):
                    widths = group.gradient_widths
                    flat = joined[:, first : first + sum(widths)]
                    first += sum(widths)
                    pooled = tf.reshape(flat, (-1, len(widths), widths[0]))
                    selections = [group.select(*p, self._num_features) for p in parts]
                    ids, weights = join(selections)
                    group.fused.update(PooledGradients(ids, weights, pooled), step)
                for group, total in zip(self._summed(device), sums, strict=True):
                    group.apply_dense_sums(total, step)


def _joined(parts, num_rows, width):
    """Return `(num_rows, n)` tensors side by side, padded to `width` columns."""
    missing = width - sum(part.shape[1] for part in parts)
    if missing or not parts:
        parts = [*parts, tf.zeros((num_rows, missing))]
    return tf.concat(parts, axis=1)


def _padded(x, num_rows):
    return tf.pad(x, [[0, num_rows - tf.shape(x)[0]], [0, 0]])
