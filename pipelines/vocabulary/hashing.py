"""Ids by hashing, without a pass over the data."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from pipelines.formats.fields import Values
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.vocabulary import checked_file, schema_part
from pipelines.vocabulary.base import TableVocabulary
from pipelines.vocabulary.siphash import hash_values

# The key of the hash has two words: the number of the table (from 1), then "dlrm" in
# ASCII.
HASH_KEY = 0x646C726D
NUM_FINGERPRINTS = (1 << 63) - 1  # ids of growing tables, 0 included


@dataclasses.dataclass(frozen=True)
class HashNumbering:
    """The ids of a table by hashing, as in `HashVocabulary`.

    Args:
        num_buckets: Number of ids, including 0.
        key: First word of the key of the hash.
    """

    num_buckets: int
    key: int
    num_bytes: ClassVar[int] = 0

    def __len__(self) -> int:
        return self.num_buckets - 1

    def load(self) -> "HashNumbering":
        """Return itself, as it is already in memory."""
        return self

    def find(self, values: Values) -> np.ndarray:
        """Return ids of distinct values, of `values.keys` and `values.texts`.

        They are int32 if all ids fit, and int64 otherwise.
        """
        hashes = hash_values(values, (self.key, HASH_KEY))
        ids = 1 + (hashes % np.uint64(self.num_buckets - 1)).astype(np.int64)
        if len(values.keys) and values.keys[0] == 0:
            ids[0] = 0
        return ids if self.num_buckets > 1 << 31 else ids.astype(np.int32)

    def values(self) -> list[bytes]:
        """Return an empty list: hashing accepts any value and stores none."""
        return []

    @property
    def counts(self) -> np.ndarray:
        """An empty array: hashing stores no counts."""
        return np.zeros(0, np.int64)


@dataclasses.dataclass(frozen=True)
class GrowingNumbering(HashNumbering):
    """The ids of a growing table: fingerprints of values, 63 bits.

    The id is that of `HashNumbering` with 2^63 - 1 buckets: `1 + h % (2^63 - 2)`.

    Args:
        num_buckets: Number of ids, `NUM_FINGERPRINTS`.
        key: First word of the key of the hash.
        rows: Number of rows of the table.
    """

    rows: int = 2

    def __len__(self) -> int:
        return self.rows - 1


def numbering_of(schema: Schema, number: int) -> HashNumbering | None:
    """Return the numbering of a table that needs no values; `None` for others.

    Args:
        schema: The columns.
        number: Position of the table in `schema.tables`.
    """
    table = list(schema.tables)[number]
    growing, buckets = (schema.option(table, n) for n in ("growing", "hash_buckets"))
    if growing is not None:
        return GrowingNumbering(NUM_FINGERPRINTS, number + 1, growing.rows)
    return None if buckets is None else HashNumbering(buckets, number + 1)


class HashVocabulary(TableVocabulary):
    """Ids by hashing, without a pass over the data; several values may share an id.

    The id of a value of table number k (1 for the first, C1) is `1 + h % (size - 1)`,
    where h is the SipHash-2-4 of the value's bytes, an unsigned 64-bit number, with the
    128-bit key made of the two little-endian 64-bit words k and 0x646C726D. Id 0 stands
    for a missing value.

    Args:
        num_buckets: Number of ids of each table, including 0: one number for all
            tables or one for each, at least 2. `hash_buckets` in the schema take
            precedence over a single number.
        schema: The columns; default: `Schema.criteo()`. It must not have transforms or
            buckets that are learned from rows.

    Raises:
        ValueError: If the number of sizes is not that of the tables, a size is too
            small, or the schema has transforms or buckets to learn.

    Example:

    >>> import pipelines.vocabulary
    >>> pipelines.vocabulary.HashVocabulary(100_000).sizes[:3]
    [100000, 100000, 100000]

    Reference:
        Aumasson and Bernstein 2012, "SipHash: a fast short-input PRF". This is
        `tf.strings.to_hash_bucket_strong(value, size - 1, [k, 0x646C726D])`.
    """

    _kind = "hash"

    def __init__(self, num_buckets: int | Sequence[int], schema: Schema | None = None):
        self.schema = Schema.criteo() if schema is None else schema
        tables = list(self.schema.tables)
        received = num_buckets
        if hasattr(num_buckets, "__index__"):
            own = [self.schema.option(table, "hash_buckets") for table in tables]
            num_buckets = [num_buckets if size is None else size for size in own]
            growing = [self.schema.option(table, "growing") for table in tables]
            num_buckets = [
                size if rules is None else rules.rows
                for size, rules in zip(num_buckets, growing, strict=True)
            ]
        sizes = [int(size) for size in num_buckets]
        if len(sizes) != len(tables) or min(sizes) < 2:
            raise UserError(
                f"`num_buckets` must be an integer or {len(tables)} integers, each at "
                "least 2 (id 0 is for missing values). "
                f"Received: num_buckets={received!r}"
            )
        if self.schema.is_learned:
            raise UserError(
                "Hashing makes no pass over the data, so it cannot learn the means or "
                "quantiles that the schema asks for. Choose other transforms, or set "
                "`hash_buckets` for each sparse feature in the schema instead."
            )
        self._sizes = sizes

    @property
    def numberings(self) -> list[HashNumbering]:
        """The numbering of each table."""
        numberings: list[HashNumbering] = []
        for k, size in enumerate(self._sizes):
            own = numbering_of(self.schema, k) if self.schema.has_growing else None
            is_growing = isinstance(own, GrowingNumbering)
            hashed = HashNumbering(size, k + 1)
            numberings.append(own if own is not None and is_growing else hashed)
        return numberings

    @property
    def sizes(self) -> list[int]:
        """Vocabulary sizes: the number of ids of each table, including 0."""
        return list(self._sizes)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of everything that determines the ids."""
        return self._digest(f"siphash-2-4 {HASH_KEY:#x} {self._sizes}")

    def _digest(self, content: str) -> str:
        features = schema_part.features_digest(self.schema, {})
        return hashlib.sha256(features + content.encode()).hexdigest()

    def save(self, path: str | os.PathLike) -> None:
        """Write the vocabulary sizes to one small file."""
        header = {"kind": self._kind, "sizes": self._sizes}
        header |= schema_part.describe(self.schema, {})
        checked_file.write(path, header, [])

    @classmethod
    def _from_file(cls, header: dict[str, Any], lines: memoryview):
        del lines
        schema, _ = schema_part.take(header)
        return cls(header["sizes"], schema)

    def __repr__(self):
        return f"<HashVocabulary of {sum(self._sizes):,} ids>"


