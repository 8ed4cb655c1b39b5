"""Penalties on the rows that a batch reads: the `regularizer` of a table.

The step reports the penalty as a part of the loss. Its gradient is computed from the
rows where the optimizer changes them, so that each row counts once however often the
batch reads it, and a penalty adds no gradient that crosses devices.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError

# Shapes: U unique rows, D width.


def value(regularizer: Any, rows: tf.Tensor) -> tf.Tensor:
    """Return the penalty on rows `(U, D)`, a float32 scalar tensor."""
    return tf.cast(tf.reduce_sum(regularizer(rows)), tf.float32)


def by_regularizer(tables: Sequence[EmbeddingTable]) -> list[tuple[Any, list[str]]]:
    """Return each distinct regularizer of trainable tables with the tables' names."""
    groups: list[tuple[Any, list[str]]] = []
    configs: list[Any] = []
    for table in tables:
        if table.regularizer is None or not table.trainable:
            continue
        config = table.get_config()["regularizer"]
        if config in configs:
            groups[configs.index(config)][1].append(table.name)
        else:
            configs.append(config)
            groups.append((table.regularizer, [table.name]))
    return groups


def check_rows(table: EmbeddingTable) -> None:
    """Check that the penalty on rows is the sum of those on each of them.

    Raises:
        ValueError: If it is not.
    """
    if table.regularizer is not None and not _adds_up(table, axis=0):
        raise UserError(
            f"`regularizer` of table '{table.name}' must be a sum over rows or values, "
            "such as L1 and L2, because each step penalizes other rows. Received: "
            f"{type(table.regularizer).__name__}, whose penalty on a matrix is not the "
            "sum of those on its rows"
        )


def check_columns(table: EmbeddingTable, optimizer: SparseOptimizer) -> None:
    """Check that the columns of a table can be penalized on different devices.

    Args:
        table: The table, or a part of one.
        optimizer: The optimizer of the table.

    Raises:
        ValueError: If they cannot.
    """
    if table.regularizer is None:
        return
    fix = "Choose another placement for the table, such as 'row_wise'."
    if not _adds_up(table, axis=1):
        raise UserError(
            f"Table '{table.name}' is split by columns, but its `regularizer`, "
            f"{type(table.regularizer).__name__}, needs whole rows. {fix}"
        )
    if optimizer.uses_mean_squares:
        raise UserError(
            f"Table '{table.name}' is split by columns, but its optimizer needs the "
            f"gradients of whole rows, to which its `regularizer` adds. {fix}"
        )


def _adds_up(table, axis):
    rows = np.random.default_rng(0).normal(size=(3, table.embedding_dim))
    parts = np.split(rows, rows.shape[axis], axis)
    with tf.init_scope():
        whole, none, *others = (
            float(value(table.regularizer, tf.constant(part, tf.float32)))
            for part in (rows, rows[:0], *parts)
        )
    return none == 0.0 and bool(np.isclose(whole, sum(others), rtol=1e-4))


class PenalizedOptimizer(SparseOptimizer):
    """An optimizer of rows whose gradient includes that of their penalty.

    Its learning rate is a vector `(2,)`: the rate, and the derivative of the loss with
    respect to the penalty.

    Args:
        optimizer: The optimizer of the rows, which has been built.
        regularizer: The regularizer of the rows.
    """

    writes_rows = True

    def __init__(self, optimizer: SparseOptimizer, regularizer: Any) -> None:
        super().__init__()
        self._optimizer, self._regularizer = optimizer, regularizer
        self.uses_mean_squares = optimizer.uses_mean_squares
        self.moves_other_rows = optimizer.moves_other_rows
        self.shrinks_all_rows = optimizer.shrinks_all_rows

    def current_learning_rate(
        self, iterations: tf.Tensor, followed: tf.Tensor | None
    ) -> tf.Tensor:
        """Return the learning rate of the optimizer, a scalar tensor."""
        return self._optimizer.current_learning_rate(iterations, followed)

    def shrinkage(self, learning_rate: tf.Tensor) -> tf.Tensor:
        return self._optimizer.shrinkage(learning_rate)

    def slots(self, embedding_dim: int) -> dict[str, tuple[int, float]]:
        return self._optimizer.slots(embedding_dim)

    def apply(
        self,
        gradients: tf.Tensor,
        slots: dict[str, tf.Tensor],
        learning_rate: tf.Tensor,
        step: tf.Tensor,
        rows: tf.Tensor | None = None,
        mean_squares: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        rate, derivative = tf.unstack(learning_rate)
        if gradients.shape.rank != 0:  # these rows are in the batch
            gradients = gradients + derivative * self._gradient(rows)
            if self.uses_mean_squares:
                mean_squares = row_ops.mean_squares(gradients)
        own = self._optimizer
        current = rows if own.writes_rows else None
        new, slots = own.apply(gradients, slots, rate, step, current, mean_squares)
        return (new if own.writes_rows else rows - new), slots

    def _gradient(self, rows):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(rows)
            penalty = value(self._regularizer, rows)
        zero = tf.UnconnectedGradients.ZERO
        return tape.gradient(penalty, rows, unconnected_gradients=zero)


def penalize(
    optimizers: dict[str, SparseOptimizer], tables: Sequence[EmbeddingTable]
) -> dict[str, SparseOptimizer]:
    """Return the optimizers of tables by name, penalized where the table is.

    Tables with the same optimizer and equal regularizers share one object.

    Args:
        optimizers: Names of the trainable tables to their optimizers.
        tables: The tables.
    """
    result = dict(optimizers)
    for regularizer, names in by_regularizer(tables):
        made: dict[int, SparseOptimizer] = {}
        for name in names:
            own = optimizers[name]
            if id(own) not in made:
                made[id(own)] = PenalizedOptimizer(own, regularizer)
            result[name] = made[id(own)]
    return result
