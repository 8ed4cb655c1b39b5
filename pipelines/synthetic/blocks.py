"""Blocks of rows with ids in bags, and the blocks that cover a range of rows."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK_ROWS = 1 << 14  # changing one of these two changes every generated row
BLOCK_IDS = 1 << 20


class Block(NamedTuple):
    """Consecutive rows of a generated log: n rows, F sparse features.

    Attributes:
        labels: uint8 `(n,)`, 0 or 1.
        dense: float32 `(n, num_dense)`.
        ids: int32 `(V,)`, the concatenated ids of all bags, row by row and feature by
            feature in each row, from 0.
        lengths: int32 `(n, F)`, lengths of the bags.
    """

    labels: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray

    def rows(self, start: int, stop: int) -> "Block":
        """Return rows `start` .. `stop - 1` as a block."""
        if start <= 0 and stop >= len(self.labels):
            return self
        rows = slice(start, stop)
        first = int(self.lengths[:start].sum())
        ids = slice(first, first + int(self.lengths[rows].sum()))
        return Block(
            self.labels[rows], self.dense[rows], self.ids[ids], self.lengths[rows]
        )


def rows_per_block(ids_per_row: float) -> int:
    """Return the number of rows in a block, a power of two.

    It is smaller for rows with many ids, to limit memory.
    """
    rows = BLOCK_ROWS
    while rows > 1 and rows * ids_per_row > BLOCK_IDS:
        rows //= 2
    return rows


def block_ranges(
    start: int, stop: int, block_rows: int
) -> Iterator[tuple[int, int, int]]:
    """Yield `(block, first row in it, end)` of all blocks that cover a range."""
    for index in range(start // block_rows, -(-stop // block_rows)):
        base = index * block_rows
        yield index, max(start - base, 0), min(stop - base, block_rows)
