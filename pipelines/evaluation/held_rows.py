"""`HeldRows`: rows in memory, whose cells can move between rows column by column.

# n rows, F sparse features, V ids
"""

import contextlib
from collections.abc import Sequence

import numpy as np

from pipelines.evaluation.evaluation import open_source, refuse_empty
from pipelines.files import Paths
from pipelines.progress import bar
from pipelines.quarantine import Quarantine
from pipelines.records.batch import Batch, concatenate, places_of, row_splits, take


class HeldRows:
    """Rows in memory, as features: transformed numbers and ids, no texts.

    Args:
        batch: The rows.
        expand: Function of the features of a batch that makes its bags.
        are_all: Whether these are all rows of the input.

    Attributes:
        labels: float64 `(n,)`.
        weights: Sample weights, float64 `(n,)`; `None`: 1 each.
    """

    def __init__(self, batch: Batch, expand, are_all: bool = True):
        self._batch, self.expand, self.are_all = batch, expand, are_all
        self.labels = batch.labels.astype(np.float64)
        weights = batch.weights
        self.weights = None if weights is None else weights.astype(np.float64)
        self._starts = None
        if batch.lengths is not None:
            splits = row_splits(batch.lengths)
            self._starts = splits[:-1].reshape(batch.lengths.shape)

    def __len__(self) -> int:
        return len(self._batch.labels)

    @property
    def num_bytes(self) -> int:
        """Size of the rows in memory, in bytes."""
        arrays = [*self._batch, self._starts, self.labels, self.weights]
        return sum(array.nbytes for array in arrays if array is not None)

    def read(
        self,
        first: int,
        last: int,
        order: np.ndarray | None = None,
        columns: Sequence[int] = (),
    ) -> Batch:
        """Return some rows, of which some columns come from other rows.

        Args:
            first: First row.
            last: Last row + 1; may exceed the number of rows.
            order: Row that each row takes its cells of `columns` from, int `(n,)`.
            columns: Positions of columns: dense features, then sparse ones. The cells
                of a bag move together, with their weights.
        """
        batch = self._batch
        rows = np.arange(first, min(last, len(self)))
        num_dense = batch.dense.shape[1]
        dense_columns = [c for c in columns if c < num_dense]
        sparse_columns = [c - num_dense for c in columns if c >= num_dense]
        others = None if order is None else order[rows]

        def mix(array, own):
            mixed = array[rows]
            if own:
                mixed[:, own] = array[np.ix_(others, own)]
            return mixed

        dense = mix(batch.dense, dense_columns)
        weights = None if batch.weights is None else batch.weights[rows]
        labels = batch.labels[rows]
        if batch.lengths is None:
            ids = mix(batch.ids, sparse_columns)
            return Batch(labels, dense, ids, None, None, weights)
        starts = mix(self._starts, sparse_columns).reshape(-1)
        lengths = mix(batch.lengths, sparse_columns)
        places = places_of(starts, lengths.reshape(-1).astype(np.int64))
        id_weights = batch.id_weights
        id_weights = None if id_weights is None else id_weights[places]
        ids = batch.ids[places]
        return Batch(labels, dense, ids, lengths, id_weights, weights)


def read_rows(
    parser, paths: Paths, num_rows: int, quarantine: Quarantine, split: str = "test"
) -> HeldRows:
    """Read the first rows of labelled files, or of a split of records, into memory.

    Args:
        parser: The parser with the vocabulary of the model.
        paths: Labelled files, or one folder of records.
        num_rows: Largest number of rows.
        quarantine: Collects bad rows of files.
        split: Name of the split, for records.

    Raises:
        ValueError: If there are no valid rows, or the records do not fit the model.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    source = open_source(parser, paths, split, quarantine)
    total = source.num_rows and min(source.num_rows, num_rows)
    pieces, count, are_all = [], 0, True
    with bar("Reading", total) as update, contextlib.closing(iter(source)) as blocks:
        for _, batch in blocks:
            room = num_rows - count
            are_all = len(batch.labels) <= room
            pieces.append(batch if are_all else take(batch, np.arange(room)))
            count += len(pieces[-1].labels)
            update(count)
            if not are_all:
                break
    quarantine.check()
    if not count:
        refuse_empty(parser, paths, split)
    return HeldRows(concatenate(pieces), source.expand, are_all)
