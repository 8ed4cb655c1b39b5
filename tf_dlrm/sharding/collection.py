"""`ShardedEmbeddingCollection`: tables spread over a MirroredStrategy's devices."""

from collections.abc import Sequence
from typing import Any

import keras

from tf_dlrm.embedding.recording import find_recording
from tf_dlrm.embedding.table_layer import TableLayer
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime import replicas
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Ids
from tf_dlrm.sharding.planning.planner import plan as make_plan
from tf_dlrm.sharding.planning.plans import Plan
from tf_dlrm.sharding.spread_store import SpreadStore
from tf_dlrm.sharding.worker_store import WorkerStore


@keras.saving.register_keras_serializable(package="tf_dlrm")
class ShardedEmbeddingCollection(TableLayer):
    """Embedding tables spread over devices: model parallelism for tables.

    Create the layer, and the `DLRM` that uses it, under
    `tf.distribute.MirroredStrategy().scope()`; the MLPs are mirrored. The plan puts
    each table on one device, or ranges of its rows or columns on several devices, or a
    copy on each device. In the forward pass, ids go to the devices that own their rows.
    The owners look up and pool them for the whole global batch and return pooled
    vectors. In the backward pass, the gradients of pooled vectors go to the owners,
    which update their own rows, so that no gradient of rows is reduced over devices. On
    the same global batches, the weights equal those of training on one device.

    Forms of ids, combiners, optimizers and the state by logical table are the same as
    in `EmbeddingCollection`. Files therefore load on any number of devices, and with or
    without this layer. Without a strategy, all shards are on one device.

    `get_weights` of the layer and of the `DLRM` return the logical tables, which their
    `weights` and `trainable_variables` do not include, since no Keras variable spans
    devices.

    Args:
        tables: The `EmbeddingTable`s. Their features, in this order, are the columns of
            the ids.
        plan: A strategy of `tf_dlrm.sharding.plan`: `"auto"`, `"table_wise"`,
            `"row_wise"`, `"column_wise"` or `"data_parallel"`, or a dict of table names
            to strategies; or a `Plan` for the number of devices.
        seed: Integer seed of the initial values, which equal those of an
            `EmbeddingCollection` with the same seed. Default: drawn at random.
        plan_options: Other arguments of `tf_dlrm.sharding.plan`, such as `batch_size`
            and `device_memory_bytes`.

    Call arguments:
        ids: Ids of this replica's part of the batch: int32/int64 `(batch, F)`, with -1
            for no id; `(batch, F, L)` padded with -1; or a `tf.RaggedTensor`
            `(batch, F, None)`.
        weights: float32 factors with the shape of the ids, or `None`.

    Returns:
        float32 `(batch, F, embedding_dim)` for this replica's part of the batch, or, if
        widths differ, a list of F tensors `(batch, width of the feature)`.

    Raises:
        ValueError: If a `Plan` is for other tables or another number of devices.
        tf.errors.InvalidArgumentError: If an id is outside its table.

    Example:

    >>> import numpy as np, tf_dlrm
    >>> tables = [tf_dlrm.EmbeddingTable(f"C{i}", 100, 8) for i in range(3)]
    >>> layer = tf_dlrm.sharding.ShardedEmbeddingCollection(tables, plan="table_wise")
    >>> layer(np.array([[3, 4, 5], [99, -1, 0]])).shape
    TensorShape([2, 3, 8])

    Reference:
        Naumov et al. 2019, arXiv 1906.00091, section 3: model-parallel embeddings
        with a butterfly shuffle. The placements are those of torchrec.
    """

    _store: SpreadStore  # the result of `_make_store`

    def __init__(
        self,
        tables: Sequence[EmbeddingTable],
        plan: str | dict[str, str] | Plan = "auto",
        seed: int | None = None,
        plan_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._requested_plan, self._plan_options = plan, dict(plan_options or {})
        super().__init__(tables, seed, self._make_store, **kwargs)

    def _make_store(self, tables: tuple[EmbeddingTable, ...]) -> SpreadStore:
        place = replicas.place()
        num_devices = place.num_replicas
        plan = self._requested_plan
        if not isinstance(plan, Plan):
            plan = make_plan(tables, num_devices, strategy=plan, **self._plan_options)
        else:
            plan.validate(tables)
        if plan.num_devices != num_devices:
            raise UserError(
                f"The plan is for {plan.num_devices} devices, but the strategy has "
                f"{num_devices}. Pass plan='auto', or another planning strategy, to "
                "create a plan for these devices."
            )
        if place.num_workers > 1:
            return WorkerStore(tables, place, plan)
        return SpreadStore(tables, place.devices, plan)

    @property
    def plan(self) -> Plan:
        """The plan that places the tables on devices."""
        return self._store.plan

    def call(self, ids: Ids, weights: Any = None, training: bool | None = None) -> Any:
        """Look up and pool the features of this replica's part of a batch.

        Raises:
            RuntimeError: In training, outside of a `DLRM`.
        """
        if training and find_recording(self) is None:
            raise RuntimeError(
                "A tape cannot compute the gradients of sharded tables. Train them in "
                "a DLRM, whose step passes the gradients to the layer, or call "
                "`apply_gradients` yourself."
            )
        return TableLayer.call(self, ids, weights)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        plan = self._requested_plan
        if isinstance(plan, Plan):  # it depends on the devices of this machine
            plan = {table.name: plan.placement(table.name) for table in self.tables}
        return {
            **super().get_config(),
            "plan": plan,
            "plan_options": self._plan_options,
        }
