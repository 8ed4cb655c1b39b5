"""`ShardedEmbeddingCollection`: tables spread over a MirroredStrategy's devices."""

import collections
import random
import zlib
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import bags, id_ranges
from tf_dlrm.embedding.contract import is_recorded
from tf_dlrm.embedding.global_batch import pack
from tf_dlrm.embedding.trained_tables import TrainedTables
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime import huge_pages, replicas
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.sharding.checkpoint_state import CheckpointState
from tf_dlrm.sharding.exchange import ONLY_IN_DLRM, Exchange, assemble
from tf_dlrm.sharding.groups import Group, key_of
from tf_dlrm.sharding.planning import traffic
from tf_dlrm.sharding.planning.planner import plan as make_plan
from tf_dlrm.sharding.planning.plans import Plan


@keras.saving.register_keras_serializable(package="tf_dlrm")
class ShardedEmbeddingCollection(TrainedTables):
    """Embedding tables spread over devices: model-parallel, beside mirrored MLPs.

    To be made, and used in a `DLRM`, under `tf.distribute.MirroredStrategy().scope()`.
    Each table lies on one device, or in ranges of rows or columns on several, or as a
    copy on each, as the plan says. In the forward pass ids go to the devices that own
    their rows; these look up and pool them for the whole global batch, and pooled
    vectors come back. In the backward pass gradients of pooled vectors take the same
    way, and each owner updates its own rows: no gradient of rows is ever reduced over
    devices. On the same global batches the weights are those of one device.

    The rest is as in `EmbeddingCollection`: forms of ids, combiners, optimizers,
    state by logical table. So files written with one number of devices, or without
    this layer, load on another. Without a strategy all shards lie on one device.

    Args:
        tables: The `EmbeddingTable`s; the features are theirs in this order.
        plan: `"auto"`, `"table_wise"`, `"row_wise"`, `"column_wise"` or
            `"data_parallel"`, or a dict of table name to one of these, for
            `tf_dlrm.sharding.plan`; or a `Plan` for as many devices as there are.
        seed: Integer for the initial values, the same as an `EmbeddingCollection`
            makes of it; `None` draws one.
        plan_options: Further arguments of `tf_dlrm.sharding.plan`, such as
            `batch_size` and `device_memory_bytes`.

    Call arguments:
        ids: As of `EmbeddingCollection`, of this replica's part of the batch.
        weights: As of `EmbeddingCollection`.

    Returns:
        As `EmbeddingCollection`, of this replica's part.

    Raises:
        ValueError: If a `Plan` is for other tables or another number of devices.
        tf.errors.InvalidArgumentError: For an id outside its table.

    Example:

    >>> import numpy as np, tf_dlrm
    >>> tables = [tf_dlrm.EmbeddingTable(f"C{i}", 100, 8) for i in range(3)]
    >>> layer = tf_dlrm.sharding.ShardedEmbeddingCollection(tables, plan="table_wise")
    >>> layer(np.array([[3, 4, 5], [99, -1, 0]])).shape
    TensorShape([2, 3, 8])

    Reference:
        Naumov et al. 2019, arXiv 1906.00091, section 3: model-parallel embeddings
        with a butterfly shuffle. Placements as in torchrec.
    """

    def __init__(
        self,
        tables: Sequence[EmbeddingTable],
        plan="auto",
        seed: int | None = None,
        plan_options: dict | None = None,
        **kwargs,
    ):
        kwargs.setdefault("autocast", False)
        super().__init__(**kwargs)
        self.supports_jit = False
        self.tables = tuple(
            EmbeddingTable.from_config(table) if isinstance(table, dict) else table
            for table in tables
        )
        if not self.tables:
            raise UserError("`tables` must hold at least one EmbeddingTable.")
        self.seed = random.randint(1, 10**9) if seed is None else int(seed)
        self.features = [(f, table) for table in self.tables for f in table.features]
        self.num_features = len(self.features)
        self._requested_plan, self._plan_options = plan, dict(plan_options or {})
        self.devices = replicas.device_names()
        self._by_name = {table.name: table for table in self.tables}
        self.plan = self._make_plan(plan)
        self._groups = self._make_groups()
        self._exchange = Exchange(self._groups, self.devices, self.num_features)
        self._state = CheckpointState(self.plan)
        self._places = self._find_places()
        self.build()

    def _make_plan(self, plan):
        if not isinstance(plan, Plan):
            return make_plan(
                self.tables, len(self.devices), strategy=plan, **self._plan_options
            )
        plan.validate(self.tables)
        if plan.num_devices != len(self.devices):
            raise UserError(
                f"The plan is for {plan.num_devices} devices, the strategy has "
                f"{len(self.devices)}. Give the strategy's name, such as 'auto', to "
                "have a plan made for the devices there are."
            )
        return plan

    def _make_groups(self):
        num_devices = len(self.devices)
        summed_densely = {
            load.name
            for load in self.plan.tables
            if traffic.reduces_cheaply(load, num_devices, self.plan.batch_size)
        }
        groups = []
        for device in range(num_devices):
            found = collections.defaultdict(list)
            for shard in self.plan.shards_on(device):
                width = self._by_name[shard.table].embedding_dim
                found[key_of(shard, width, summed_densely)].append(shard)
            for key, shards in sorted(found.items(), key=lambda item: str(item[0])):
                groups.append(Group(device, key, shards, self.features))
        return groups

    def _find_places(self):
        """Where each table lies: `(shard, group)` of all its shards."""
        places = collections.defaultdict(list)
        for group in self._groups:
            for shard in group.shards:
                places[shard.table].append((shard, group))
        return places

    # Weights

    def build(self, input_shape=None):
        if self.built:
            return
        for group in self._groups:
            fused = group.fused
            shape = (fused.num_rows + 1, fused.width)
            name = f"tables_{group.name}"
            fused.variable = self._on_device(
                group.device,
                lambda shape=shape, name=name: tf.Variable(tf.zeros(shape), name=name),
            )
            huge_pages.use_for(fused.variable)
            setattr(self._state, name, fused.variable)
        for table in self.tables:
            self._initialize(table)
        self.built = True

    def _on_device(self, device, make):
        return replicas.on_device(self.devices[device], make)

    def _initialize(self, table):
        size, width = table.vocabulary_size, table.embedding_dim
        values = None
        if table.initializer is not None:
            values = table.initializer((size, width), dtype="float32")
        limit = size**-0.5
        seed = (self.seed + zlib.crc32(table.name.encode())) % (1 << 31)
        for a, b in row_ops.block_ranges(size, width):
            if values is None:
                shape = (b - a, width)
                block = tf.random.stateless_uniform(shape, (seed, a), -limit, limit)
            else:
                block = values[a:b]
            self._write_rows(table.name, None, a, block)

    def _write_rows(self, name, slot, first, block):
        """Overwrites rows `first`, ... of a table or slot in all its shards."""
        for shard, group in self._places[name]:
            a = max(first, shard.first_row)
            b = min(first + len(block), shard.first_row + shard.num_rows)
            if a >= b:
                continue
            part = block[a - first : b - first]
            variable, start = self._variable(group, shard, slot)
            if part.shape[1] != variable.shape[1]:
                part = part[:, shard.columns]
            rows = tf.range(
                start + a - shard.first_row, start + b - shard.first_row, dtype=tf.int64
            )
            self._on_device(
                group.device,
                lambda v=variable, r=rows, p=part: row_ops.replace(v, r, p),
            )

    def _variable(self, group, shard, slot):
        """The variable of a shard or of its slot, and its first row there."""
        if slot is None:
            return group.fused.variable, group.place(shard)
        name = group.names[group.shards.index(shard)]
        return group.fused.find_slot(name, slot)

    # Forward

    def call(self, ids, weights=None, training=None):
        if training and not is_recorded(self):
            raise RuntimeError(ONLY_IN_DLRM)
        ids = bags.standardize_ids(ids, self.num_features)
        weights = bags.standardize_weights(weights, ids)
        sizes = [table.vocabulary_size for _, table in self.features]
        bad = id_ranges.any_out_of_range(ids, sizes)
        pooled = replicas.run_for_all(self._exchange.pool, pack(ids, weights))
        # What uses the result waits for the check: nothing is updated from a bad batch.
        with tf.control_dependencies([id_ranges.refuse_if(bad, ids, self.features)]):
            pooled = [tf.identity(vectors) for vectors in pooled]
        return self._in_feature_order(pooled)

    def _in_feature_order(self, pooled):
        widths = {table.embedding_dim for table in self.tables}
        return tf.stack(pooled, axis=1) if len(widths) == 1 else list(pooled)

    def lookup(self, ids, weights=None, columns=None, read=row_ops.gather):
        """The forward pass without the range check, on one device; for exports.

        Args:
            ids: As in the call, of the features at `columns`; then not ragged.
            weights: As in the call; none where `columns` are given.
            columns: Numbers of features in ascending order; `None` for all.
            read: As of `EmbeddingCollection.lookup`.
        """
        if columns is None:
            columns = range(self.num_features)
        else:
            missing = -tf.ones_like(ids[:, :1])
            number = {column: i for i, column in enumerate(columns)}
            order = [number.get(c, len(columns)) for c in range(self.num_features)]
            ids = tf.gather(tf.concat([ids, missing], 1), order, axis=1)
        ids = bags.standardize_ids(ids, self.num_features)
        weights = bags.standardize_weights(weights, ids)
        parts = collections.defaultdict(list)
        for group in self._groups:
            if group.is_copy and group.device:
                continue
            lookup = group.fused.lookup(*group.select(ids, weights, self.num_features))
            pooled = lookup.pool(read(group.fused.variable, lookup.rows))
            for i, (column, shard) in enumerate(
                zip(group.columns, group.of_feature, strict=True)
            ):
                parts[column].append((shard, pooled[:, i, :]))
        return self._in_feature_order([assemble(parts[c]) for c in columns])

    @property
    def lookup_variables(self) -> list[tf.Variable]:
        """The plain variables that `lookup` reads, each once: those of all shards."""
        groups = [g for g in self._groups if not (g.is_copy and g.device)]
        return [group.fused.variable for group in groups]

    def compute_output_spec(self, ids, weights=None, training=None):
        shapes = [(ids.shape[0], table.embedding_dim) for _, table in self.features]
        if len({width for _, width in shapes}) > 1:
            return [keras.KerasTensor(shape, "float32") for shape in shapes]
        shape = (ids.shape[0], self.num_features, shapes[0][1])
        return keras.KerasTensor(shape, "float32")

    # Training

    def _build_slots(self, optimizers):
        slots = {}
        for group in self._groups:
            self._on_device(group.device, lambda g=group: g.build_optimizer(optimizers))
            for name, slot in group.fused.slots.items():
                slots[f"{name}_of_{group.name}"] = slot
        return slots

    def _hold_optimizer_state(self, held):
        self._state.optimizer = held

    def _gradient_tensors(self, gradients):
        if isinstance(gradients, (list, tuple)):
            return gradients
        return tf.unstack(gradients, axis=1)

    def _update(self, of_replicas, rates, step):
        """Updates the rows that the global batch looked up, each on its device."""
        self._exchange.update(of_replicas, rates, step)

    # Where a logical table lies, for `LogicalTables`

    def _slot_names(self, name):
        if name not in self._places:
            raise UserError(
                f"There is no table '{name}'. Tables: {', '.join(self._by_name)}"
            )
        shard, group = self._places[name][0]
        return group.fused.slot_names(group.names[group.shards.index(shard)])

    def _shape(self, name, slot):
        self._slot_names(name)  # refuses unknown names
        table = self._by_name[name]
        if slot is None:
            return table.vocabulary_size, table.embedding_dim
        width, _ = self._optimizers[name].slots(table.embedding_dim)[slot]
        return table.vocabulary_size, width

    def _read(self, name, slot):
        result = np.empty(self._shape(name, slot), np.float32)
        for shard, group in self._places[name]:
            variable, start = self._variable(group, shard, slot)
            part = self._on_device(
                group.device,
                lambda v=variable, a=start, s=shard: row_ops.read_range(
                    v, a, s.num_rows
                ),
            )
            columns = shard.columns if part.shape[1] != result.shape[1] else slice(None)
            result[shard.rows, columns] = part
        return result

    def _read_rows(self, name, rows):
        result = np.empty((len(rows), self._by_name[name].embedding_dim), np.float32)
        for shard, group in self._places[name]:
            if group.is_copy and group.device:
                continue
            places = rows - shard.first_row
            own = np.flatnonzero((places >= 0) & (places < shard.num_rows))
            variable, start = self._variable(group, shard, None)
            part = self._on_device(
                group.device,
                lambda v=variable, r=start + places[own]: row_ops.gather(v, r).numpy(),
            )
            result[own, shard.columns] = part
        return result

    def _write(self, name, slot, values):
        for a, b in row_ops.block_ranges(len(values), int(values.shape[1])):
            self._write_rows(name, slot, a, tf.convert_to_tensor(values[a:b]))

    def get_config(self):
        plan = self._requested_plan
        if isinstance(plan, Plan):  # it names devices, which differ elsewhere
            plan = {table.name: plan.placement(table.name) for table in self.tables}
        return {
            **super().get_config(),
            "tables": [table.get_config() for table in self.tables],
            "plan": plan,
            "seed": self.seed,
            "plan_options": self._plan_options,
        }
