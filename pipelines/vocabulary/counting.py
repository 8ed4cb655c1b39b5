"""Exact counts of categorical values, in memory that does not grow with their number.

Counts are stored as sorted runs that are merged when they have doubled, so each value
moves a logarithmic number of times. Counts that exceed the memory are written to files
and merged range by range at the end. There are no sketches and no sampling.

# K distinct values
"""

import itertools
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.formats.fields import Values, key_of_text, texts_of_keys
from pipelines.runtime import disk

_MIN_MERGE = 1 << 15
_RANGE_VALUES = 1 << 21
_SAMPLE_STEP = 1 << 12
_TEXT_OVERHEAD = 48  # bytes of memory that a text takes in addition to its length


class Counted(NamedTuple):
    """Distinct values in increasing order of their bytes, and their counts.

    Attributes:
        keys: uint64 `(K,)`: values of up to eight bytes (see `Values`).
        key_counts: int64 `(K,)`, counts of the keys.
        texts: `pa.LargeBinaryArray` of the longer values.
        text_counts: int64, counts of the texts.
    """

    keys: np.ndarray
    key_counts: np.ndarray
    texts: pa.LargeBinaryArray
    text_counts: np.ndarray


_NO_KEYS = np.zeros(0, np.uint64), np.zeros(0, np.int64)
_NO_TEXTS = pa.array([], pa.large_binary()), np.zeros(0, np.int64)


class Counter:
    """The counts of one feature.

    Args:
        folder: Folder for counts that do not fit in memory.
        name: Prefix of the names of its files.
    """

    def __init__(self, folder, name: str):
        self._folder, self._name = pathlib.Path(folder), name
        self._keys, self._pending_keys, self._num_pending_keys = _NO_KEYS, [], 0
        self._texts, self._pending_texts, self._num_pending_texts = _NO_TEXTS, [], 0
        self._key_runs, self._text_runs = [], []

    def add(self, values: Values, counts: np.ndarray) -> None:
        """Add counts of distinct values; the empty value is not counted.

        Args:
            values: Distinct values; their `keys` and `texts` are used.
            counts: int64, counts of the keys and then of the texts.
        """
        num_keys = len(values.keys)
        seen = counts[:num_keys] != 0
        if num_keys and values.keys[0] == 0:
            seen[0] = False
        if seen.any():
            self._pending_keys.append((values.keys[seen], counts[:num_keys][seen]))
            self._num_pending_keys += len(self._pending_keys[-1][0])
            if self._num_pending_keys > max(_MIN_MERGE, len(self._keys[0])):
                self._merge_keys()
        seen = counts[num_keys:] != 0
        if seen.any():
            texts = values.texts.filter(pa.array(seen))
            self._pending_texts.append((texts, counts[num_keys:][seen]))
            self._num_pending_texts += len(texts)
            if self._num_pending_texts > max(_MIN_MERGE, len(self._texts[0])):
                self._merge_texts()

    @property
    def num_bytes(self) -> int:
        """Approximate memory of the counts, in bytes."""
        keys = len(self._keys[0]) + self._num_pending_keys
        texts = [self._texts[0], *(texts for texts, _ in self._pending_texts)]
        size = sum(t.nbytes + len(t) * _TEXT_OVERHEAD for t in texts)
        return keys * 16 + size

    def spill(self) -> None:
        """Move the counts to files."""
        self._merge_keys()
        if len(self._keys[0]):
            path = self._folder / f"{self._name}-keys-{len(self._key_runs):04d}"
            self._key_runs.append(_KeyRun.write(path, *self._keys))
            self._keys = _NO_KEYS
        self._merge_texts()
        if len(self._texts[0]):
            path = self._folder / f"{self._name}-texts-{len(self._text_runs):04d}"
            self._text_runs.append(_TextRun.write(path, *self._texts))
            self._texts = _NO_TEXTS

    def forget(self) -> None:
        """Drop all counts and remove their files."""
        self._keys, self._texts = _NO_KEYS, _NO_TEXTS
        self._pending_keys, self._num_pending_keys = [], 0
        self._pending_texts, self._num_pending_texts = [], 0
        for path in self._folder.glob(f"{self._name}-*"):
            path.unlink()
        self._key_runs, self._text_runs = [], []

    def ranges(self) -> Iterator[Counted]:
        """Yield all counts in increasing order of values, some values at a time."""
        self._merge_keys()
        self._merge_texts()
        keys = [*self._key_runs, _KeyRun(*self._keys)]
        texts = [*self._text_runs, _TextRun(*self._texts)]
        cuts = _choose_cuts(keys, texts)
        key_positions = [run.positions(cuts) for run in keys]
        text_positions = [run.positions(cuts) for run in texts]
        for i in range(len(cuts) + 1):
            parts = [run.read(p[i], p[i + 1]) for run, p in zip(keys, key_positions)]
            merged_keys = _sum_keys(parts)
            parts = [run.read(p[i], p[i + 1]) for run, p in zip(texts, text_positions)]
            yield Counted(*merged_keys, *_sum_texts(parts))

    def _merge_keys(self):
        if self._pending_keys:
            self._keys = _sum_keys([self._keys, *self._pending_keys])
            self._pending_keys, self._num_pending_keys = [], 0

    def _merge_texts(self):
        if self._pending_texts:
            self._texts = _sum_texts([self._texts, *self._pending_texts])
            self._pending_texts, self._num_pending_texts = [], 0


