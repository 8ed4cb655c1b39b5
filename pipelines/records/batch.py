"""`Batch`: rows as NumPy arrays, and functions to make, join, cut and pick them.

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


def id_ends(batch: Batch) -> np.ndarray | None:
    """Return the number of ids before each row, and the total, for `cut`."""
    if batch.lengths is None:
        return None
    return row_splits(batch.lengths.sum(1, dtype=np.int64))


def row_splits(lengths: np.ndarray) -> np.ndarray:
    """Return the ends of bags in their concatenated ids, from 0: int64 `(size + 1,)`.

    Args:
        lengths: Lengths of the bags, of any shape.
    """
    splits = np.zeros(lengths.size + 1, np.int64)
    np.cumsum(lengths.reshape(-1), out=splits[1:])
    return splits


def places_of(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the places `starts[i]`, `starts[i] + 1` ... of `counts[i]` ids each."""
    places = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    places += np.arange(len(places))
    return places


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
    ends = id_ends(batch)
    places = places_of(ends[rows], (ends[1:] - ends[:-1])[rows])
    lengths = batch.lengths.take(rows, axis=0)
    id_weights = _pick(batch.id_weights, places)
    return Batch(labels, dense, batch.ids[places], lengths, id_weights, weights)


def interleave(
    columns: Sequence[np.ndarray],
    lengths: Sequence[np.ndarray | None],
    weights: Sequence[np.ndarray | None] | None = None,
    dtype: type = np.int32,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Reorder ids by feature to ids by row.

    Args:
        columns: F arrays of ids.
        lengths: F arrays `(n,)` of how many each row has; `None` for one each.
        weights: F float32 arrays of the weights of ids, or `None` for 1 each; `None`
            where no feature has any.
        dtype: Type of the ids to return.

    Returns:
        ids `(n, F)`, `None` and `None`; or, if a feature has lengths or weights, ids
        `(V,)`, int32 lengths `(n, F)` and float32 `(V,)` weights or `None`.
    """
    if weights is None and all(counts is None for counts in lengths):
        ids = np.empty((len(columns[0]), len(columns)), dtype)
        for feature, column in enumerate(columns):
            ids[:, feature] = column
        return ids, None, None
    num_rows = max(
        len(column) if counts is None else len(counts)
        for column, counts in zip(columns, lengths, strict=True)
    )
    lengths_nF = np.ones((num_rows, len(columns)), np.int32)
    for feature, counts in enumerate(lengths):
        if counts is not None:
            lengths_nF[:, feature] = counts
    splits = row_splits(lengths_nF)
    starts_nF, ids = splits[:-1].reshape(lengths_nF.shape), np.empty(splits[-1], dtype)
    all_weights = None if weights is None else np.ones(len(ids), np.float32)
    for feature, column in enumerate(columns):
        places = places_of(starts_nF[:, feature], lengths_nF[:, feature])
        ids[places] = column
        if weights is not None and weights[feature] is not None:
            all_weights[places] = weights[feature]
    return ids, lengths_nF, all_weights


def _pick(array, places):
    return None if array is None else array[places]
