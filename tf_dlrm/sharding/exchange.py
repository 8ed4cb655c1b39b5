"""What crosses devices: ids to the owners of rows, vectors back, then gradients.

# B rows of a replica's batch, F features, D width
"""

import collections
import types

import tensorflow as tf

from tf_dlrm.layers import bags

_CALL = types.SimpleNamespace(sparse_gradient=True)  # no tape sees these lookups

ONLY_IN_DLRM = (
    "No gradient reaches sharded tables through a tape: train them in a DLRM, whose "
    "step hands their gradients over, or call `apply_gradients` yourself."
)


class Exchange:
    """Lookups and updates of the groups of all devices, for all replicas at once.

    Args:
        groups: The `Group`s.
        devices: Names of the devices; replica i is on device i.
        num_features: F.
    """

    def __init__(self, groups, devices, num_features: int):
        self._groups, self._devices = groups, devices
        self._num_features = num_features

    def run(self, function, arguments):
        """Calls `function` with the arguments of all replicas; gives each its own.

        Args:
            function: Takes, for each replica, its arguments, and returns a list with
                a result for each replica.
            arguments: Dict of tensors of this replica.
        """
        context = tf.distribute.get_replica_context()
        strategy = tf.distribute.get_strategy()
        if context is None or strategy.num_replicas_in_sync == 1:
            return function([arguments])[0]
        names = list(arguments)

        def merged(strategy, *values):
            of_replicas = zip(
                *(strategy.experimental_local_results(value) for value in values),
                strict=True,
            )
            return tuple(
                function([dict(zip(names, each, strict=True)) for each in of_replicas])
            )

        results = context.merge_call(merged, args=tuple(arguments.values()))
        return results[_replica_number(context)]

    def pool(self, replicas):
        """Looks up and pools the global batch.

        Args:
            replicas: What `pack` gave of each replica.

        Returns:
            For each replica, a list of the features' vectors `(B, D)`.
        """
        sent = [_unpack(replica) for replica in replicas]
        num_rows = [bags.num_examples(ids, self._num_features) for ids, _ in sent]
        # By replica and feature, the parts that its shards return.
        parts = [collections.defaultdict(list) for _ in replicas]
        for group in self._groups:
            if group.is_copy and len(replicas) > 1:
                chosen = [group.device]
            else:
                chosen = range(len(replicas))
            if group.is_copy and len(replicas) == 1 and group.device:
                continue
            selected = []
            for replica in chosen:
                with tf.device(self._devices[replica]):
                    selected.append(group.select(*sent[replica], self._num_features))
            with tf.device(self._devices[group.device]):
                ids, weights = group.join(selected)
                pooled, _ = group.fused.pool(ids, weights, _CALL)
                of_replicas = tf.split(pooled, [num_rows[r] for r in chosen])
            for replica, vectors in zip(chosen, of_replicas, strict=True):
                for i, (column, shard) in enumerate(
                    zip(group.columns, group.of_feature, strict=True)
                ):
                    parts[replica][column].append((shard, vectors[:, i, :]))
        results = []
        for replica, of_features in enumerate(parts):
            with tf.device(self._devices[replica]):
                results.append(
                    [assemble(of_features[c]) for c in range(self._num_features)]
                )
        return results

    def update(self, replicas, current_rates, iterations):
        """Updates the rows that the global batch looked up, each where it lies.

        Args:
            replicas: What `pack` gave of each replica, with `gradient_0`, ... of the
                features' vectors, and `learning_rate` if there is one to follow.
            current_rates: Function from that rate to the rates by optimizer.
            iterations: Variable that counts the updates.

        Returns:
            For each replica, the number of this update.
        """
        sent = [_unpack(replica) for replica in replicas]
        rates = current_rates(replicas[0].get("learning_rate"))
        step = tf.identity(iterations.assign_add(1))
        for group in self._groups:
            selected, gradients = [], []
            for replica, arguments in enumerate(replicas):
                with tf.device(self._devices[replica]):
                    selected.append(group.select(*sent[replica], self._num_features))
                    gradients.append(
                        tf.stack(
                            [
                                arguments[f"gradient_{column}"][:, shard.columns]
                                for column, shard in zip(
                                    group.columns, group.of_feature, strict=True
                                )
                            ],
                            axis=1,
                        )
                    )
            with tf.device(self._devices[group.device]):
                ids, weights = group.join(selected)
                joined = tf.concat(gradients, 0)
                group.fused.update(ids, weights, joined, rates, step)
        return [step] * len(replicas)


def _replica_number(context):
    number = context.replica_id_in_sync_group
    return number if isinstance(number, int) else int(tf.get_static_value(number))


def pack(ids, weights):
    """Ids and weights as a dict of tensors, which replicas can hand over."""
    packed = {"ids": ids}
    if isinstance(ids, tf.RaggedTensor):
        packed = {"ids": ids.values, "splits": ids.row_splits}
    if weights is not None:
        packed["weights"] = weights
    return packed


def _unpack(arguments):
    ids = arguments["ids"]
    if "splits" in arguments:
        splits = arguments["splits"]
        ids = tf.RaggedTensor.from_row_splits(ids, splits, validate=False)
    return ids, arguments.get("weights")


def assemble(parts):
    """A feature's vector from what its shards returned: summed, or side by side."""
    (shard, vectors), *others = parts
    if not others:
        return vectors
    if shard.kind == "row_wise":
        return tf.add_n([vectors for _, vectors in parts])
    ordered = sorted(parts, key=lambda part: part[0].first_column)
    return tf.concat([vectors for _, vectors in ordered], axis=1)


def identity(ids):
    """The ids, as a tensor that control dependencies hold back."""
    if isinstance(ids, tf.RaggedTensor):
        return ids.with_values(tf.identity(ids.values))
    return tf.identity(ids)