class Counters:
    """The counts of several features, with a common memory limit.

    Args:
        names: Names of the features.
        memory_bytes: Maximum memory for the counts, in bytes.
        folder: Folder for counts that do not fit; `None`: make one when needed.
    """

    def __init__(self, names, memory_bytes: int = 512 << 20, folder=None):
        self._temporary = None
        if folder is None:
            prefix = disk.temporary_name("tf-dlrm-counts")
            self._temporary = tempfile.TemporaryDirectory(prefix=prefix)
            folder = self._temporary.name
        self._memory_bytes = memory_bytes
        self.of = [Counter(folder, name) for name in names]

    def limit_memory(self) -> None:
        """Move the largest counts to files if all counts exceed the limit."""
        sizes = [counter.num_bytes for counter in self.of]
        if sum(sizes) <= self._memory_bytes:
            return
        left = sum(sizes)
        for number in np.argsort(sizes)[::-1].tolist():
            if left <= self._memory_bytes // 4:
                break
            self.of[number].spill()
            left -= sizes[number]


def _sum_keys(parts):
    """Merge parts of (keys, counts) into increasing distinct keys and their counts."""
    parts = [part for part in parts if len(part[0])]
    if not parts:
        return _NO_KEYS
    keys, counts = (np.concatenate(column) for column in zip(*parts, strict=True))
    if len(parts) > 1:
        order = np.argsort(keys)
        keys, counts = keys[order], counts[order]
        first = np.flatnonzero(np.diff(keys, prepend=~keys[:1]))
        keys, counts = keys[first], np.add.reduceat(counts, first)
    return keys, counts


def _sum_texts(parts):
    parts = [part for part in parts if len(part[0])]
    if not parts:
        return _NO_TEXTS
    texts = pa.chunked_array([texts for texts, _ in parts], pa.large_binary())
    counts = np.concatenate([counts for _, counts in parts])
    table = pa.table({"text": texts, "count": pa.array(counts)})
    table = table.group_by("text", use_threads=False).aggregate([("count", "sum")])
    table = table.sort_by("text")
    return table["text"].combine_chunks(), table["count_sum"].to_numpy()