class SharedHashVocabulary(HashVocabulary):
    """Ids by hashing, in one table that all features share.

    The id of a value is the same as in `HashVocabulary(num_rows)`. The feature is part
    of the hash, so equal values of two features have different rows unless they
    collide. Row 0 stands for empty fields of all features.

    Args:
        num_rows: Number of rows of the table, including row 0; at least 2.
        schema: The columns; default: `Schema.criteo()`.

    Raises:
        ValueError: If `num_rows` is too small.

    Example:

    >>> import pipelines.criteo, pipelines.vocabulary
    >>> vocabulary = pipelines.vocabulary.SharedHashVocabulary(1_000_001)
    >>> (table,) = pipelines.criteo.Parser(vocabulary).spec(embedding_dim=16).tables
    >>> table.vocabulary_size, len(table.features)
    (1000001, 26)

    Reference:
        PaddleRec's Criteo models: `hash(number of the feature + value) % 1000001`, with
        Python's built-in hash.
    """

    is_shared = True
    _kind = "shared hash"

    def __init__(self, num_rows: int, schema: Schema | None = None):
        if not hasattr(num_rows, "__index__"):
            raise UserError(
                "`num_rows` must be an integer of at least 2 (row 0 is for empty "
                f"fields). Received: num_rows={num_rows!r}"
            )
        schema = Schema.criteo() if schema is None else schema
        if schema.has_growing:
            raise UserError(
                "A table that all features share cannot grow: leave `growing` or "
                "`shared_table` out."
            )
        num_features = len(schema.sparse)
        super().__init__([num_rows] * len(schema.tables), schema)
        self._sizes = [num_rows] * num_features

    @functools.cached_property
    def by_feature(self) -> list[HashNumbering]:
        """The numbering of each feature, which is part of the hash."""
        return [HashNumbering(size, k + 1) for k, size in enumerate(self._sizes)]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of everything that determines the ids and the table."""
        return self._digest(f"siphash-2-4 {HASH_KEY:#x} shared {self._sizes[0]}")

    @classmethod
    def _from_file(cls, header: dict[str, Any], lines: memoryview):
        del lines
        schema, _ = schema_part.take(header)
        return cls(header["sizes"][0], schema)

    def __repr__(self):
        return f"<SharedHashVocabulary of {self._sizes[0]:,} ids>"


def hash_vocabulary(
    num_buckets: int, is_shared: bool, schema: Schema | None = None
) -> HashVocabulary:
    """Return a vocabulary that hashes, with the schema's tables or a shared table."""
    kind = SharedHashVocabulary if is_shared else HashVocabulary
    return kind(num_buckets, schema)
