"""Rows and other weights of a model in training, as an export stores them."""

from collections.abc import Mapping

import numpy as np

from tf_dlrm.embedding.row_places import RowPlace
from tf_dlrm.model import DLRM
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.serving import quantization
from tf_dlrm.serving.deltas.format import Layout, TableRows
from tf_dlrm.serving.signatures import weights_for_inference

_NO_IDS = np.zeros(0, np.int64)


def layout_of(model: DLRM, table_dtype: str) -> Layout:
    """Return where an export of a model stores its weights.

    Args:
        model: The model.
        table_dtype: Storage format of the tables.
    """
    places = model.embedding.row_places()
    widths: dict[str, dict[int, int]] = {}
    for place in places:
        widths.setdefault(place.table, {})[place.first_column] = place.num_columns
    stored: dict[str, dict[int, int]] = {}  # first stored column by first column
    totals = {}
    for table, parts in widths.items():
        total, stored[table] = 0, {}
        for first in sorted(parts):
            stored[table][first] = total
            total += quantization.stored_type(parts[first], table_dtype)[0]
        totals[table] = total
    num_tables = len(model.embedding.lookup_variables)
    dense = weights_for_inference(model)[num_tables:]
    return Layout(
        table_dtype,
        tuple((t.name, t.vocabulary_size, totals[t.name]) for t in model.spec.tables),
        tuple(
            RowPlace(
                place.variable,
                place.table,
                place.first_row,
                place.num_rows,
                stored[place.table][place.first_column],
                quantization.stored_type(place.num_columns, table_dtype)[0],
                place.place,
            )
            for place in places
        ),
        num_tables,
        tuple((tuple(v.shape.as_list()), v.dtype.name) for v in dense),
    )


def dense_of(model: DLRM) -> list[np.ndarray]:
    """Return copies of all weights for inference but the tables."""
    num_tables = len(model.embedding.lookup_variables)
    return [v.numpy() for v in weights_for_inference(model)[num_tables:]]


class RowReader:
    """Reader of the rows of a model, in the format in which an export stores them.

    Args:
        model: The model.
        table_dtype: Storage format of the tables.

    Attributes:
        fault: A sentence about the first row that cannot be stored, or "".
    """

    def __init__(self, model: DLRM, table_dtype: str) -> None:
        self._model, self._dtype, self.fault = model, table_dtype, ""
        self._parts: dict[str, list[slice]] = {}
        blocks: dict[str, set[tuple[int, int]]] = {}
        for place in model.embedding.row_places():
            block = place.first_column, place.first_column + place.num_columns
            blocks.setdefault(place.table, set()).add(block)
        for table, own in blocks.items():
            self._parts[table] = [slice(*block) for block in sorted(own)]

    def read(self, table: str, ids: np.ndarray) -> np.ndarray:
        """Return rows of a table, `(n, stored columns)`."""
        rows = self._model.embedding.get_rows(table, ids)
        largest = float(np.abs(rows).max(initial=0.0))
        limit = quantization.largest_value(self._dtype)
        if not largest <= limit and not self.fault:
            self.fault = (
                f"Table '{table}' contains {largest:.4g}, and {self._dtype} tables "
                f"store values up to {limit:.5g}."
            )
        return self.convert(table, rows)

    def convert(self, table: str, rows: np.ndarray) -> np.ndarray:
        """Return rows, float32 `(n, D)`, as an export stores them."""
        parts = [
            quantization.to_stored(np.ascontiguousarray(rows[:, part]), self._dtype)
            for part in self._parts[table]
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def read_tables(self, changed: Mapping[str, np.ndarray]) -> dict[str, TableRows]:
        """Return the rows of all tables that a delta replaces.

        Args:
            changed: Ascending row numbers by table; tables without changes may be left
                out.
        """
        tables = {}
        for table in self._model.spec.tables:
            ids = np.asarray(changed.get(table.name, _NO_IDS), np.int64)
            tables[table.name] = TableRows(ids, self.read(table.name, ids), _NO_IDS)
        return tables


def moving_tables(model: DLRM) -> list[str]:
    """Return the trainable tables of which a step changes all rows.

    A step of `DenseAdam`, or of `SparseSGD` with `l2`, changes rows that are not in the
    batch: every row of these tables is part of every delta.
    """
    chosen = model.embedding_optimizer
    return [
        table.name
        for table in model.spec.tables
        if table.trainable
        and _moves_all(chosen[table.name] if isinstance(chosen, dict) else chosen)
    ]


def _moves_all(optimizer: SparseOptimizer) -> bool:
    return bool(optimizer.moves_other_rows or optimizer.shrinks_all_rows)


def find_not_finite(dense: list[np.ndarray]) -> str:
    """Return a sentence about the dense weights that are not finite, or ""."""
    for j, array in enumerate(dense):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            return f"Dense weight {j} is not finite (NaN or infinity)."
    return ""
