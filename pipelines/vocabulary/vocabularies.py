"""Ids for categorical values from a vocabulary, by hashing, or a mix of both.

All kinds have `schema`, `learned`, `sizes`, `digest`, `save`, `load` and `make_lookup`,
which is all that the parser uses.
"""

import functools
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pipelines.files import Paths
from pipelines.quarantine import Quarantine
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.vocabulary import checked_file, schema_part
from pipelines.vocabulary.base import TableVocabulary
from pipelines.vocabulary.hashing import (
    GrowingNumbering,
    HashNumbering,
    HashVocabulary,
    SharedHashVocabulary,
    numbering_of,
)
from pipelines.vocabulary.numbering import Numbering
from pipelines.vocabulary.numbering_file import read_numbering
from pipelines.vocabulary.record_ids import RecordIds


class Vocabulary(TableVocabulary):
    """The values of each table that have their own id.

    Id 0 stands for a missing value and for all values that are not in the vocabulary.
    The values follow by decreasing count, equal counts in the order of their bytes.
    Features that share a table share its values. A table with `hash_buckets` has no
    values: its ids are hashes, as in `HashVocabulary`.

    Args:
        values: The values of each table in the order of ids, from id 1.
        counts: The counts of these values for each table; `None`: unknown.
        min_count: Number of times that a value must occur to get an id.
        max_size: Maximum number of ids of a table, including 0; `None`: no limit.
        num_rows: Number of rows counted.
        num_bad_rows: Number of bad rows, which were not counted.
        schema: The columns; default: `Schema.criteo()`.
        learned: The numbers that the transform or buckets of each feature learned.

    Raises:
        ValueError: If there are not values for each table, or if a value is repeated,
            empty or cannot be in a field (it contains a line end or a separator).

    Example:

    >>> import pipelines.vocabulary
    >>> values = [[b"0c1e8f72", b"93ab5d10"]] + [[]] * 25
    >>> vocabulary = pipelines.vocabulary.Vocabulary(values)
    >>> vocabulary.sizes[:2], vocabulary.values("C1")
    ([3, 1], [b'0c1e8f72', b'93ab5d10'])
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
                f"`values` must have one list for each of the {len(schema.tables)} "
                "tables, and `counts` one count for each value. Received: "
                f"{len(lengths)} lists of values"
            )
        numberings: list[Any] = []
        for number, table in enumerate(schema.tables):
            hashed = numbering_of(schema, number)
            if hashed is not None:
                numberings.append(hashed)
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
        """Make a vocabulary from a numbering for each table and the class's options."""
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

        Memory grows with the number of values that get an id (about 20 bytes each), not
        with the number of rows or distinct values: counts that exceed half a gigabyte
        are written to temporary files. Bad rows are not counted; the quarantine
        collects them.

        Args:
            paths: A path, a glob, or a sequence of them; text, plain or compressed, or
                Parquet. Or a pandas or polars `DataFrame` of raw columns, or a list of
                them, which are treated like Parquet files with the same columns.
            min_count: Number of times that a value must occur to get an id; a value in
                the schema takes precedence.
            max_size: Maximum number of ids of a table, including 0; the rarest values
                get none. Default: no limit.
            progress: Function that is called with the number of lines read so far,
                every few megabytes.
            quarantine: Collects bad rows of files; default: `Quarantine()`, which fails
                if more than one in 10,000 rows is bad. In a frame, a bad cell is an
                error.
            schema: The columns; default: `Schema.criteo()`.

        Returns:
            The `Vocabulary`.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If an argument is out of range, there are no valid rows, or a
                cell of a frame is not valid.
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

    @classmethod
    def without_values(cls, schema: Schema) -> "Vocabulary | None":
        """Return the vocabulary of a schema whose tables all hash or grow.

        Args:
            schema: The columns.

        Returns:
            The vocabulary, which needs no pass over the rows; `None` if some table
            lists its values, or a transform learns numbers.
        """
        numbers = range(len(schema.tables))
        numberings = [numbering_of(schema, number) for number in numbers]
        if schema.is_learned or None in numberings:
            return None
        return cls.of_numberings(numberings, schema=schema)

    @property
    def numberings(self) -> list[Any]:
        """The numbering of each table."""
        return list(self._numberings)

    @property
    def sizes(self) -> list[int]:
        """Numbers of ids of the tables, 0 included: their vocabulary sizes."""
        return [1 + len(numbering) for numbering in self._numberings]

    def values(self, feature: str) -> list[bytes]:
        """Return the values of a feature (`"C1"`) in the order of ids, from 1."""
        return self.numbering_of(feature).values()

    def counts(self, feature: str) -> list[int]:
        """Return the count of each value in `values(feature)`."""
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
        """SHA-256, in hex, of the values in order, which determine the ids."""
        digest = hashlib.sha256(b"vocabulary\n")
        digest.update(schema_part.features_digest(self.schema, self.learned))
        for table, numbering in zip(self.schema.tables, self._numberings, strict=True):
            if isinstance(numbering, GrowingNumbering):
                digest.update(f"{table}\tgrowing {numbering.rows}\n".encode())
                continue
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

    def save(self, path: str | os.PathLike) -> None:
        """Write the vocabulary to one file; an existing file is replaced.

        The first line is a header. A line for each value follows in the order of ids
        (table, tab, count, tab, value; bytes without an encoding), then a checksum.
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
    def _from_file(cls, header: dict[str, Any], lines: memoryview):
        header.pop("kind")
        sizes, (schema, learned) = header.pop("sizes"), schema_part.take(header)
        numberings: list[Any] = []
        place = 0
        for number, (table, size) in enumerate(zip(schema.tables, sizes, strict=True)):
            hashed = numbering_of(schema, number)
            if hashed is not None:
                numberings.append(hashed)
                continue
            numbering, place = read_numbering(lines, place, table, size - 1)
            numberings.append(numbering)
        if place != len(lines):
            raise UserError(
                "The numbers of values in the vocabulary file differ from its header."
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

    def __repr__(self):
        return (
            f"<Vocabulary of {sum(map(len, self._numberings)):,} values, "
            f"min_count={self.min_count}, from {self.num_rows:,} rows>"
        )


def load(path: str | os.PathLike) -> Vocabulary | HashVocabulary | RecordIds:
    """Read a vocabulary file of any kind.

    Raises:
        ValueError: If the file is of another kind, truncated or damaged.
    """
    kinds = (Vocabulary, HashVocabulary, SharedHashVocabulary, RecordIds)
    return checked_file.load(path, kinds)


def check_limits(min_count: int, max_size: int | None) -> None:
    """Check limits of a vocabulary, and raise an error if they are out of range."""
    if min_count < 1:
        raise UserError(
            f"`min_count` must be at least 1. Received: min_count={min_count!r}"
        )
    if max_size is not None and max_size < 1:
        raise UserError(
            "`max_size` must be at least 1 (id 0), or None for no limit. "
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
        raise UserError(f"The values of {table} must be distinct: one is repeated.")
