"""Blocks of rows with ids in bags, and the numbers of blocks that make up a range."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

BLOCK_ROWS = 1 << 14  # changing one of the two changes every generated row
BLOCK_IDS = 1 << 20


class Block(NamedTuple):
    """Consecutive rows of a generated log, n of them, of F features.

    Attributes:
        labels: uint8 `(n,)`, 0 or 1.
        dense: float32 `(n, num_dense)`.
        ids: int32 `(V,)`, the ids of all bags one after another: row by row and, in
            a row, feature by feature, from 0.
        lengths: int32 `(n, F)`, numbers of ids of the bags.
    """

    labels: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray

    def rows(self, start: int, stop: int) -> Block:
        """The block of some of its rows."""
        if start <= 0 and stop >= len(self.labels):
            return self
        rows = slice(start, stop)
        first = int(self.lengths[:start].sum())
        ids = slice(first, first + int(self.lengths[rows].sum()))
        return Block(
            self.labels[rows], self.dense[rows], self.ids[ids], self.lengths[rows]
        )


def rows_per_block(ids_per_row: float) -> int:
    """Rows of a block whose rows have `ids_per_row` ids: a power of two, less of them
    where bags are large, to bound the memory."""
    rows = BLOCK_ROWS
    while rows > 1 and rows * ids_per_row > BLOCK_IDS:
        rows //= 2
    return rows


def block_ranges(
    start: int, stop: int, block_rows: int
) -> Iterator[tuple[int, int, int]]:
    """Yield `(block, first row in it, end)` of the blocks with rows of a range."""
    for index in range(start // block_rows, -(-stop // block_rows)):
        base = index * block_rows
        yield index, max(start - base, 0), min(stop - base, block_rows)


def interleave(values: list[np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """Put the ids of features, each in the order of the rows, into one array.

    Args:
        values: For each feature, its ids of all rows.
        lengths: `(n, F)` numbers of ids of the bags.

    Returns:
        int32 `(V,)` in the order of `Block.ids`.
    """
    if (lengths == 1).all():
        return np.stack(values, axis=1).astype(np.int32).reshape(-1)
    ends = np.cumsum(lengths.reshape(-1), dtype=np.int64).reshape(lengths.shape)
    starts = ends - lengths
    result = np.empty(int(lengths.sum()), np.int32)
    for feature, ids in enumerate(values):
        counts = lengths[:, feature]
        own_starts = np.cumsum(counts, dtype=np.int64) - counts
        places = np.repeat(starts[:, feature] - own_starts, counts)
        result[places + np.arange(len(ids))] = ids
    return result
