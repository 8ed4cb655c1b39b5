"""The order of rows in an epoch, shuffled or not, as a function of the position.

A shuffled epoch is a permutation of chunks of consecutive rows. Each window, which fits
in memory, joins chunks from all over the data and permutes their rows. The row at a
position is thus a function of seed, epoch and position, and a checkpoint needs only the
position.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipelines.records.batch import Batch, concatenate, cut, id_ends, take
from pipelines.records.store import Store

WINDOW_ROWS = 1 << 17
CHUNK_ROWS = 1 << 12
_WINDOWS_KEPT = 3


class Order:
    """Read the rows of a store by their position in an epoch.

    Args:
        store: The rows.
        shuffle: Whether to shuffle.
        seed: Seed of the order, from 0.
        window_rows: Number of rows that are permuted together.
        worker: Number of the part of each epoch that this worker reads.
        num_workers: Number of parts, all with the same number of rows. Up to
            `num_workers - 1` rows are left out, different ones in each shuffled epoch.
    """

    def __init__(
        self,
        store: Store,
        shuffle: bool,
        seed: int,
        window_rows: int = WINDOW_ROWS,
        worker: int = 0,
        num_workers: int = 1,
    ):
        self.num_rows = store.num_rows // num_workers
        self._first = worker * self.num_rows
        self._store, self._shuffle, self._seed = store, shuffle, seed
        # At least 32 chunks per window, so that a window is a sample of all rows.
        self._chunk_rows = max(1, min(CHUNK_ROWS, window_rows // 32))
        self._chunks_per_window = max(1, window_rows // self._chunk_rows)
        self._lock, self._windows = threading.Lock(), {}
        self._loader = None

    def read(self, epoch: int, first: int, last: int) -> Batch:
        """Return the rows at positions `first` .. `last - 1` of this worker's epoch."""
        first, last = first + self._first, last + self._first
        if not self._shuffle:
            return concatenate(self._store.read(first, last))
        size = self._chunks_per_window * self._chunk_rows
        pieces = []
        while first < last:
            window, begin = divmod(first, size)
            end = min(begin + last - first, size)
            batch, ends = self._window(epoch, window).result()
            pieces.append(cut(batch, ends, begin, end))
            first += end - begin
        return pieces[0] if len(pieces) == 1 else concatenate(pieces)

    def _window(self, epoch, window):
        """Return a window as a future, and start to load the next one."""
        with self._lock:
            if self._loader is None:
                self._loader = ThreadPoolExecutor(1, "records-window")
            future = self._submit(epoch, window)
            if (window + 1) * self._chunks_per_window * self._chunk_rows < (
                self._first + self.num_rows
            ):
                self._submit(epoch, window + 1)
            return future

    def _submit(self, epoch, window):
        key = epoch, window
        if key not in self._windows:
            while len(self._windows) >= _WINDOWS_KEPT:
                self._windows.pop(next(iter(self._windows)))
            self._windows[key] = self._loader.submit(self._load, epoch, window)
        return self._windows[key]

    def _load(self, epoch, window):
        pieces = []
        for first, last in self._chunks(epoch, window):
            pieces += self._store.read(first, last)
        rows = self._generator(epoch, 1 + window)
        batch = concatenate(pieces)
        batch = take(batch, rows.permutation(len(batch.labels)))
        return batch, id_ends(batch)

    def _chunks(self, epoch, window):
        """Return the rows `(first, last + 1)` of each chunk of a window.

        Chunks start at a different row in each epoch. The last chunk may be smaller; it
        stays last, which makes positions easy to compute.
        """
        num_rows, size = self._store.num_rows, self._chunk_rows
        rng = self._generator(epoch, 0)
        shift = int(rng.integers(num_rows))
        num_whole = num_rows // size
        order = rng.permutation(num_whole)
        numbers = order[
            window * self._chunks_per_window : (window + 1) * self._chunks_per_window
        ].tolist()
        if len(numbers) < self._chunks_per_window and num_rows % size:
            numbers.append(num_whole)
        for number in numbers:
            first = number * size + shift
            last = min((number + 1) * size, num_rows) + shift
            if first < num_rows < last:
                yield first, num_rows
                first = num_rows
            wrapped = num_rows if first >= num_rows else 0
            yield first - wrapped, last - wrapped

    def _generator(self, epoch, stream):
        return np.random.default_rng([self._seed, epoch, stream])
