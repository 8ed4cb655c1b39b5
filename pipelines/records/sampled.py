"""The rows of a store after negative sampling, renumbered.

# n rows
"""

import itertools

import numpy as np

from pipelines.records.batch import Batch, take
from pipelines.records.store import Store, spans
from pipelines.sampling import NegativeSampling

_BLOCK_ROWS = 4096


class SampledStore:
    """The rows of a `Store` that a sampling keeps, as a store.

    It reads all labels once to count the kept rows in each block of 4,096 rows, so that
    it can find a row by number without a list of rows.

    Args:
        store: All rows.
        sampling: The sampling, which also counts the rows that are left out.
    """

    def __init__(self, store: Store, sampling: NegativeSampling):
        self._store, self._sampling = store, sampling
        firsts = range(0, store.num_rows, _BLOCK_ROWS)
        counts = []
        for first in firsts:
            last = min(first + _BLOCK_ROWS, store.num_rows)
            counts.append(int(self._mask(first, store.labels(first, last)).sum()))
        self._ends = np.cumsum([0, *counts])
        sampling.record(0, 0, store.num_rows - self.num_rows)

    @property
    def files(self) -> list[str]:
        """All files, including those of rows that are left out."""
        return self._store.files

    @property
    def parts(self) -> set[str]:
        """Names of the parts of its files."""
        return self._store.parts

    @property
    def id_dtype(self) -> np.dtype:
        """NumPy dtype of the ids."""
        return self._store.id_dtype

    @property
    def num_rows(self) -> int:
        """Number of rows that are kept."""
        return int(self._ends[-1])

    def read(self, first: int, last: int) -> list[Batch]:
        """Read the kept rows `first` .. `last - 1`, in pieces like `Store.read`."""
        found = (self._read(*span) for span in spans(self._ends, first, last))
        return list(itertools.chain.from_iterable(found))

    def _read(self, block, first, last):
        """Return the rows `first` .. `last - 1` among the kept rows of a block."""
        number = block * _BLOCK_ROWS
        end, place, pieces = number + _BLOCK_ROWS, 0, []
        for piece in self._store.read(number, min(end, self._store.num_rows)):
            kept = np.flatnonzero(self._mask(number, piece.labels))
            wanted = kept[max(first - place, 0) : max(last - place, 0)]
            if len(wanted):
                pieces.append(take(piece, wanted))
            place += len(kept)
            number += len(piece.labels)
        return pieces

    def _mask(self, first, labels):
        return self._sampling.keep(0, first + np.arange(len(labels)), labels)
