"""Numbering of categorical values, by a vocabulary, by hashes, or by some of each.

All kinds have `schema`, `learned`, `sizes`, `digest`, `save`, `load` and `make_lookup`,
which is all that the parser uses.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.files import Paths
from pipelines.formats.fields import Values
from pipelines.quarantine import Quarantine
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.vocabulary import checked_file, schema_part
from pipelines.vocabulary.hashing import (
    HashNumbering,
    HashVocabulary,
    SharedHashVocabulary,
)
from pipelines.vocabulary.numbering import Numbering
from pipelines.vocabulary.numbering_file import read_numbering
from pipelines.vocabulary.record_ids import RecordIds


class Vocabulary:
    """The values of each table that have an id of their own.

    Id 0 stands for a missing value and for all values that are not here; then come
    the values by falling count, equal counts in the order of their bytes. Features
    that share a table share its values. A table with `hash_buckets` has no values: its
    ids are hashes, as those of `HashVocabulary`.

    Args:
        values: For each table, its values in the order of their ids, from id 1.
        counts: For each table, how often each value was seen. `None`: unknown.
        min_count: Number of times a value had to be seen.
        max_size: Largest allowed number of ids of a table, 0 included.
        num_rows: Number of rows counted.
        num_bad_rows: Number of bad rows met, which were not counted.
        schema: The columns; `None`: `Schema.criteo()`.
        learned: Of each feature what its transform or buckets learned.

    Raises:
        ValueError: If there are not as many as tables, or a value is repeated, empty or
            cannot be in a field (a line end, a separator).

    Example:

    >>> import pipelines.vocabulary
    >>> values = [[b"0c1e8f72", b"93ab5d10"]] + [[]] * 25
    >>> vocabulary = pipelines.vocabulary.Vocabulary(values)
    >>> vocabulary.sizes[:2], vocabulary.values("C1")
    ([3, 1], [b'0c1e8f72', b'93ab5d10'])
    """

    is_shared = False  # a table of its own is how the schema has it
    _kind = "values"

    def __init__(
        self,
        values: Sequence[Sequence[bytes]],
        counts: Sequence[Sequence[int]] | None = None,
        min_count: int = 1,
        max_size: int | None = None,
        num_rows: int = 0,
        num_bad_rows: int = 0,
        schema: Schema | None = None,
        learned: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        schema = Schema.criteo() if schema is None else schema
        values = [list(column) for column in values]
        if counts is None:
            counts = [[0] * len(column) for column in values]
        lengths = [len(column) for column in values]
        if len(lengths) != len(schema.tables) or lengths != list(map(len, counts)):
            raise UserError(
                f"A Vocabulary has values of {len(schema.tables)} tables, and as many "
                f"counts. Received: {len(lengths)} tables of values"
            )
        numberings: list[Any] = []
        for number, table in enumerate(schema.tables):
            buckets = schema.option(table, "hash_buckets")
            if buckets is not None:
                numberings.append(HashNumbering(buckets, number + 1))
                continue
            _check_values(schema, table, values[number])
            numberings.append(Numbering.of_values(values[number], counts[number]))
        self._set(
            numberings,
            min_count,
            max_size,
            num_rows,
            num_bad_rows,
            schema,
            learned,
        )

    @classmethod
    def of_numberings(cls, numberings: Sequence[Any], **options: Any) -> "Vocabulary":
        """Make a vocabulary of a numbering for each table; options as of the class."""
        vocabulary = cls.__new__(cls)
        defaults = {"min_count": 1, "max_size": None, "num_rows": 0, "num_bad_rows": 0}
        defaults |= {"schema": None, "learned": None}
        vocabulary._set(list(numberings), **{**defaults, **options})
        return vocabulary

    def _set(
        self, numberings, min_count, max_size, num_rows, num_bad_rows, schema, learned
    ):
        self._numberings = numberings
        self.min_count = min_count
        self.max_size = max_size
        self.num_rows = num_rows
        self.num_bad_rows = num_bad_rows
        self.schema: Schema = Schema.criteo() if schema is None else schema
        self.learned: dict[str, Any] = dict(learned or {})

    @classmethod
    def build(
        cls,
        paths: Paths | Any,
        min_count: int = 10,
        max_size: int | None = None,
        progress: Callable[[int], None] | None = None,
        quarantine: Quarantine | None = None,
        schema: Schema | None = None,
    ) -> "Vocabulary":
        """Count the values in labelled files or data frames, in one pass.

        Memory grows with the number of values that get an id (about 20 bytes each),
        not with the numbers of rows and distinct values: counts that outgrow half a
        gigabyte go to temporary files. Bad rows are not counted; they go to the
        quarantine.

        Args:
            paths: A path, a glob, or a sequence of them; text, plain or compressed,
                or Parquet. Or a pandas or polars `DataFrame` of raw columns, or a list
                of them, which counts as the Parquet files written from them.
            min_count: Number of times a value must be seen to have an id, where the
                schema does not say it.
            max_size: Largest number of ids of a table, 0 included; the rarest
                values have none. `None`: no limit.
            progress: Called with the number of lines read so far, every few
                megabytes.
            quarantine: Where bad rows go. `None`: `Quarantine()`, which fails at
                more than one in 10,000. Files only: a bad cell of a frame is an
                error.
            schema: The columns; `None`: `Schema.criteo()`.

        Returns:
            The `Vocabulary`.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If an argument is out of range, no row is valid, or a cell of a
                frame is not valid.
            pipelines.quarantine.BadRowsError: If too many rows are bad.

        Example:

        >>> import pandas, pipelines
        >>> logs = pandas.DataFrame({"click": [0, 1, 0], "item": ["a", "b", "a"]})
        >>> schema = pipelines.Schema("click", sparse="item")
        >>> vocabulary = pipelines.Vocabulary.build(logs, schema=schema, min_count=1)
        >>> vocabulary.values("item"), vocabulary.counts("item")
        ([b'a', b'b'], [2, 1])
        """
        from pipelines.vocabulary.building import build

        check_limits(min_count, max_size)
        schema = Schema.criteo() if schema is None else schema
        return build(paths, schema, min_count, max_size, progress, quarantine)

    @property
    def numberings(self) -> list[Any]:
        """The numbering of each table."""
        return list(self._numberings)

    @functools.cached_property
    def by_feature(self) -> list[Any]:
        """The numbering of the table that each feature reads."""
        return [self._numberings[table] for table in self.schema.table_of]

    @property
    def sizes(self) -> list[int]:
        """Numbers of ids of the tables, 0 included: their vocabulary sizes."""
        return [1 + len(numbering) for numbering in self._numberings]

    def values(self, feature: str) -> list[bytes]:
        """Return the values of a feature (`"C1"`) in the order of ids, from 1."""
        return self.numbering_of(feature).values()

    def counts(self, feature: str) -> list[int]:
        """Return how often each of `values(feature)` was seen."""
        return self.numbering_of(feature).counts.tolist()

    def numbering_of(self, feature: str) -> Any:
        """Return the numbering of the table that a feature reads.

        Raises:
            ValueError: If there is no such feature.
        """
        names = self.schema.sparse_features
        if feature not in names:
            raise UserError(
                f"`feature` must be one of {', '.join(names[:50])}. Received: "
                f"{feature!r}"
            )
        return self.by_feature[names.index(feature)]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of what decides the ids: the values in their order."""
        digest = hashlib.sha256(b"vocabulary\n")
        digest.update(schema_part.features_digest(self.schema, self.learned))
        for table, numbering in zip(self.schema.tables, self._numberings, strict=True):
            if isinstance(numbering, HashNumbering):
                digest.update(f"{table}\thash {numbering.num_buckets}\n".encode())
                continue
            digest.update(f"{table}\t{len(numbering)}\n".encode())
            separator = b""
            for chunk in numbering.load().chunks():
                digest.update(separator + b"\n".join(chunk.to_pylist()))
                separator = b"\n"
            digest.update(b"\n")
        return digest.hexdigest()

    def find(self, feature: int, values: Values) -> np.ndarray:
        """Ids of distinct values of one feature.

        Args:
            feature: Position of the feature in `schema.sparse`.
            values: The values; `keys` and `texts` are used.

        Returns:
            int32, of the keys and then of the texts; 0 for unknown ones.
        """
        return self.by_feature[feature].find(values)

    def make_lookup(self, asset_dir: str | None = None) -> Any:
        """Make the `tf.Module` that looks values up; see `lookups.Lookup`."""
        from pipelines.vocabulary.lookups import Lookup

        return Lookup(self, asset_dir)

    def save(self, path: str | os.PathLike) -> None:
        """Write the vocabulary to one file; a file that is there is replaced.

        The first line tells what it is, then comes a line for each value in the
        order of ids (table, tab, count, tab, value: bytes in no encoding), then
        a checksum.
        """
        header = {
            "kind": self._kind,
            "max_size": self.max_size,
            "min_count": self.min_count,
            "num_bad_rows": self.num_bad_rows,
            "num_rows": self.num_rows,
            "sizes": self.sizes,
            **schema_part.describe(self.schema, self.learned),
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
    def _from_file(cls, header: dict[str, Any], lines: memoryview):
        header.pop("kind")
        sizes, (schema, learned) = header.pop("sizes"), schema_part.take(header)
        numberings: list[Any] = []
        place = 0
        for number, (table, size) in enumerate(zip(schema.tables, sizes, strict=True)):
            buckets = schema.option(table, "hash_buckets")
            if buckets is not None:
                numberings.append(HashNumbering(buckets, number + 1))
                continue
            numbering, place = read_numbering(lines, place, table, size - 1)
            numberings.append(numbering)
        if place != len(lines):
            raise UserError(
                "A vocabulary file has other numbers of values than it says."
            )
        return cls.of_numberings(numberings, **header, schema=schema, learned=learned)

    def _lines(self) -> Iterable[bytes]:
        for table, numbering in zip(self.schema.tables, self._numberings, strict=True):
            if isinstance(numbering, HashNumbering):
                continue
            start, done = table.encode(), 0
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


def load(path: str | os.PathLike) -> Vocabulary | HashVocabulary | RecordIds:
    """Read a vocabulary file of any kind.

    Raises:
        ValueError: If it is something else, is truncated or damaged.
    """
    kinds = (Vocabulary, HashVocabulary, SharedHashVocabulary, RecordIds)
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


def _check_values(schema: Schema, table: str, values: list[bytes]) -> None:
    features = [schema.sparse[position] for position in schema.tables[table]]
    special = {"\n", "\r", *(f.separator for f in features if f.separator)}
    special |= set() if schema.text.quoted else {schema.text.delimiter}
    pattern = b"|".join(re.escape(text.encode()) for text in sorted(special))
    forbidden = re.compile(pattern)
    for value in values:
        if not isinstance(value, bytes) or not value or forbidden.search(value):
            raise UserError(
                f"A value of {table} must be non-empty bytes without a line end, a "
                f"separator or a delimiter. Received: {value!r}"
            )
    if len(set(values)) != len(values):
        raise UserError(f"A value of {table} is named twice.")
