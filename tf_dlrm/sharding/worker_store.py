"""`WorkerStore`: tables in shards on the devices of several workers."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import id_ranges
from tf_dlrm.embedding.engines import Step
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime import collectives, replicas
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.place import Place
from tf_dlrm.runtime.types import Ids
from tf_dlrm.sharding.planning.plans import Plan, Shard
from tf_dlrm.sharding.spread_store import SpreadStore
from tf_dlrm.sharding.worker_exchange import WorkerExchange


class WorkerStore(SpreadStore):
    """Shards of tables, of which this worker holds those of its own devices.

    All workers make the same plan. Reading a table sends its shards to all workers, so
    that all of them must read the same tables in the same order.

    Args:
        tables: The `EmbeddingTable`s. Their features, in this order, are the columns of
            the ids.
        place: The place of this worker.
        plan: The `Plan`, which assigns shards to the devices of all workers.
    """

    def __init__(
        self, tables: Sequence[EmbeddingTable], place: Place, plan: Plan
    ) -> None:
        super().__init__(tables, place.devices, plan, place.first_replica)
        self._worker = place
        self._workers = WorkerExchange(self.all_groups, place, self.num_features)

    def build_slots(
        self,
        layer: keras.layers.Layer,
        optimizers: dict[str, SparseOptimizer],
        held: tf.Module,
    ) -> None:
        for group in self.all_groups:
            group.choose_optimizers(optimizers)
        super().build_slots(layer, optimizers, held)

    # Lookups and updates

    def pool(self, ids: Ids, weights: tf.Tensor | None) -> tuple[Any, tf.Tensor]:
        _check_replica("be looked up")
        sizes = [table.vocabulary_size for table in self.tables for _ in table.features]
        bad = id_ranges.any_out_of_range(ids, sizes)
        return self._in_feature_order(self._workers.pool(ids, weights)), bad

    def penalty(self, ids: Ids) -> tf.Tensor:
        return self._workers.penalty(ids)

    def lookup(
        self,
        ids: Ids,
        weights: tf.Tensor | None,
        columns: Sequence[int],
        read: Callable[[tf.Variable, tf.Tensor], tf.Tensor],
    ) -> Any:
        raise UserError(
            "Tables that are spread over several workers cannot be looked up on one "
            "device. Save the model, and load it in one process."
        )

    def run_for_all(
        self, function: Callable[[list[dict[str, Any]]], list], arguments: dict
    ) -> None:
        _check_replica("be updated")
        self._workers.run(function, arguments)

    def update(self, batches: Sequence[dict[str, tf.Tensor]], step: Step) -> None:
        self._workers.update(batches, step)

    # Access by table

    def slot_widths(self, name: str) -> dict[str, int]:
        table = self.find(name)
        group = next(g for g in self.all_groups if name in g.tables)
        if not group.trains(name):
            return {}
        widths = group.optimizer_of(name).slots(table.embedding_dim)
        return {slot: width for slot, (width, *_) in widths.items()}

    def _senders(self, name: str) -> Iterator[tuple[Shard, int, Any]]:
        """Yield the shards of a table, their workers, and their groups if here.

        Of copies, only the first counts.
        """
        for group in self.all_groups:
            for shard in group.shards:
                if shard.table == name and not (group.is_copy and group.device):
                    worker = group.device // len(self.devices)
                    yield shard, worker, group if group in self.groups else None

    def read(self, name: str, slot: str | None = None) -> np.ndarray:
        result = np.empty(self.shape(name, slot), np.float32)
        for shard, worker, group in self._senders(name):
            for a, b in row_ops.block_ranges(shard.num_rows, result.shape[1]):
                part = None
                if group is not None:
                    variable, start = self._place(group, shard, slot)
                    part = self._on_device(
                        group.device,
                        lambda v=variable, a=start + a, n=b - a: row_ops.read_range(
                            v, a, n
                        ),
                    )
                self._receive(worker, part, shard, result[shard.rows][a:b])
        return result

    def read_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        result = np.empty((len(rows), self.by_name[name].embedding_dim), np.float32)
        for shard, worker, group in self._senders(name):
            places = rows - shard.first_row
            own = np.flatnonzero((places >= 0) & (places < shard.num_rows))
            part, block = None, np.empty((len(own), result.shape[1]), np.float32)
            if group is not None:
                variable, start = self._place(group, shard, None)
                part = self._on_device(
                    group.device,
                    lambda v=variable, r=start + places[own]: row_ops.gather(
                        v, r
                    ).numpy(),
                )
            self._receive(worker, part, shard, block)
            result[own, shard.columns] = block[:, shard.columns]
        return result

    def _receive(self, worker, part, shard, target):
        """Write the rows of a shard, which one worker sends, to a view of a table."""
        flat = None if part is None else part.reshape(-1)
        flat = collectives.broadcast_array(self._worker, worker, flat)
        if not len(target):
            return
        values = flat.reshape(len(target), -1)
        is_whole = values.shape[1] == target.shape[1]
        target[:, slice(None) if is_whole else shard.columns] = values


def _check_replica(use: str) -> None:
    """Raise an error outside of replicas, where the other workers take no part."""
    if tf.distribute.get_replica_context() is None or replicas.count() == 1:
        raise UserError(
            f"Tables that are spread over several workers can only {use} by `fit`, "
            "`evaluate` and `predict`, or in `strategy.run`, by all workers at once."
        )
