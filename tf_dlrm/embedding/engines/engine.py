"""`Engine`: what a way of computing lookups and updates has to offer."""

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

    Slot variables hold the part's tables one under the other and then a null row, as
    the fused variable does with all tables.

    Attributes:
        optimizer: The optimizer.
        variable: The fused variable, `(total rows, D)`.
        slots: Name to variable `(slot rows, width)`.
        first_slot_row: Name of each table of the part to its first row in the slots.
        columns: Those of the gradients that the variable has: a table may be split by
            columns, and the mean square of a row is that of all its columns.
    """

    optimizer: SparseOptimizer
    variable: tf.Variable
    slots: dict[str, tf.Variable]
    first_slot_row: dict[str, int]
    columns: slice


class PooledGradients(NamedTuple):
    """A batch on its way back.

    Attributes:
        ids: Standardized ids of the features of a fused table.
        weights: Their standardized weights, or `None`.
        gradients: float32 `(B, F, D)`, of the pooled bags; wider than the table where
            it is split by columns and an optimizer needs whole rows.
    """

    ids: Ids
    weights: tf.Tensor | None
    gradients: tf.Tensor


class Step(NamedTuple):
    """A step of the optimizers.

    Attributes:
        number: From 1; int64 scalar tensor.
        rates: Learning rate, float32 scalar tensor, by `id` of the optimizer.
    """

    number: tf.Tensor
    rates: dict[int, tf.Tensor]

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
        """Prepare updates of the table's parts, which were made anew."""

    @abc.abstractmethod
    def pool(
        self, handle: tf.Tensor, ids: Ids, weights: tf.Tensor | None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Look rows up and pool them.

        Args:
            handle: The fused variable's.
            ids: Standardized ids.
            weights: Their standardized weights, or `None`.

        Returns:
            `(B, F, D)`, and whether an id is out of range (bool scalar tensor), which
            then counts as no id.
        """

    @abc.abstractmethod
    def update(self, batch: PooledGradients, step: Step) -> None:
        """Apply the gradients of pooled bags by each part's optimizer."""
