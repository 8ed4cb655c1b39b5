"""`Engine`: the interface of the ways to compute lookups and updates."""

import abc
import dataclasses
from typing import TYPE_CHECKING, NamedTuple

import tensorflow as tf

from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime.types import Ids

if TYPE_CHECKING:
    from tf_dlrm.embedding.fused_table import FusedTable


@dataclasses.dataclass(frozen=True)
class TrainedPart:
    """The tables of a fused variable that one optimizer trains, and its slots.

    A slot variable holds the rows of the part's tables and, as its last row, a null
    row, just as the fused variable does for all tables.

    Attributes:
        optimizer: The optimizer.
        variable: The fused variable, `(total rows, D)`.
        slots: Slot names to variables `(slot rows, width)`.
        first_slot_row: Names of the part's tables to their first rows in the slots.
        columns: The columns of the gradients that belong to the variable. A table may
            be split by columns, but the mean square of a row covers all columns.
    """

    optimizer: SparseOptimizer
    variable: tf.Variable
    slots: dict[str, tf.Variable]
    first_slot_row: dict[str, int]
    columns: slice


class PooledGradients(NamedTuple):
    """Ids of a batch and the gradients of their pooled bags.

    Attributes:
        ids: Standardized ids of the features of a fused table.
        weights: Standardized weights of the ids, or `None`.
        gradients: Gradients of the pooled bags, float32 `(B, F, D)`. They are wider
            than the table if the table is split by columns and an optimizer needs
            whole rows.
    """

    ids: Ids
    weights: tf.Tensor | None
    gradients: tf.Tensor


class Step(NamedTuple):
    """Number and learning rates of one step of the optimizers.

    Attributes:
        number: Number of the step, from 1; int64 scalar tensor.
        rates: Learning rates, float32 scalar tensors, by `id` of the optimizer.
        applies: Whether the step changes anything, bool scalar tensor. If not, the
            batch has no ids. `None` is `True`.
    """

    number: tf.Tensor
    rates: dict[int, tf.Tensor]
    applies: tf.Tensor | None = None

    def rate(self, optimizer: SparseOptimizer) -> tf.Tensor:
        """Return the learning rate of an optimizer."""
        return self.rates[id(optimizer)]


class Engine(abc.ABC):
    """Lookups and updates of a `FusedTable`, computed in one way.

    Args:
        table: The `FusedTable`.
    """

    def __init__(self, table: "FusedTable") -> None:
        self._table = table

    @abc.abstractmethod
    def build_optimizer(self) -> None:
        """Prepare updates of the table's parts, after new parts were created."""

    @abc.abstractmethod
    def pool(
        self, handle: tf.Tensor, ids: Ids, weights: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Look rows up and pool them.

        Args:
            handle: Resource handle of the fused variable.
            ids: Standardized ids.
            weights: Standardized weights of the ids, or `None`.

        Returns:
            The pooled vectors, `(B, F, D)`, and whether any id is out of range, a bool
            scalar tensor. Ids out of range are ignored.
        """

    @abc.abstractmethod
    def update(self, batch: PooledGradients, step: Step) -> None:
        """Update each part with its optimizer from the gradients of pooled bags."""
