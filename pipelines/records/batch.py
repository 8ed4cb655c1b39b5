"""`Batch`: rows as NumPy arrays, and functions to join, cut and pick them.

# n rows, F sparse features, V ids
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Batch(NamedTuple):
    """Some rows.

    Attributes:
        labels: Labels `(n,)`.
        dense: float32 `(n, num_dense)`.
        ids: int32 `(n, F)`; with `lengths`, the concatenated ids `(V,)` of all bags.
        lengths: Lengths of bags, uint16 `(n, F)`, or `None` if each has one id.
        id_weights: float32 `(V,)`, weights of the ids in their bags; `None`: 1 each.
            Requires `lengths`.
        weights: float32 `(n,)`, sample weights; `None`: 1 each.
    """

    labels: np.ndarray
    dense: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray | None
    id_weights: np.ndarray | None = None
    weights: np.ndarray | None = None


def concatenate(pieces: Sequence[Batch]) -> Batch:
    """Join batches to one batch, in memory."""
    if any(piece.lengths is not None for piece in pieces):
        pieces = [_with_lengths(piece) for piece in pieces]
    if any(piece.id_weights is not None for piece in pieces):
        pieces = [
            piece._replace(id_weights=np.ones(len(piece.ids), np.float32))
            if piece.id_weights is None
            else piece
            for piece in pieces
        ]
    columns = zip(*pieces, strict=True)
    return Batch(*(None if c[0] is None else np.concatenate(c) for c in columns))


def _with_lengths(batch):
    if batch.lengths is not None:
        return batch
    lengths = (batch.ids >= 0).astype(np.uint16)
    return batch._replace(ids=batch.ids[lengths > 0], lengths=lengths)


def cut(batch: Batch, id_ends: np.ndarray | None, first: int, last: int) -> Batch:
    """Return rows `first` .. `last - 1` of a batch, as views.

    Args:
        batch: The batch.
        id_ends: Number of ids before each row, and the total; `None` without lengths.
        first: First row.
        last: Last row + 1; may exceed the number of rows.
    """
    rows = ids = slice(first, last)
    if batch.lengths is not None:
        last = min(last, len(batch.labels))
        ids = slice(id_ends[first], id_ends[last])
    return Batch(
        batch.labels[rows],
        batch.dense[rows],
        batch.ids[ids],
        _pick(batch.lengths, rows),
        _pick(batch.id_weights, ids),
        _pick(batch.weights, rows),
    )


def take(batch: Batch, rows: np.ndarray) -> Batch:
    """Pick rows in any order.

    Args:
        batch: The batch.
        rows: Positions `(m,)` of rows.
    """
    labels, dense = batch.labels[rows], batch.dense.take(rows, axis=0)
    weights = _pick(batch.weights, rows)
    if batch.lengths is None:
        ids = batch.ids.take(rows, axis=0)
        return Batch(labels, dense, ids, None, None, weights)
    counts = batch.lengths.sum(1, dtype=np.int64)
    ends = np.cumsum(counts)
    starts, picked = (ends - counts)[rows], counts[rows]
    # The position of each id: first id of its row plus its position in the row.
    places = np.arange(int(picked.sum()))
    places += np.repeat(starts - np.cumsum(picked) + picked, picked)
    lengths = batch.lengths.take(rows, axis=0)
    id_weights = _pick(batch.id_weights, places)
    return Batch(labels, dense, batch.ids[places], lengths, id_weights, weights)


def _pick(array, places):
    return None if array is None else array[places]
