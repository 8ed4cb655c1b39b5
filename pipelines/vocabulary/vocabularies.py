"""How categorical values are numbered: by a vocabulary, or by a hash.

Both kinds have `sizes`, `digest`, `save`, `load` and `make_lookup`, which is all
that the parser uses.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from pipelines.criteo.format import NUM_SPARSE, SPARSE_FEATURES
from pipelines.files import Paths, expand_paths
from pipelines.quarantine import Quarantine
from pipelines.vocabulary import checked_file
from pipelines.vocabulary.counting import count_values, most_frequent
from pipelines.vocabulary.lookups import HASH_KEY, HashLookup, Lookup, TableLookup

_FORBIDDEN = re.compile(rb"[\t\r\n,]")


class Vocabulary:
    """The values of each categorical feature that have an id of their own.

    Id 0 stands for an empty field and for all values that are not here; then come
    the values by falling count, equal counts in the order of their bytes.

    Args:
        values: For each of the 26 features, its values in the order of their ids,
            from id 1.
        counts: For each feature, how often each value was seen. `None`: unknown.
        min_count: Number of times a value had to be seen.
        max_size: Largest allowed number of ids of a feature, 0 included.
        num_rows: Number of rows counted.
        num_bad_rows: Number of bad rows met, which were not counted.

    Raises:
        ValueError: If there are not 26 features, or a value is repeated, empty or
            cannot be in a field (tab, comma, line end).

    Example:

    >>> import pipelines.vocabulary
    >>> values = [[b"68fd1e64", b"05db9164"]] + [[]] * 25
    >>> vocabulary = pipelines.vocabulary.Vocabulary(values)
    >>> vocabulary.sizes[:2], vocabulary.values("C1")
    ([3, 1], [b'68fd1e64', b'05db9164'])
    """

    _kind = "values"

    def __init__(
        self,
        values: Sequence[Sequence[bytes]],
        counts: Sequence[Sequence[int]] | None = None,
        min_count: int = 1,
        max_size: int | None = None,
        num_rows: int = 0,
        num_bad_rows: int = 0,
    ):
        self._values = [list(column) for column in values]
        if counts is None:
            counts = [[0] * len(column) for column in self._values]
        self._counts = [list(column) for column in counts]
        self.min_count = min_count
        self.max_size = max_size
        self.num_rows = num_rows
        self.num_bad_rows = num_bad_rows
        lengths = [len(column) for column in self._values]
        if len(lengths) != NUM_SPARSE or lengths != list(map(len, self._counts)):
            raise ValueError(
                f"A Vocabulary has values and counts of {NUM_SPARSE} features, as "
                f"many counts as values. Received: {len(lengths)} features of values"
            )
        for feature, column in zip(SPARSE_FEATURES, self._values, strict=True):
            _check_values(feature, column)

    @classmethod
    def build(
        cls,
        paths: Paths,
        min_count: int = 10,
        max_size: int | None = None,
        progress: Callable[[int], None] | None = None,
        quarantine: Quarantine | None = None,
    ) -> "Vocabulary":
        """Counts the values in labelled files, in one pass.

        Memory grows with the number of distinct values (about 30 bytes each), not
        with the number of rows. Bad rows are not counted; they go to the
        quarantine.

        Args:
            paths: A path, a glob, or a sequence of them; plain or gzip files.
            min_count: Number of times a value must be seen to have an id.
            max_size: Largest number of ids of a feature, 0 included; the rarest
                values have none. `None`: no limit.
            progress: Called with the number of lines read so far, every few
                megabytes.
            quarantine: Where bad rows go. `None`: `Quarantine()`, which fails at
                more than one in 10,000.

        Returns:
            The `Vocabulary`.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If an argument is out of range, or no row is good.
            pipelines.quarantine.BadRowsError: If too many rows are bad.
        """
        if min_count < 1:
            raise ValueError(
                f"`min_count` must be at least 1. Received: min_count={min_count!r}"
            )
        if max_size is not None and max_size < 1:
            raise ValueError(
                "`max_size` must be at least 1 (id 0), or None. "
                f"Received: max_size={max_size!r}"
            )
        quarantine = Quarantine() if quarantine is None else quarantine
        found = count_values(expand_paths(paths), quarantine, progress)
        if not found.num_rows:
            raise ValueError(f"None of the {found.num_bad_rows:,} rows is good.")
        kept = [most_frequent(table, min_count, max_size) for table in found.tables]
        values = [table["value"].to_pylist() for table in kept]
        counts = [table["count"].to_pylist() for table in kept]
        return cls(
            values, counts, min_count, max_size, found.num_rows, found.num_bad_rows
        )

    @property
    def sizes(self) -> list[int]:
        """Numbers of ids of the 26 features, 0 included: their vocabulary sizes."""
        return [1 + len(column) for column in self._values]

    def values(self, feature: str) -> list[bytes]:
        """Returns the values of a feature (`"C1"`) in the order of ids, from 1."""
        return list(self._values[_position(feature)])

    def counts(self, feature: str) -> list[int]:
        """Returns how often each of `values(feature)` was seen."""
        return list(self._counts[_position(feature)])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of what decides the ids: the values in their order."""
        digest = hashlib.sha256(b"vocabulary\n")
        for feature, column in zip(SPARSE_FEATURES, self._values, strict=True):
            digest.update(f"{feature}\t{len(column)}\n".encode())
            digest.update(b"\n".join(column) + b"\n")
        return digest.hexdigest()

    def make_lookup(self, asset_dir: str | None = None) -> Lookup:
        """Makes the `tf.Module` that looks values up; see `lookups.TableLookup`."""
        return TableLookup(self, asset_dir)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the vocabulary to one file; a file that is there is replaced.

        The first line tells what it is, then comes a line for each value in the
        order of ids (feature, tab, count, tab, value: bytes in no encoding), then
        a checksum.
        """
        header = {
            "kind": self._kind,
            "max_size": self.max_size,
            "min_count": self.min_count,
            "num_bad_rows": self.num_bad_rows,
            "num_rows": self.num_rows,
            "sizes": self.sizes,
        }
        checked_file.write(path, header, self._lines())

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Vocabulary":
        """Reads a file written by `save`.

        Raises:
            ValueError: If it is something else, was cut short or is damaged.
        """
        return _load(path, (cls,))

    @classmethod
    def _from_file(cls, header: dict[str, Any], lines: list[bytes]):
        values = [[] for _ in SPARSE_FEATURES]
        counts = [[] for _ in SPARSE_FEATURES]
        positions = {name.encode(): i for i, name in enumerate(SPARSE_FEATURES)}
        for line in lines:
            feature, count, value = line.split(b"\t")
            values[positions[feature]].append(value)
            counts[positions[feature]].append(int(count))
        options = {k: v for k, v in header.items() if k not in ("kind", "sizes")}
        return cls(values, counts, **options)

    def _lines(self) -> Iterable[bytes]:
        for feature, values, counts in zip(
            SPARSE_FEATURES, self._values, self._counts, strict=True
        ):
            start = feature.encode()
            for value, count in zip(values, counts, strict=True):
                yield b"%s\t%d\t%s\n" % (start, count, value)

    def __eq__(self, other):
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)

    def __repr__(self):
        return (
            f"<Vocabulary of {sum(map(len, self._values)):,} values, "
            f"min_count={self.min_count}, from {self.num_rows:,} rows>"
        )


class HashVocabulary:
    """Ids by hashing: no pass over the data, but values may share an id.

    The id of a value of the feature number k (1 for C1) is `1 + h % (size - 1)`,
    where h is the SipHash-2-4 of the value's bytes, an unsigned 64-bit number,
    under the 128-bit key made of the two little-endian 64-bit words k and
    0x646C726D. Id 0 stands for an empty field.

    Args:
        num_buckets: Number of ids of each feature, 0 included: one number for all
            or 26 numbers, each at least 2.

    Raises:
        ValueError: If there are not 26 numbers, or one is too small.

    Example:

    >>> import pipelines.vocabulary
    >>> pipelines.vocabulary.HashVocabulary(100_000).sizes[:3]
    [100000, 100000, 100000]

    Reference:
        Aumasson and Bernstein 2012, "SipHash: a fast short-input PRF". This is
        `tf.strings.to_hash_bucket_strong(value, size - 1, [k, 0x646C726D])`.
    """

    _kind = "hash"

    def __init__(self, num_buckets: int | Sequence[int]):
        if hasattr(num_buckets, "__index__"):
            num_buckets = [num_buckets] * NUM_SPARSE
        sizes = [int(size) for size in num_buckets]
        if len(sizes) != NUM_SPARSE or min(sizes) < 2:
            raise ValueError(
                f"`num_buckets` must be an integer or {NUM_SPARSE} integers, each at "
                "least 2 (id 0 is for empty fields). "
                f"Received: num_buckets={num_buckets!r}"
            )
        self._sizes = sizes

    @property
    def sizes(self) -> list[int]:
        """Numbers of ids of the 26 features, 0 included: their vocabulary sizes."""
        return list(self._sizes)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of what decides the ids."""
        content = f"siphash-2-4 {HASH_KEY:#x} {self._sizes}"
        return hashlib.sha256(content.encode()).hexdigest()

    def make_lookup(self, asset_dir: str | None = None) -> Lookup:
        """Makes the `tf.Module` that hashes values; it needs no files."""
        del asset_dir
        return HashLookup(self._sizes)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the numbers of ids to one small file."""
        checked_file.write(path, {"kind": self._kind, "sizes": self._sizes}, [])

    @classmethod
    def load(cls, path: str | os.PathLike) -> "HashVocabulary":
        """Reads a file written by `save`.

        Raises:
            ValueError: If it is something else, was cut short or is damaged.
        """
        return _load(path, (cls,))

    @classmethod
    def _from_file(cls, header: dict[str, Any], lines: list[bytes]):
        del lines
        return cls(header["sizes"])

    def __eq__(self, other):
        if not isinstance(other, HashVocabulary):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)

    def __repr__(self):
        return f"<HashVocabulary of {sum(self._sizes):,} ids>"


def load(path: str | os.PathLike) -> Vocabulary | HashVocabulary:
    """Reads a vocabulary file of either kind.

    Raises:
        ValueError: If it is something else, was cut short or is damaged.
    """
    return _load(path, (Vocabulary, HashVocabulary))


def _load(path, classes):
    header, lines = checked_file.read(path)
    for cls in classes:
        if header["kind"] == cls._kind:
            return cls._from_file(header, lines)
    raise ValueError(
        f"{os.fspath(path)}: a vocabulary of the kind {header['kind']!r}, not "
        f"{classes[0]._kind!r}. `vocabulary.load` reads both."
    )


def _position(feature: str) -> int:
    if feature not in SPARSE_FEATURES:
        raise ValueError(
            f"`feature` must be one of C1 .. C{NUM_SPARSE}. Received: {feature!r}"
        )
    return SPARSE_FEATURES.index(feature)


def _check_values(feature: str, values: list[bytes]) -> None:
    for value in values:
        if not isinstance(value, bytes) or not value or _FORBIDDEN.search(value):
            raise ValueError(
                f"A value of {feature} must be non-empty bytes without tab, comma and "
                f"line end. Received: {value!r}"
            )
    if len(set(values)) != len(values):
        raise ValueError(f"A value of {feature} is named twice.")
