"""`ChangedRows`: the rows that training has read since they were last taken."""

from collections.abc import Mapping

import keras
import numpy as np

from tf_dlrm.training.probes import RowMarks

_BLOCK = 1 << 12  # rows whose marks are looked at together


class ChangedRows(RowMarks):
    """Marks of the rows that steps may have changed, one byte per row in host memory.

    A step costs the number of its ids. A second array marks blocks of rows, so that
    `take` costs the blocks that were read, not the tables.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__(model)
        self._epoch = 1
        num_rows = int(self._ends[-1]) + 1  # one more row, for missing ids
        self._marks = np.zeros(num_rows, np.uint8)
        self._blocks = np.zeros(-(-num_rows // _BLOCK), np.uint8)
        sizes = [table.vocabulary_size for table in self._tables]
        first = self._ends - np.array(sizes, np.int64)
        self._ranges = {
            table.name: (int(a), int(b))
            for table, a, b in zip(self._tables, first, self._ends, strict=True)
        }

    def release(self) -> None:
        """Keep the marks: what this `fit` has changed is still to be published."""

    def take(self) -> dict[str, np.ndarray]:
        """Return the marked rows by table, int64 `(n,)`, ascending, and unmark them."""
        rows = self.peek()
        self.clear()
        return rows

    def peek(self) -> dict[str, np.ndarray]:
        """Return the marked rows by table, int64 `(n,)`, ascending."""
        parts = [
            block * _BLOCK + np.flatnonzero(self._marks[block * _BLOCK :][:_BLOCK])
            for block in np.flatnonzero(self._blocks)
        ]
        rows = np.concatenate([np.zeros(0, np.int64), *parts])
        bounds = {
            name: np.searchsorted(rows, own) for name, own in self._ranges.items()
        }
        return {
            name: rows[a:b] - self._ranges[name][0] for name, (a, b) in bounds.items()
        }

    def clear(self) -> None:
        """Unmark all rows."""
        for block in np.flatnonzero(self._blocks):
            self._marks[block * _BLOCK :][:_BLOCK] = 0
        self._blocks[:] = 0

    def mark(self, rows: Mapping[str, np.ndarray]) -> None:
        """Mark rows, by table."""
        for name, own in rows.items():
            self._note(self._ranges[name][0] + np.asarray(own, np.int64))

    def _note(self, rows: np.ndarray) -> None:
        self._marks[rows] = 1
        self._blocks[rows // _BLOCK] = 1
