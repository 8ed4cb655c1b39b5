"""`SpreadStore`: tables in shards on several devices, according to a plan."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import id_ranges
from tf_dlrm.embedding.engines import Step
from tf_dlrm.embedding.global_batch import pack
from tf_dlrm.embedding.row_places import RowPlace
from tf_dlrm.embedding.scaled_rows import ScaledOptimizer
from tf_dlrm.embedding.table_store import TableStore
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime import huge_pages, replicas
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Ids
from tf_dlrm.sharding.checkpoint_state import CheckpointState
from tf_dlrm.sharding.exchange import Exchange, assemble
from tf_dlrm.sharding.groups import Group, key_of
from tf_dlrm.sharding.planning import traffic
from tf_dlrm.sharding.planning.plans import Plan


class SpreadStore(TableStore):
    """Shards of tables, grouped by device and width, with one variable per group.

    Args:
        tables: The `EmbeddingTable`s. Their features, in this order, are the columns of
            the ids.
        devices: Names of the devices; replica i is on device i.
        plan: The `Plan`, which assigns shards to devices.
        first_device: Number of the first device of this process in the plan.

    Attributes:
        all_groups: The `Group`s of all devices of the plan.
        groups: Those of this process's devices, the only ones with variables.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingTable],
        devices: tuple[str, ...],
        plan: Plan,
        first_device: int = 0,
    ) -> None:
        super().__init__(tables, devices)
        self.plan = plan
        self._first_device = first_device
        self.all_groups = self._make_groups()
        own = range(first_device, first_device + len(devices))
        self.groups = [group for group in self.all_groups if group.device in own]
        self._exchange = Exchange(self.groups, devices, self.num_features)
        self._state = CheckpointState(plan, plan.num_devices > len(devices))
        # The shards of each table: pairs `(shard, group)`.
        self._places = collections.defaultdict(list)
        for group in self.groups:
            for shard in group.shards:
                self._places[shard.table].append((shard, group))

    def _make_groups(self):
        num_devices = self.plan.num_devices
        summed_densely = {
            load.name
            for load in self.plan.tables
            if traffic.reduces_cheaply(load, num_devices, self.plan.batch_size)
        }
        features = [(f, table) for table in self.tables for f in table.features]
        groups = []
        for number in range(num_devices):
            shards_of = collections.defaultdict(list)
            for shard in self.plan.shards_on(number):
                width = self.by_name[shard.table].embedding_dim
                shards_of[key_of(shard, width, summed_densely)].append(shard)
            for key, shards in sorted(shards_of.items(), key=lambda item: str(item[0])):
                groups.append(Group(number, key, shards, features))
        return groups

    def _on_device(self, device, make):
        return replicas.on_device(self._device_name(device), make)

    def _device_name(self, device):
        return self.devices[device - self._first_device]

    def build(self, layer: keras.layers.Layer) -> None:
        for group in self.groups:
            fused = group.fused
            shape = (fused.num_rows + 1, fused.width)
            name = f"tables_{group.name}"
            fused.variable = self._on_device(
                group.device,
                lambda shape=shape, name=name: tf.Variable(tf.zeros(shape), name=name),
            )
            huge_pages.use_for(fused.variable)
            setattr(self._state, name, fused.variable)
        layer._state = self._state

    @property
    def _distinct_groups(self):
        """All groups but those that are copies of others."""
        return [
            g for g in self.groups if not (g.is_copy and g.device != self._first_device)
        ]

    @property
    def variables(self) -> list[tf.Variable]:
        return [group.fused.variable for group in self._distinct_groups]

    def row_places(self) -> list[RowPlace]:
        return [
            RowPlace(
                i,
                shard.table,
                shard.first_row,
                shard.num_rows,
                shard.first_column,
                shard.num_columns,
                group.place(shard),
            )
            for i, group in enumerate(self._distinct_groups)
            for shard in group.shards
        ]

    def build_slots(
        self,
        layer: keras.layers.Layer,
        optimizers: dict[str, SparseOptimizer],
        held: tf.Module,
    ) -> None:
        for group in self.groups:
            self._on_device(group.device, lambda g=group: g.build_optimizer(optimizers))
            for name, slot in group.fused.slots.items():
                setattr(held, f"{name}_of_{group.name}", slot)
        self._state.optimizer = held

    def choose_engines(self) -> None:
        for group in self.groups:
            group.fused.choose_engine()

    # Lookups and updates

    def pool(self, ids: Ids, weights: tf.Tensor | None) -> tuple[Any, tf.Tensor]:
        sizes = [table.vocabulary_size for table in self.tables for _ in table.features]
        bad = id_ranges.any_out_of_range(ids, sizes)
        pooled = replicas.run_for_all(self._exchange.pool, pack(ids, weights))
        return self._in_feature_order(pooled), bad

    def penalty(self, ids: Ids) -> tf.Tensor:
        return replicas.run_for_all(self._exchange.penalty, pack(ids, None))

    def _in_feature_order(self, pooled):
        return tf.stack(pooled, axis=1) if self.has_one_width else list(pooled)

    def lookup(
        self,
        ids: Ids,
        weights: tf.Tensor | None,
        columns: Sequence[int],
        read: Callable[[tf.Variable, tf.Tensor], tf.Tensor],
    ) -> Any:
        if len(columns) < self.num_features:
            if isinstance(ids, tf.RaggedTensor):
                raise UserError(
                    "To look up only some features of sharded tables, pass padded ids, "
                    "not ragged ones."
                )
            missing = -tf.ones_like(ids[:, :1])
            number = {column: i for i, column in enumerate(columns)}
            order = [number.get(c, len(columns)) for c in range(self.num_features)]
            ids = tf.gather(tf.concat([ids, missing], 1), order, axis=1)
            if weights is not None:
                none = tf.zeros_like(weights[:, :1])
                weights = tf.gather(tf.concat([weights, none], 1), order, axis=1)
        parts = collections.defaultdict(list)
        for group in self._distinct_groups:
            lookup = group.fused.lookup(*group.select(ids, weights, self.num_features))
            pooled = lookup.pool(read(group.fused.variable, lookup.rows))
            pooled = group.fused.scaled(pooled)
            for i, (column, shard) in enumerate(
                zip(group.columns, group.feature_shards, strict=True)
            ):
                parts[column].append((shard, pooled[:, i, :]))
        return self._in_feature_order([assemble(parts[c]) for c in columns])

    def gradient_tensors(self, gradients: Any) -> list[tf.Tensor]:
        if isinstance(gradients, (list, tuple)):
            return list(gradients)
        return tf.unstack(gradients, axis=1)

    def update(self, batches: Sequence[dict[str, tf.Tensor]], step: Step) -> None:
        self._exchange.update(batches, step)

    def scale_rows(self, optimizer: ScaledOptimizer) -> None:
        for group in self.groups:
            with tf.device(self._device_name(group.device)):
                group.fused.scale_rows(optimizer)

    def start_rows(
        self,
        tables: tf.Tensor,
        rows: tf.Tensor,
        initial: Callable[..., tf.Tensor],
    ) -> None:
        number = {table.name: i for i, table in enumerate(self.tables)}
        for group in self.groups:
            # By table: first row of its shard, the end, and the place in the variable
            ranges = np.zeros((3, len(self.tables)), np.int64)
            for shard in group.shards:
                end = shard.first_row + shard.num_rows
                column = (shard.first_row, end, group.place(shard))
                ranges[:, number[shard.table]] = column
            first, end, place = tf.unstack(
                tf.gather(tf.constant(ranges), tables, axis=1)
            )
            own = tf.where((rows >= first) & (rows < end))[:, 0]
            columns = group.shards[0].columns
            values = initial(range(columns.start, columns.stop), own)
            with tf.device(self.devices[group.device]):
                places = tf.gather(rows - first + place, own)
                group.fused.start_rows(places, values)

    # Access by table

    def _place(self, group, shard, slot):
        """Return the variable of a shard or its slot, and the shard's first row."""
        if slot is None:
            return group.fused.variable, group.place(shard)
        return group.fused.find_slot(group.name_of(shard), slot)

    def slot_widths(self, name: str) -> dict[str, int]:
        table = self.find(name)
        shard, group = self._places[name][0]
        slots = group.fused.slot_names(group.name_of(shard))
        if not slots:
            return {}
        widths = group.optimizer_of(name).slots(table.embedding_dim)
        return {slot: widths[slot][0] for slot in slots}

    def read(self, name: str, slot: str | None = None) -> np.ndarray:
        result = np.empty(self.shape(name, slot), np.float32)
        for shard, group in self._places[name]:
            variable, start = self._place(group, shard, slot)
            part = self._on_device(
                group.device,
                lambda v=variable, a=start, s=shard: row_ops.read_range(
                    v, a, s.num_rows
                ),
            )
            columns = shard.columns if part.shape[1] != result.shape[1] else slice(None)
            result[shard.rows, columns] = part
        return result

    def read_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        result = np.empty((len(rows), self.by_name[name].embedding_dim), np.float32)
        for shard, group in self._places[name]:
            if group.is_copy and group.device:
                continue
            places = rows - shard.first_row
            own = np.flatnonzero((places >= 0) & (places < shard.num_rows))
            variable, start = self._place(group, shard, None)
            part = self._on_device(
                group.device,
                lambda v=variable, r=start + places[own]: row_ops.gather(v, r).numpy(),
            )
            result[own, shard.columns] = part
        return result

    def write_rows(
        self, name: str, slot: str | None, first_row: int, block: Any
    ) -> None:
        block = tf.convert_to_tensor(block)
        for shard, group in self._places[name]:
            a = max(first_row, shard.first_row)
            b = min(first_row + len(block), shard.first_row + shard.num_rows)
            if a >= b:
                continue
            part = block[a - first_row : b - first_row]
            variable, start = self._place(group, shard, slot)
            if part.shape[1] != variable.shape[1]:
                part = part[:, shard.columns]
            rows = tf.range(
                start + a - shard.first_row, start + b - shard.first_row, dtype=tf.int64
            )
            self._on_device(
                group.device,
                lambda v=variable, r=rows, p=part: row_ops.replace(v, r, p),
            )
