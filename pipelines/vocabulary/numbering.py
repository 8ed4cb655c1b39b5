"""Map distinct values of a feature to ids and back, in sorted arrays.

# K values of up to eight bytes, T longer ones, N = K + T
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.formats.fields import Values, distinct_of_texts, texts_of_keys
from pipelines.runtime import disk
from pipelines.vocabulary.counting import Counter
from pipelines.vocabulary.siphash import hash_texts

_CHUNK = 1 << 20
_NO_TEXTS = pa.array([], pa.large_binary())
_TEXT_KEY = (0, 0)  # arbitrary: texts with equal hashes are compared


class Tally(NamedTuple):
    """The counts of a feature's values, without the empty value.

    Attributes:
        num_distinct: Number of distinct values.
        num_values: Total number of values.
        num_kept: Number of distinct values with an id.
        num_values_kept: Total number of values with an id.
        top: `(value, count)` of the most frequent values.
    """

    num_distinct: int
    num_values: int
    num_kept: int
    num_values_kept: int
    top: list[tuple[bytes, int]]


class Numbering:
    """The ids of a feature's values: from 1 in some order, 0 for all other values.

    Args:
        keys: The values of up to eight bytes, uint64 `(K,)`, increasing.
        key_ids: int32 `(K,)`, ids of the keys.
        texts: The longer values, `pa.LargeBinaryArray` `(T,)`, increasing.
        text_ids: int32 `(T,)`, ids of the texts.
        counts: int64 `(N,)`, the count of each value in the order of ids.
    """

    def __init__(self, keys, key_ids, texts, text_ids, counts):
        self.keys, self.key_ids = keys, key_ids
        self.texts, self.text_ids, self.counts = texts, text_ids, counts
        self._by_hash = None

    @classmethod
    def of_values(cls, values: Sequence[bytes], counts: Sequence[int]) -> "Numbering":
        """Number values in the order of the sequence, from 1."""
        if not isinstance(values, pa.Array):
            values = pa.array(values, pa.large_binary())
        found = distinct_of_texts(values)
        ids = np.empty(len(found.keys) + len(found.texts), np.int32)
        ids[found.codes] = np.arange(1, len(values) + 1, dtype=np.int32)
        num_keys = len(found.keys)
        counts = np.asarray(counts, np.int64)
        return cls(found.keys, ids[:num_keys], found.texts, ids[num_keys:], counts)

    def __len__(self):
        return len(self.counts)

    @property
    def num_bytes(self) -> int:
        """Memory of the numbering, in bytes."""
        arrays = (self.keys, self.key_ids, self.texts, self.text_ids, self.counts)
        return sum(array.nbytes for array in arrays)

    def load(self) -> "Numbering":
        """Return itself, as it is already in memory."""
        return self

    def find(self, values: Values) -> np.ndarray:
        """Return int32 ids of distinct values, of `values.keys` and `values.texts`."""
        num_keys = len(values.keys)
        ids = np.zeros(num_keys + len(values.texts), np.int32)
        if len(self.keys):
            places = np.searchsorted(self.keys, values.keys)
            np.minimum(places, len(self.keys) - 1, out=places)
            known = self.keys[places] == values.keys
            ids[:num_keys] = np.where(known, self.key_ids[places], 0)
        if len(values.texts) and len(self.texts):
            ids[num_keys:] = self._find_texts(values.texts)
        return ids

    def _find_texts(self, texts):
        if self._by_hash is None:
            hashes = hash_texts(self.texts, _TEXT_KEY)
            order = np.argsort(hashes, kind="stable")
            self._by_hash = hashes[order], order
        sorted_hashes, order = self._by_hash
        hashes = hash_texts(texts, _TEXT_KEY)
        places = np.searchsorted(sorted_hashes, hashes)
        ids = np.zeros(len(texts), np.int32)
        left = np.arange(len(texts))
        while len(left):  # once, except for texts with equal hashes
            left = left[places[left] < len(order)]
            left = left[sorted_hashes[places[left]] == hashes[left]]
            candidates = order[places[left]]
            equal = pc.equal(
                self.texts.take(pa.array(candidates)), texts.take(pa.array(left))
            ).to_numpy(zero_copy_only=False)
            ids[left[equal]] = self.text_ids[candidates[equal]]
            left = left[~equal]
            places[left] += 1
        return ids

    def chunks(self) -> Iterator[pa.LargeBinaryArray]:
        """Yield the values in the order of ids, some at a time."""
        size = len(self)
        # The position of each id among the keys and then the texts.
        places = np.empty(size, np.int64)
        places[self.key_ids - 1] = np.arange(len(self.keys))
        places[self.text_ids - 1] = len(self.keys) + np.arange(len(self.texts))
        for first in range(0, size, _CHUNK):
            of_chunk = places[first : first + _CHUNK]
            is_key = of_chunk < len(self.keys)
            chunk = texts_of_keys(self.keys[of_chunk[is_key]])
            if not is_key.all():
                texts = self.texts.take(pa.array(of_chunk[~is_key] - len(self.keys)))
                both = pa.concat_arrays([chunk, texts])
                order = np.empty(len(of_chunk), np.int64)
                order[is_key] = np.arange(len(chunk))
                order[~is_key] = len(chunk) + np.arange(len(texts))
                chunk = both.take(pa.array(order))
            yield chunk

    def values(self) -> list[bytes]:
        """Return the values in the order of ids."""
        return [value for chunk in self.chunks() for value in chunk.to_pylist()]


class StoredNumbering:
    """A numbering in a file, used if the numberings do not all fit in memory.

    Args:
        path: The file to write.
        numbering: The numbering.
    """

    def __init__(self, path, numbering: Numbering):
        self._path, self._size = path, len(numbering)
        self.num_bytes = numbering.num_bytes
        columns = {
            "key": (numbering.keys, numbering.key_ids),
            "text": (numbering.texts, numbering.text_ids),
        }
        with disk.explaining("the numbers of values", path), open(path, "wb") as file:
            for name, (values, ids) in columns.items():
                table = pa.table({name: values, "id": ids})
                with pa.ipc.new_stream(file, table.schema) as stream:
                    stream.write_table(table)
            file.write(np.ascontiguousarray(numbering.counts).data)

    def __len__(self):
        return self._size

    def load(self) -> Numbering:
        """Read the numbering."""
        with open(self._path, "rb") as file:
            keys, texts = (pa.ipc.open_stream(file).read_all() for _ in range(2))
            counts = np.fromfile(file, np.int64)
        return Numbering(
            keys["key"].to_numpy(),
            keys["id"].to_numpy(),
            texts["text"].combine_chunks(),
            texts["id"].to_numpy(),
            counts,
        )

    def find(self, values: Values) -> np.ndarray:
        """Return the ids of distinct values; slow, as it reads the whole file.

        Call `load` once for several lookups.
        """
        return self.load().find(values)

    def values(self) -> list[bytes]:
        """Return the values in the order of ids."""
        return self.load().values()

    @property
    def counts(self) -> np.ndarray:
        """The count of each value, in the order of ids."""
        return self.load().counts


def number(
    counter: Counter, min_count: int = 1, max_size: int | None = None, num_top: int = 10
) -> tuple[Numbering, Tally]:
    """Number values by decreasing count; equal counts in the order of their bytes.

    Args:
        counter: The counts.
        min_count: Smallest count of a value that gets an id.
        max_size: Maximum number of ids, including id 0; default: no limit.
        num_top: Number of most frequent values to list in the tally.

    Returns:
        The numbering and the tally.
    """
    # Values come in increasing order, so equal counts need no sort: the numbers of
    # values with each count give the first id of each count.
    histogram, num_values = {}, 0
    num_distinct = 0
    for counted in counter.ranges():
        counts = np.concatenate([counted.key_counts, counted.text_counts])
        num_distinct += len(counts)
        num_values += int(counts.sum())
        found, times = np.unique(counts[counts >= min_count], return_counts=True)
        for count, number_of in zip(found.tolist(), times.tolist(), strict=True):
            histogram[count] = histogram.get(count, 0) + number_of
    next_id, last = {}, 1
    limit = np.inf if max_size is None else max_size
    for count in sorted(histogram, reverse=True):
        next_id[count] = last
        last += histogram[count]
        if last >= limit:
            break
    parts = []
    for counted in counter.ranges():
        ids = _ids_of_range(counted, next_id, limit)
        num_keys = len(counted.keys)
        key, text = ids[:num_keys] > 0, ids[num_keys:] > 0
        parts.append(
            (
                counted.keys[key],
                ids[:num_keys][key],
                counted.key_counts[key],
                counted.texts.filter(pa.array(text)),
                ids[num_keys:][text],
                counted.text_counts[text],
            )
        )
    columns = list(zip(*parts, strict=True))
    keys, key_ids, key_counts = (np.concatenate(column) for column in columns[:3])
    texts = pa.concat_arrays(columns[3])
    text_ids, text_counts = (np.concatenate(column) for column in columns[4:])
    counts = np.empty(len(keys) + len(texts), np.int64)
    counts[key_ids - 1], counts[text_ids - 1] = key_counts, text_counts
    numbering = Numbering(keys, key_ids, texts, text_ids, counts)
    top = [
        (value, int(count))
        for value, count in zip(_first_values(numbering, num_top), counts[:num_top])
    ]
    kept = int(counts.sum())
    return numbering, Tally(num_distinct, num_values, len(counts), kept, top)


def tally(counter: Counter, num_top: int = 10) -> Tally:
    """Return only the tally, as if all values had ids."""
    num_distinct = num_values = 0
    top = []
    for counted in counter.ranges():
        counts = np.concatenate([counted.key_counts, counted.text_counts])
        num_distinct += len(counts)
        num_values += int(counts.sum())
        values = pa.concat_arrays([texts_of_keys(counted.keys), counted.texts])
        largest = np.argsort(-counts, kind="stable")[:num_top]
        found = values.take(pa.array(largest)).to_pylist()
        top += zip(found, counts[largest].tolist(), strict=True)
        top = sorted(top, key=lambda pair: (-pair[1], pair[0]))[:num_top]
    return Tally(num_distinct, num_values, num_distinct, num_values, top)


def _ids_of_range(counted, next_id, limit):
    """Return int32 ids of the keys and texts of a range, or 0; advance `next_id`."""
    counts = np.concatenate([counted.key_counts, counted.text_counts])
    ids = np.zeros(len(counts), np.int64)
    rising = None
    if len(counted.texts) and len(counted.keys):
        both = pa.concat_arrays([texts_of_keys(counted.keys), counted.texts])
        rising = pc.sort_indices(both).to_numpy()
    ordered = counts if rising is None else counts[rising]
    order = np.argsort(ordered, kind="stable")
    grouped = ordered[order]
    ends = np.flatnonzero(np.diff(grouped, append=grouped[-1:] + 1)) + 1
    first = 0  # first position of a count; a feature may have no values
    for last in ends.tolist():
        count = int(grouped[first])
        if count in next_id:
            begin = next_id[count]
            ids[order[first:last]] = np.arange(begin, begin + last - first)
            next_id[count] = begin + last - first
        first = last
    ids[ids >= limit] = 0
    result = ids
    if rising is not None:
        result = np.empty_like(ids)
        result[rising] = ids
    return result.astype(np.int32)


def _first_values(numbering, num):
    chunk = next(numbering.chunks(), _NO_TEXTS)
    return chunk[:num].to_pylist()
