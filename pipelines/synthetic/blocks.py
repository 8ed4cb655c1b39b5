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


def interleave(values: list[np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """Combine the ids of features, each in the order of the rows, into one array.

    Args:
        values: The ids of each feature in all rows.
        lengths: Lengths `(n, F)` of the bags.

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
