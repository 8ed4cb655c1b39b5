"""Exact counts of categorical values, in memory that does not grow with their number.

Counts are stored as sorted runs that are merged when they have doubled, so each value
moves a logarithmic number of times. Counts that exceed the memory are written to files
and merged range by range at the end. There are no sketches and no sampling.

# K distinct values
"""

import glob
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

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


_NO_COUNTS = np.zeros(0, np.int64)


class Counter:
    """The counts of one feature.

    Args:
        folder: Folder for counts that do not fit in memory.
        name: Prefix of the names of its files.
    """

    def __init__(self, folder, name: str):
        stem = os.path.join(folder, name)
        self._keys = _Sorted(f"{stem}-keys", _KEYS)
        self._texts = _Sorted(f"{stem}-texts", _TEXTS)

    def add(self, values: Values, counts: np.ndarray) -> None:
        """Add counts of distinct values; the empty value is not counted.

        Args:
            values: Distinct values; their `keys` and `texts` are used.
            counts: int64, counts of the keys and then of the texts.
        """
        num_keys = len(values.keys)
        seen = counts != 0
        if num_keys and values.keys[0] == 0:
            seen[0] = False
        self._keys.add(values.keys[seen[:num_keys]], counts[:num_keys][seen[:num_keys]])
        if seen[num_keys:].any():
            texts = values.texts.filter(pa.array(seen[num_keys:]))
            self._texts.add(texts, counts[num_keys:][seen[num_keys:]])

    @property
    def num_bytes(self) -> int:
        """Approximate memory of the counts, in bytes."""
        return self._keys.num_bytes + self._texts.num_bytes

    def spill(self) -> None:
        """Move the counts to files."""
        self._keys.spill()
        self._texts.spill()

    def forget(self) -> None:
        """Drop all counts and remove their files."""
        self._keys.forget()
        self._texts.forget()

    def ranges(self) -> Iterator[Counted]:
        """Yield all counts in increasing order of values, some values at a time."""
        halves = [self._keys.all_runs(), self._texts.all_runs()]
        cuts = _choose_cuts([run for runs in halves for run in runs])
        places = [[run.positions(cuts) for run in runs] for runs in halves]
        for i in range(len(cuts) + 1):
            merged = [
                kind.merge([run.read(p[i], p[i + 1]) for run, p in zip(runs, own)])
                for kind, runs, own in zip((_KEYS, _TEXTS), halves, places)
            ]
            yield Counted(*merged[0], *merged[1])


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
        return np.zeros(0, np.uint64), _NO_COUNTS
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
        return pa.array([], pa.large_binary()), _NO_COUNTS
    texts = pa.chunked_array([texts for texts, _ in parts], pa.large_binary())
    counts = np.concatenate([counts for _, counts in parts])
    table = pa.table({"text": texts, "count": pa.array(counts)})
    table = table.group_by("text", use_threads=False).aggregate([("count", "sum")])
    table = table.sort_by("text")
    return table["text"].combine_chunks(), table["count_sum"].to_numpy()


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


class _Kind(NamedTuple):
    """A kind of values: keys as a NumPy array, or texts as an Arrow array.

    Attributes:
        nothing: No values.
        overhead: Bytes of memory that a value takes in addition to its own.
        merge: Function that merges parts of values and counts.
        bisect: Function from increasing values and a text to the number below it.
        to_texts: Function from values to an Arrow array of texts.
        from_arrow: Function from an Arrow array to values.
    """

    nothing: Any
    overhead: int
    merge: Callable[[list], tuple]
    bisect: Callable[[Any, bytes], int]
    to_texts: Callable[[Any], pa.LargeBinaryArray]
    from_arrow: Callable[[pa.Array], Any]


_KEYS = _Kind(
    np.zeros(0, np.uint64),
    8,  # of its count
    _sum_keys,
    lambda keys, text: int(np.searchsorted(keys, np.uint64(key_of_text(text)))),
    texts_of_keys,
    lambda array: array.to_numpy(),
)
_TEXTS = _Kind(
    pa.array([], pa.large_binary()),
    _TEXT_OVERHEAD,
    _sum_texts,
    _bisect,
    lambda texts: texts,
    lambda array: array,
)


