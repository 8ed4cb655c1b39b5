"""`TableStore`: storage of the rows of tables and of their optimizer state."""

import abc
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.embedding.engines.engine import Step
from tf_dlrm.embedding.row_places import RowPlace
from tf_dlrm.embedding.scaled_rows import ScaledOptimizer
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime import replicas
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Ids


class TableStore(abc.ABC):
    """The tables of a layer on their devices, with access by name.

    The slot `None` stands for the table itself.

    Args:
        tables: The `EmbeddingTable`s. Their features, in this order, are the columns of
            the ids.
        devices: Names of the devices; replica i is on device i.

    Attributes:
        scaled: The optimizers whose rows are stored divided by a scale. Call `settle`
            before you read or write rows.
    """

    def __init__(
        self, tables: Sequence[EmbeddingTable], devices: tuple[str, ...]
    ) -> None:
        self.tables, self.devices = tuple(tables), devices
        self.by_name = {table.name: table for table in tables}
        owners = [table for table in tables for _ in table.features]
        self.num_features = len(owners)
        self.scaled: list[ScaledOptimizer] = []
        self.has_one_width = len({table.embedding_dim for table in tables}) == 1

    # Variables

    @abc.abstractmethod
    def build(self, layer: keras.layers.Layer) -> None:
        """Create the variables, filled with zeros, and attach them to `layer`."""

    @property
    @abc.abstractmethod
    def variables(self) -> list[tf.Variable]:
        """The `tf.Variable`s that hold rows, without repetitions."""

    @abc.abstractmethod
    def row_places(self) -> list[RowPlace]:
        """Return where `variables` hold each row of each table, once."""

    @abc.abstractmethod
    def build_slots(
        self,
        layer: keras.layers.Layer,
        optimizers: dict[str, SparseOptimizer],
        held: tf.Module,
    ) -> None:
        """Create the slots of each trainable table.

        Args:
            layer: The layer, which gets `held` as an attribute for checkpoints.
            optimizers: Names of the trainable tables to their optimizers.
            held: Module that gets the slots as attributes.
        """

    @abc.abstractmethod
    def choose_engines(self) -> None:
        """Choose the engines again, after XLA was enabled or disabled."""

    # Lookups and updates

    @abc.abstractmethod
    def pool(self, ids: Ids, weights: tf.Tensor | None) -> tuple[Any, tf.Tensor]:
        """Look up and pool this replica's standardized ids.

        Returns:
            The pooled vectors, `(B, F, D)`, or a list of F tensors `(B, width)` if
            widths differ; and whether any id is out of range, a bool scalar tensor.
        """

    @abc.abstractmethod
    def penalty(self, ids: Ids) -> tf.Tensor:
        """Return the penalty on the distinct rows of the global batch, a scalar.

        Args:
            ids: This replica's standardized ids.
        """

    @abc.abstractmethod
    def lookup(
        self,
        ids: Ids,
        weights: tf.Tensor | None,
        columns: Sequence[int],
        read: Callable[[tf.Variable, tf.Tensor], tf.Tensor],
    ) -> Any:
        """Look up and pool the features at `columns` on one device.

        Args:
            ids: Standardized ids.
            weights: Standardized weights of the ids, or `None`.
            columns: Positions of features in ascending order.
            read: Function `(variable, rows)` that returns the rows.
        """

    @abc.abstractmethod
    def gradient_tensors(self, gradients: Any) -> list[tf.Tensor]:
        """Return the gradients of pooled vectors as tensors to send to replicas."""

    @abc.abstractmethod
    def update(self, batches: Sequence[dict[str, tf.Tensor]], step: Step) -> None:
        """Apply one step for all replicas at once.

        Args:
            batches: The result of `global_batch.pack` for each replica's batch, with
                the `gradient_tensors` as `gradient_0`, `gradient_1`, ...
            step: The optimizer step.
        """

    def run_for_all(
        self, function: Callable[[list[dict[str, Any]]], list], arguments: dict
    ) -> None:
        """Call `function` once, with the arguments of all replicas, for `update`.

        Args:
            function: As in `replicas.run_for_all`.
            arguments: The arguments of this replica, as `update` describes them.
        """
        replicas.run_for_all(function, arguments)

    def settle(self) -> None:
        """Make the variables hold the rows themselves, see `scaled_rows`."""
        if not tf.executing_eagerly():
            return  # a function that is traced computes nothing yet
        for optimizer in self.scaled:
            if float(optimizer.scale.numpy()) != 1.0:
                self.scale_rows(optimizer)
                optimizer.scale.assign(tf.ones_like(optimizer.scale))

    @abc.abstractmethod
    def scale_rows(self, optimizer: ScaledOptimizer) -> None:
        """Multiply the stored rows of an optimizer by its scale."""

    @abc.abstractmethod
    def start_rows(
        self,
        tables: tf.Tensor,
        rows: tf.Tensor,
        initial: Callable[..., tf.Tensor],
    ) -> None:
        """Give rows new initial values and their slots the optimizers' initial state.

        Args:
            tables: Number of the table of each row, int32 `(n,)`.
            rows: Distinct rows of the tables, int64 `(n,)`.
            initial: Function of a `range` of columns, and optionally of the places
                `(m,)` of some of the rows, that returns their values.
        """

    # Access by table

    def shape(self, name: str, slot: str | None = None) -> tuple[int, int]:
        """Return the shape of a table or of one of its slots.

        Raises:
            ValueError: If there is no such table.
        """
        table = self.find(name)
        if slot is None:
            return table.vocabulary_size, table.embedding_dim
        return table.vocabulary_size, self.slot_widths(name)[slot]

    def find(self, name: str) -> EmbeddingTable:
        """Return the table with this name.

        Raises:
            ValueError: If there is no such table.
        """
        if name not in self.by_name:
            raise UserError(
                f"There is no table '{name}'. Tables: {', '.join(self.by_name)}"
            )
        return self.by_name[name]

    @abc.abstractmethod
    def slot_widths(self, name: str) -> dict[str, int]:
        """Return the widths of a table's slots by name; empty without an optimizer."""

    @abc.abstractmethod
    def read(self, name: str, slot: str | None = None) -> np.ndarray:
        """Return a copy of a table or slot."""

    @abc.abstractmethod
    def read_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Return a copy of some rows of a table."""

    @abc.abstractmethod
    def write_rows(
        self, name: str, slot: str | None, first_row: int, block: Any
    ) -> None:
        """Overwrite rows `first_row`, ... of a table or slot with `(n, width)`."""