class _KeyRun:
    """Increasing keys and their counts, in memory or in a file."""

    def __init__(self, keys, counts, path=None):
        self._keys, self._counts, self._path = keys, counts, path
        self.size = len(keys)

    @classmethod
    def write(cls, path, keys, counts):
        with disk.explaining("counts of values", path), open(path, "wb") as file:
            file.write(np.ascontiguousarray(keys).data)
            file.write(np.ascontiguousarray(counts).data)
        run = cls(keys[::_SAMPLE_STEP].copy(), None, path)
        run.size = len(keys)
        return run

    def samples(self):
        return texts_of_keys(
            self._keys if self._path else self._keys[::_SAMPLE_STEP]
        ).to_pylist()

    def positions(self, cuts):
        keys = self._keys
        if self._path is not None and self.size:
            keys = np.memmap(self._path, np.uint64, "r", shape=(self.size,))
        bounds = np.array([key_of_text(cut) for cut in cuts], np.uint64)
        return [0, *np.searchsorted(keys, bounds).tolist(), self.size]

    def read(self, first, last):
        if self._path is None:
            return self._keys[first:last], self._counts[first:last]
        count, start = last - first, first * 8
        keys = np.fromfile(self._path, np.uint64, count, offset=start)
        start += self.size * 8
        return keys, np.fromfile(self._path, np.int64, count, offset=start)


class _TextRun:
    """Increasing texts and their counts, in memory or in a file."""

    def __init__(self, texts, counts, path=None):
        self._texts, self._counts, self._path = texts, counts, path
        self.size = len(texts)

    @classmethod
    def write(cls, path, texts, counts):
        table = pa.table({"text": texts, "count": pa.array(counts)})
        with disk.explaining("counts of values", path):
            with pa.OSFile(os.fspath(path), "wb") as file:
                with pa.ipc.new_file(file, table.schema) as writer:
                    writer.write_table(table, max_chunksize=_SAMPLE_STEP)
        run = cls(texts.take(pa.array(np.arange(0, len(texts), _SAMPLE_STEP))), None)
        run._path, run.size = path, len(texts)
        return run

    def samples(self):
        if self._path is not None:
            return self._texts.to_pylist()
        return self._texts[::_SAMPLE_STEP].to_pylist()

    def positions(self, cuts):
        texts = self._texts
        if self._path is None:
            return [0, *(_bisect(texts, cut) for cut in cuts), self.size]
        found = []
        for cut in cuts:
            # The block before the first sample that is at or above the cut.
            block = max(_bisect(texts, cut) - 1, 0)
            inside = self._block(block)["text"].combine_chunks()
            found.append(block * _SAMPLE_STEP + _bisect(inside, cut))
        return [0, *found, self.size]

    def read(self, first, last):
        if self._path is None:
            return self._texts[first:last], self._counts[first:last]
        if first >= last:
            return _NO_TEXTS
        begin, end = first // _SAMPLE_STEP, -(-last // _SAMPLE_STEP)
        table = pa.concat_tables([self._block(i) for i in range(begin, end)])
        table = table.slice(first - begin * _SAMPLE_STEP, last - first)
        return table["text"].combine_chunks(), table["count"].to_numpy()

    def _block(self, number):
        with pa.OSFile(os.fspath(self._path), "rb") as file:
            batch = pa.ipc.open_file(file).get_batch(number)
        return pa.Table.from_batches([batch])


def _bisect(texts, text):
    """Return the number of increasing texts that are below `text`."""
    low, high = 0, len(texts)
    while low < high:
        middle = (low + high) // 2
        if texts[middle].as_py() < text:
            low = middle + 1
        else:
            high = middle
    return low


def _choose_cuts(key_runs, text_runs):
    """Return values that divide all runs into ranges of bounded size.

    Every run contributes each 4,096th of its values, so that fewer than 4,096 values of
    each run lie between two neighbors among them.
    """
    total = sum(run.size for run in itertools.chain(key_runs, text_runs))
    if total <= _RANGE_VALUES:
        return []
    samples = sorted(
        itertools.chain.from_iterable(
            run.samples() for run in itertools.chain(key_runs, text_runs)
        )
    )
    step = max(1, _RANGE_VALUES // _SAMPLE_STEP)
    return sorted(set(samples[step::step]))