class _Sorted:
    """Distinct increasing values and their counts, and runs of them in files."""

    def __init__(self, stem: str, kind: _Kind):
        self._stem, self._kind, self._runs = stem, kind, []
        self._keep(kind.nothing, _NO_COUNTS)

    def _keep(self, values, counts):
        self._values, self._counts = values, counts
        self._pending, self._num_pending = [], 0

    def add(self, values, counts) -> None:
        if len(values):
            self._pending.append((values, counts))
            self._num_pending += len(values)
        if self._num_pending > max(_MIN_MERGE, len(self._values)):
            self._merge()

    def _merge(self):
        if self._pending:
            parts = [(self._values, self._counts), *self._pending]
            self._keep(*self._kind.merge(parts))

    @property
    def num_bytes(self) -> int:
        parts = [self._values, *(values for values, _ in self._pending)]
        return sum(v.nbytes + len(v) * self._kind.overhead for v in parts)

    def spill(self) -> None:
        self._merge()
        if len(self._values):
            path = f"{self._stem}-{len(self._runs):04d}"
            self._runs.append(_Run.write(path, self._kind, self._values, self._counts))
            self._keep(self._kind.nothing, _NO_COUNTS)

    def forget(self) -> None:
        self._keep(self._kind.nothing, _NO_COUNTS)
        for path in glob.glob(
            f"{glob.escape(self._stem)}-*"
        ):  # of killed processes, too
            os.unlink(path)
        self._runs = []

    def all_runs(self) -> list["_Run"]:
        self._merge()
        return [*self._runs, _Run(self._kind, self._values, self._counts)]


class _Run:
    """Increasing values and their counts, in memory or in a file.

    Of those in a file, each 4,096th value is in memory, the first of each block.
    """

    def __init__(self, kind: _Kind, values, counts, path: str | None = None):
        self._kind, self._values, self._counts = kind, values, counts
        self.path, self.size = path, len(values)

    @classmethod
    def write(cls, path: str, kind: _Kind, values, counts) -> "_Run":
        table = pa.table({"value": values, "count": counts})
        with disk.explaining("counts of values", path), pa.OSFile(path, "wb") as file:
            with pa.ipc.new_file(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=_SAMPLE_STEP)
        firsts = table["value"].take(pa.array(np.arange(0, len(values), _SAMPLE_STEP)))
        run = cls(kind, kind.from_arrow(firsts.combine_chunks()), None, path)
        run.size = len(values)
        return run

    def samples(self) -> list[bytes]:
        values = self._values if self.path else self._values[::_SAMPLE_STEP]
        return self._kind.to_texts(values).to_pylist()

    def positions(self, cuts: list[bytes]) -> list[int]:
        return [0, *map(self._find, cuts), self.size]

    def _find(self, cut):
        place = self._kind.bisect(self._values, cut)
        if self.path is None:
            return place
        # The block before the first sample that is at or above the cut.
        first = max(place - 1, 0) * _SAMPLE_STEP
        values, _ = self.read(first, min(first + _SAMPLE_STEP, self.size))
        return first + self._kind.bisect(values, cut)

    def read(self, first: int, last: int) -> tuple:
        if self.path is None:
            return self._values[first:last], self._counts[first:last]
        if first >= last:
            return self._kind.nothing, _NO_COUNTS
        begin, end = first // _SAMPLE_STEP, -(-last // _SAMPLE_STEP)
        with pa.OSFile(self.path, "rb") as file:
            blocks = pa.ipc.open_file(file)
            batches = [blocks.get_batch(i) for i in range(begin, end)]
        table = pa.Table.from_batches(batches)
        table = table.slice(first - begin * _SAMPLE_STEP, last - first)
        values = table["value"].combine_chunks()
        return self._kind.from_arrow(values), table["count"].to_numpy()


def _choose_cuts(runs):
    """Return values that divide all runs into ranges of bounded size.

    Every run contributes each 4,096th of its values, so that fewer than 4,096 values of
    each run lie between two neighbors among them.
    """
    if sum(run.size for run in runs) <= _RANGE_VALUES:
        return []
    samples = sorted(itertools.chain.from_iterable(run.samples() for run in runs))
    step = max(1, _RANGE_VALUES // _SAMPLE_STEP)
    return sorted(set(samples[step::step]))
