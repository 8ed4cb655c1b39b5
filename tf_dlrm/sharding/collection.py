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


@keras.saving.register_keras_serializable(package="tf_dlrm")
class ShardedEmbeddingCollection(TableLayer):
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
        ids: Those of this replica's part of the batch, in one of the forms that
            `EmbeddingCollection` takes.
        weights: float32 factors shaped as the ids, or `None`.

    Returns:
        float32 `(batch, F, embedding_dim)` of this replica's part; where widths
        differ, a list of F tensors `(batch, width of the feature)`.

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

    _store: SpreadStore  # what `_make_store` returns

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
        devices = replicas.device_names()
        plan = self._requested_plan
        if not isinstance(plan, Plan):
            plan = make_plan(tables, len(devices), strategy=plan, **self._plan_options)
            return SpreadStore(tables, devices, plan)
        plan.validate(tables)
        if plan.num_devices != len(devices):
            raise UserError(
                f"The plan is for {plan.num_devices} devices, the strategy has "
                f"{len(devices)}. Give the strategy's name, such as 'auto', to "
                "have a plan made for the devices there are."
            )
        return SpreadStore(tables, devices, plan)

    @property
    def plan(self) -> Plan:
        """The plan by which the tables lie."""
        return self._store.plan

    def call(self, ids: Ids, weights: Any = None, training: bool | None = None) -> Any:
        """Look up and pool the features of this replica's part of a batch.

        Raises:
            RuntimeError: In training, outside of a `DLRM`.
        """
        if training and find_recording(self) is None:
            raise RuntimeError(
                "No gradient reaches sharded tables through a tape: train them in a "
                "DLRM, whose step hands their gradients over, or call "
                "`apply_gradients` yourself."
            )
        return TableLayer.call(self, ids, weights)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        plan = self._requested_plan
        if isinstance(plan, Plan):  # it names devices, which differ elsewhere
            plan = {table.name: plan.placement(table.name) for table in self.tables}
        return {
            **super().get_config(),
            "plan": plan,
            "plan_options": self._plan_options,
        }
