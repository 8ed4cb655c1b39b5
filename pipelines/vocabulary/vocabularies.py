"""Numbering of categorical values, by a vocabulary or by a hash.

All kinds have `sizes`, `is_shared`, `digest`, `save`, `load` and `make_lookup`, which
is all that the parser uses.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from pipelines.files import Paths, expand_paths
from pipelines.formats.diagnosis import no_rows
from pipelines.formats.fields import Values, count_codes
from pipelines.formats.line_rules import NUM_SPARSE, SPARSE_FEATURES
from pipelines.formats.scanning import scan
from pipelines.quarantine import Quarantine
from pipelines.runtime import UserError
from pipelines.vocabulary import checked_file
from pipelines.vocabulary.counting import Counters
from pipelines.vocabulary.hashing import HashVocabulary, SharedHashVocabulary
from pipelines.vocabulary.numbering import Numbering, number

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

    is_shared = False  # each feature has a table of its own
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
        values = [list(column) for column in values]
        if counts is None:
            counts = [[0] * len(column) for column in values]
        lengths = [len(column) for column in values]
        if len(lengths) != NUM_SPARSE or lengths != list(map(len, counts)):
            raise UserError(
                f"A Vocabulary has values and counts of {NUM_SPARSE} features, as "
                f"many counts as values. Received: {len(lengths)} features of values"
            )
        for feature, column in zip(SPARSE_FEATURES, values, strict=True):
            _check_values(feature, column)
        self._set(
            [Numbering.of_values(*column) for column in zip(values, counts)],
            min_count,
            max_size,
            num_rows,
            num_bad_rows,
        )

    @classmethod
    def of_numberings(cls, numberings: Sequence[Numbering], **options) -> "Vocabulary":
        """Make a vocabulary of 26 numberings; the options are those of the class."""
        vocabulary = cls.__new__(cls)
        defaults = {"min_count": 1, "max_size": None, "num_rows": 0, "num_bad_rows": 0}
        vocabulary._set(list(numberings), **{**defaults, **options})
        return vocabulary

    def _set(self, numberings, min_count, max_size, num_rows, num_bad_rows):
        self._numberings = numberings
        self.min_count = min_count
        self.max_size = max_size
        self.num_rows = num_rows
        self.num_bad_rows = num_bad_rows

    @classmethod
    def build(
        cls,
        paths: Paths,
        min_count: int = 10,
        max_size: int | None = None,
        progress: Callable[[int], None] | None = None,
        quarantine: Quarantine | None = None,
    ) -> "Vocabulary":
        """Count the values in labelled files, in one pass.

        Memory grows with the number of values that get an id (about 20 bytes each),
        not with the numbers of rows and distinct values: counts that outgrow half a
        gigabyte go to temporary files. Bad rows are not counted; they go to the
        quarantine.

        Args:
            paths: A path, a glob, or a sequence of them; text, plain or compressed,
                or Parquet.
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
            ValueError: If an argument is out of range, or no row is valid.
            pipelines.quarantine.BadRowsError: If too many rows are bad.
        """
        check_limits(min_count, max_size)
        quarantine = Quarantine() if quarantine is None else quarantine
        counters = Counters(SPARSE_FEATURES)
        num_lines = num_good = 0
        paths = expand_paths(paths)
        for block in scan(paths, quarantine):
            rows = block.rows
            for counter, values in zip(counters.of, rows.values, strict=True):
                counter.add(values, count_codes(values))
            counters.limit_memory()
            num_lines += rows.num_lines
            num_good += len(rows.labels)
            if progress is not None:
                progress(num_lines)
        quarantine.check()
        num_bad = num_lines - num_good
        if not num_good:
            raise UserError(no_rows(paths))
        return cls.of_numberings(
            [number(counter, min_count, max_size)[0] for counter in counters.of],
            min_count=min_count,
            max_size=max_size,
            num_rows=num_good,
            num_bad_rows=num_bad,
        )

    @property
    def numberings(self) -> list[Numbering]:
        """The numbering of each feature."""
        return list(self._numberings)

    @property
    def sizes(self) -> list[int]:
        """Numbers of ids of the 26 features, 0 included: their vocabulary sizes."""
        return [1 + len(numbering) for numbering in self._numberings]

    def values(self, feature: str) -> list[bytes]:
        """Return the values of a feature (`"C1"`) in the order of ids, from 1."""
        return self._numberings[_position(feature)].values()

    def counts(self, feature: str) -> list[int]:
        """Return how often each of `values(feature)` was seen."""
        return self._numberings[_position(feature)].counts.tolist()

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of what decides the ids: the values in their order."""
        digest = hashlib.sha256(b"vocabulary\n")
        for feature, numbering in zip(SPARSE_FEATURES, self._numberings, strict=True):
            digest.update(f"{feature}\t{len(numbering)}\n".encode())
            separator = b""
            for chunk in numbering.load().chunks():
                digest.update(separator + b"\n".join(chunk.to_pylist()))
                separator = b"\n"
            digest.update(b"\n")
        return digest.hexdigest()

    def find(self, feature: int, values: Values) -> np.ndarray:
        """Ids of distinct values of one feature.

        Args:
            feature: Position of the feature, 0 for C1.
            values: The values; `keys` and `texts` are used.

        Returns:
            int32, of the keys and then of the texts; 0 for unknown ones.
        """
        return self._numberings[feature].find(values)

    def make_lookup(self, asset_dir: str | None = None) -> Any:
        """Make the `tf.Module` that looks values up; see `lookups.TableLookup`."""
        from pipelines.vocabulary.lookups import TableLookup

        return TableLookup(self, asset_dir)

    def save(self, path: str | os.PathLike) -> None:
        """Write the vocabulary to one file; a file that is there is replaced.

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
        """Read a file written by `save`.

        Raises:
            ValueError: If it is something else, is truncated or damaged.
        """
        return checked_file.load(path, (cls,))

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
        for feature, numbering in zip(SPARSE_FEATURES, self._numberings, strict=True):
            start, done = feature.encode(), 0
            numbering = numbering.load()
            for chunk in numbering.chunks():
                counts = numbering.counts[done : done + len(chunk)].tolist()
                done += len(chunk)
                lines = [
                    b"%s\t%d\t%s\n" % (start, count, value)
                    for value, count in zip(chunk.to_pylist(), counts, strict=True)
                ]
                yield b"".join(lines)

    def __eq__(self, other):
        if not isinstance(other, Vocabulary):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)

    def __repr__(self):
        return (
            f"<Vocabulary of {sum(map(len, self._numberings)):,} values, "
            f"min_count={self.min_count}, from {self.num_rows:,} rows>"
        )


def load(path: str | os.PathLike) -> Vocabulary | HashVocabulary:
    """Read a vocabulary file of any kind.

    Raises:
        ValueError: If it is something else, is truncated or damaged.
    """
    kinds = (Vocabulary, HashVocabulary, SharedHashVocabulary)
    return checked_file.load(path, kinds)


def check_limits(min_count: int, max_size: int | None) -> None:
    """Raise where no vocabulary can have such limits."""
    if min_count < 1:
        raise UserError(
            f"`min_count` must be at least 1. Received: min_count={min_count!r}"
        )
    if max_size is not None and max_size < 1:
        raise UserError(
            "`max_size` must be at least 1 (id 0), or None. "
            f"Received: max_size={max_size!r}"
        )


def _position(feature: str) -> int:
    if feature not in SPARSE_FEATURES:
        raise UserError(
            f"`feature` must be one of C1 .. C{NUM_SPARSE}. Received: {feature!r}"
        )
    return SPARSE_FEATURES.index(feature)


def _check_values(feature: str, values: list[bytes]) -> None:
    for value in values:
        if not isinstance(value, bytes) or not value or _FORBIDDEN.search(value):
            raise UserError(
                f"A value of {feature} must be non-empty bytes without tab, comma and "
                f"line end. Received: {value!r}"
            )
    if len(set(values)) != len(values):
        raise UserError(f"A value of {feature} is named twice.")
