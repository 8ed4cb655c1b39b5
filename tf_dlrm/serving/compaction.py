"""Compact copies of growing tables for serving: live rows only, sorted by id.

# V values, T growing tables
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import EmbeddingLayer
from tf_dlrm.embedding.row_places import RowPlace
from tf_dlrm.runtime import replicas
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError


class CompactTables:
    """Copies of an embedding layer's variables without the empty rows.

    An id's row is its rank among the ids of its table, found by bisection. Shared rows
    and plain tables stay. Lookups equal those of the layer.

    Args:
        embedding: An embedding layer with growing tables.

    Attributes:
        variables_of_tables: The copies, in the order of the `lookup_variables`.
        ids: The ids of all growing tables, sorted within each table, int64.

    Raises:
        ValueError: If the layer has no growing tables.
    """

    def __init__(self, embedding: EmbeddingLayer) -> None:
        live_rows = getattr(embedding, "live_rows", None)
        if not embedding.id_variables or live_rows is None:
            raise UserError(
                "Only growing tables can be compact: the model has no table with "
                "`growing`."
            )
        live: dict[str, Any] = {}
        for table in embedding.tables:
            if table.growing is not None:
                live[table.name] = live_rows(table.name)
        counts = [len(own.ids) for own in live.values()]
        self._ends = np.cumsum(counts, dtype=np.int64)
        self._firsts = self._ends - counts
        tables = [t for t in embedding.tables if t.growing is not None]
        slots = [t.growing.num_slots(t.vocabulary_size) for t in tables if t.growing]
        self._offsets = np.concatenate([[0], np.cumsum(slots)])[:-1].astype(np.int64)
        self._copies: dict[int, tuple[tf.Variable, np.ndarray, np.ndarray]] = {}
        self.variables_of_tables: list[tf.Variable] = []
        for number, variable in enumerate(embedding.lookup_variables):
            own = [p for p in embedding.row_places() if p.variable == number]
            make = functools.partial(self._copy, variable, own, live, embedding)
            copy, ends, shifts = replicas.on_device(variable.device, make)
            self._copies[id(variable)] = copy, ends, shifts
            self.variables_of_tables.append(copy)
        # One more, so that there is always one.
        ids = np.concatenate([*(own.ids for own in live.values()), [-1]])
        self.ids = tf.Variable(ids, trainable=False, name="sorted_ids", dtype=tf.int64)

    def _copy(
        self,
        variable: tf.Variable,
        pieces: Sequence[RowPlace],
        live: dict[str, Any],
        embedding: EmbeddingLayer,
    ) -> tuple[tf.Variable, np.ndarray, np.ndarray]:
        """Return a compact copy, and what to subtract from rows below each end."""
        null_row = int(variable.shape[0]) - 1
        parts: list[tuple[int, int, Callable[[], np.ndarray]]] = []
        for piece in sorted(pieces, key=lambda piece: piece.place):
            a, b = piece.first_row, piece.first_row + piece.num_rows
            table = next(t for t in embedding.tables if t.name == piece.table)
            if table.growing is None:
                parts.append(
                    (piece.place, b - a, _reader(variable, piece.place, b - a))
                )
                continue
            size = table.growing.num_slots(table.vocabulary_size)
            end_column = piece.first_column + piece.num_columns
            columns = slice(piece.first_column, end_column)
            rows = live[table.name].rows[a : min(b, size), columns]
            parts.append((piece.place, len(rows), functools.partial(_same, rows)))
            first = max(a, size)
            if first < b:
                place = piece.place + first - a
                parts.append((place, b - first, _reader(variable, place, b - first)))
        parts.append((null_row, 1, _reader(variable, null_row, 1)))
        num_rows = sum(count for _, count, _ in parts)
        zeros = tf.zeros((num_rows, variable.shape[1]))
        copy = tf.Variable(zeros, trainable=False, name=variable.name.split(":")[0])
        ends, shifts, done = [], [], 0
        for place, count, read in parts:
            rows = read()
            row_ops.write_range(copy, done, count, functools.partial(_part, rows))
            ends.append(place + count)
            shifts.append(place - done)
            done += count
        return copy, np.array(ends, np.int64), np.array(shifts, np.int64)

    def find(self, ids: tf.Tensor, tables: tf.Tensor) -> tf.Tensor:
        """Return the rank of each id, plus the first slot of its table; -1 for none.

        Args:
            ids: int64 `(V,)`.
            tables: Number of the growing table of each id, int32 `(V,)`.
        """
        first = tf.gather(tf.constant(self._firsts), tables)
        end = tf.gather(tf.constant(self._ends), tables)
        low, high = first, end
        most = int((self._ends - self._firsts).max())
        for _ in range(most.bit_length()):
            middle = (low + high) // 2
            is_below = row_ops.gather(self.ids, middle) < ids
            is_open = low < high
            low = tf.where(is_open & is_below, middle + 1, low)
            high = tf.where(is_open & ~is_below, middle, high)
        is_it = (low < end) & tf.equal(row_ops.gather(self.ids, low), ids)
        rank = low - first + tf.gather(tf.constant(self._offsets), tables)
        return tf.where(is_it & (ids >= 0), rank, tf.constant(-1, tf.int64))

    def copy_of(self, variable: tf.Variable) -> tf.Variable:
        """Return the copy of one of the layer's variables."""
        return self._copies[id(variable)][0]

    def places(self, variable: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
        """Return where rows of a variable of the layer are in its copy."""
        _, ends, shifts = self._copies[id(variable)]
        flat = tf.reshape(tf.cast(rows, tf.int64), (-1,))
        part = tf.searchsorted(tf.constant(ends), flat, side="right")
        places = flat - tf.gather(tf.constant(shifts), part)
        return tf.reshape(places, tf.shape(rows))

    def read(self, variable: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
        """Return rows of an original variable, float32 `(..., D)`.

        Args:
            variable: One of the layer's `lookup_variables`.
            rows: Row numbers, `(...,)`.
        """
        return row_ops.gather(self.copy_of(variable), self.places(variable, rows))


def _reader(variable: tf.Variable, first: int, count: int) -> Callable[[], np.ndarray]:
    return lambda: row_ops.read_range(variable, first, count)


def _same(rows: np.ndarray) -> np.ndarray:
    return rows


def _part(rows: np.ndarray, first: int, end: int) -> np.ndarray:
    return rows[first:end]
