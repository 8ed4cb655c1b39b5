"""Read rows of records by number, from files that stay on disk.

# n rows, F sparse features, V ids
"""

import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipelines.records.batch import Batch
from pipelines.runtime import UserError

_STRIDE = 1024
_MAX_OPEN_PARTS = 64


class Part(NamedTuple):
    """The files of consecutive rows.

    Attributes:
        num_rows: Number of rows.
        labels: Path of the labels.
        dense: Path of the dense features.
        sparse: Path of the ids.
        lengths: Path of the lengths of bags, or `None`.
        id_weights: Path of the weights of the ids in bags, or `None`.
        weights: Path of the sample weights, or `None`.
    """

    num_rows: int
    labels: str
    dense: str
    sparse: str
    lengths: str | None
    id_weights: str | None = None
    weights: str | None = None


def spans(ends: np.ndarray, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Yield the pieces that rows are in: its number, and the first and last + 1 in it.

    Args:
        ends: Number of rows before each piece, and of all.
        first: The first row.
        last: The last row + 1.
    """
    while first < last:
        number = int(np.searchsorted(ends, first, side="right")) - 1
        start, end = int(ends[number]), min(last, int(ends[number + 1]))
        yield number, first - start, end - start
        first = end


class Store:
    """The rows of several parts, numbered consecutively.

    Args:
        parts: The parts, in the order of their rows.
        modulo: Sizes of the tables to take one-hot ids modulo; `None`: ids are already
            in their tables.
    """

    def __init__(self, parts: Sequence[Part], modulo: Sequence[int] | None = None):
        self._parts = list(parts)
        self._modulo = None if modulo is None else np.asarray(modulo, np.int32)
        self._ends = np.cumsum([0, *(part.num_rows for part in parts)], dtype=np.int64)
        self._open, self._lock = {}, threading.Lock()

    @property
    def files(self) -> list[str]:
        """All files, part by part."""
        return [path for part in self._parts for path in part[1:] if path is not None]

    @property
    def parts(self) -> set[str]:
        """Names of the parts for which there are files, such as `"weights"`."""
        return {n for part in self._parts for n in part._fields[1:] if getattr(part, n)}

    @property
    def id_dtype(self) -> np.dtype:
        """Type of the ids: int32, or int64 if any part has int64."""
        types = [read_header(part.sparse)[2] for part in self._parts[:1]]
        return np.dtype(np.int64 if np.dtype(np.int64) in types else np.int32)

    @property
    def num_rows(self) -> int:
        """Total number of rows."""
        return int(self._ends[-1])

    def read(self, first: int, last: int) -> list[Batch]:
        """Read rows `first` .. `last - 1` in pieces, one for each of their parts."""
        pieces = []
        for number, *rows in spans(self._ends, first, last):
            piece = self._part(number).rows(*rows)
            if self._modulo is not None:
                piece = piece._replace(ids=piece.ids % self._modulo)
            pieces.append(piece)
        return pieces

    def labels(self, first: int, last: int) -> np.ndarray:
        """Read only the labels of rows `first` .. `last - 1`."""
        pieces = [np.zeros(0, np.uint8)]
        for number, *rows in spans(self._ends, first, last):
            pieces.append(self._part(number).labels(*rows))
        return np.concatenate(pieces)

    def _part(self, number):
        with self._lock:
            if number not in self._open:
                if len(self._open) >= _MAX_OPEN_PARTS:
                    self._open.pop(next(iter(self._open)))
                self._open[number] = _OpenPart(self._parts[number])
            return self._open[number]


class _OpenPart:
    def __init__(self, part):
        self._labels_path = part.labels
        self._files = {
            name: _NpyReader(getattr(part, name))
            for name in Part._fields[1:]
            if getattr(part, name) is not None
        }
        for name, file in self._files.items():
            is_of_ids = name in ("sparse", "id_weights") and part.lengths
            if not is_of_ids and len(file) != part.num_rows:
                raise UserError(
                    f"{getattr(part, name)} has {len(file):,} rows instead of "
                    f"{part.num_rows:,}: it was truncated or changed."
                )
        self._starts = None
        if part.lengths is not None:
            # First id of every 1,024th row; rows in between are summed when needed.
            sums = [
                self._files["lengths"][row : row + _STRIDE].sum(dtype=np.int64)
                for row in range(0, part.num_rows, _STRIDE)
            ]
            self._starts = np.cumsum([0, *sums])

    def labels(self, first, last):
        labels = self._files["labels"][first:last].reshape(-1)
        bad = ~((labels >= 0) & (labels <= 1))  # NaN too
        if bad.any():
            row = int(np.argmax(bad))
            raise UserError(
                f"{self._labels_path}: labels must be in [0, 1], 1 for a click. "
                f"Received: {labels[row]} in row {first + row:,} (counted from 0). "
                "Correct the file."
            )
        return labels

    def rows(self, first, last):
        rows = slice(first, last)
        ids = rows
        if self._starts is not None:
            ids = slice(self._first_id(first), self._first_id(last))
        return Batch(
            self.labels(first, last),
            self._files["dense"][rows],
            self._files["sparse"][ids],
            self._rows_of("lengths", rows),
            self._rows_of("id_weights", ids),
            self._rows_of("weights", rows),
        )

    def _rows_of(self, part, rows):
        return self._files[part][rows] if part in self._files else None

    def _first_id(self, row):
        stride = row // _STRIDE
        between = self._files["lengths"][stride * _STRIDE : row]
        return int(self._starts[stride]) + int(between.sum(dtype=np.int64))


class _NpyReader:
    """The rows of a NumPy file.

    They are read, not mapped: each page of a mapped file counts as memory of the
    process and costs a page fault.
    """

    def __init__(self, path):
        self._path = path
        header = read_header(path)
        self._offset, self.shape, self._dtype = header
        self._row_bytes = int(np.prod(self.shape[1:])) * self._dtype.itemsize
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)

    def __len__(self):
        return self.shape[0]

    def __getitem__(self, rows):
        first, last, _ = rows.indices(self.shape[0])
        array = np.empty((max(last - first, 0), *self.shape[1:]), self._dtype)
        view = memoryview(array.reshape(-1).view(np.uint8))
        offset = self._offset + first * self._row_bytes
        while len(view):
            num_bytes = os.preadv(self._file, [view], offset)
            if not num_bytes:
                raise UserError(f"{self._path} is truncated.")
            view, offset = view[num_bytes:], offset + num_bytes
        return array


def read_header(path) -> tuple[int, tuple[int, ...], np.dtype]:
    """Return offset, shape and type of the numbers in a NumPy file.

    Raises:
        ValueError: If it is not a NumPy file of rows of numbers.
    """
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path} is not a NumPy file of numbers ({error}).") from error
    if not array.ndim or not array.flags.c_contiguous:
        raise UserError(f"{path} must contain an array of rows.")
    return array.offset, array.shape, array.dtype
