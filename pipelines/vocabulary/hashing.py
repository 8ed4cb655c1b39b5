"""Ids by hashing: no pass over the data."""

import functools
import hashlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.formats.fields import Values
from pipelines.formats.line_rules import NUM_SPARSE
from pipelines.runtime import UserError
from pipelines.vocabulary import checked_file
from pipelines.vocabulary.siphash import hash_values

# Key words of the hash: the number of the feature (1 for C1), then "dlrm" in ASCII.
HASH_KEY = 0x646C726D


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

    is_shared = False
    _kind = "hash"

    def __init__(self, num_buckets: int | Sequence[int]):
        if hasattr(num_buckets, "__index__"):
            num_buckets = [num_buckets] * NUM_SPARSE
        sizes = [int(size) for size in num_buckets]
        if len(sizes) != NUM_SPARSE or min(sizes) < 2:
            raise UserError(
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

    def make_lookup(self, asset_dir: str | None = None) -> Any:
        """Make the `tf.Module` that hashes values; it needs no files."""
        from pipelines.vocabulary.lookups import HashLookup

        del asset_dir
        return HashLookup(self._sizes, HASH_KEY)

    def find(self, feature: int, values: Values) -> np.ndarray:
        """Ids of distinct values of one feature; see `Vocabulary.find`."""
        hashes = hash_values(values, (feature + 1, HASH_KEY))
        ids = 1 + (hashes % np.uint64(self._sizes[feature] - 1)).astype(np.int64)
        if len(values.keys) and values.keys[0] == 0:
            ids[0] = 0
        return ids.astype(np.int32)

    def save(self, path: str | os.PathLike) -> None:
        """Write the numbers of ids to one small file."""
        checked_file.write(path, {"kind": self._kind, "sizes": self._sizes}, [])

    @classmethod
    def load(cls, path: str | os.PathLike) -> "HashVocabulary":
        """Read a file written by `save`.

        Raises:
            ValueError: If it is something else, is truncated or damaged.
        """
        return checked_file.load(path, (cls,))

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


class SharedHashVocabulary(HashVocabulary):
    """Ids by hashing, in one table that all features read.

    The id of a value is that of `HashVocabulary(num_rows)`: the feature is part of the
    hash, so that equal values of two features have rows of their own, as far as rows
    reach. Row 0 is that of empty fields of all features.

    Args:
        num_rows: Rows of the table, row 0 included; at least 2.

    Raises:
        ValueError: If there are too few.

    Example:

    >>> import pipelines.criteo, pipelines.vocabulary
    >>> vocabulary = pipelines.vocabulary.SharedHashVocabulary(1_000_001)
    >>> (table,) = pipelines.criteo.Parser(vocabulary).spec(embedding_dim=16).tables
    >>> table.vocabulary_size, len(table.features)
    (1000001, 26)

    Reference:
        PaddleRec's Criteo models: `hash(number of the feature + value) % 1000001`, by
        Python's own hash.
    """

    is_shared = True
    _kind = "shared hash"

    def __init__(self, num_rows: int):
        if not hasattr(num_rows, "__index__"):
            raise UserError(
                "`num_rows` must be an integer, at least 2 (row 0 is for empty "
                f"fields). Received: num_rows={num_rows!r}"
            )
        super().__init__(num_rows)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of what decides the ids and the table."""
        content = f"siphash-2-4 {HASH_KEY:#x} shared {self._sizes[0]}"
        return hashlib.sha256(content.encode()).hexdigest()

    @classmethod
    def _from_file(cls, header: dict[str, Any], lines: list[bytes]):
        del lines
        return cls(header["sizes"][0])

    def __repr__(self):
        return f"<SharedHashVocabulary of {self._sizes[0]:,} ids>"


def hash_vocabulary(num_buckets: int, is_shared: bool) -> HashVocabulary:
    """A vocabulary that hashes, with a table for each feature or one for all."""
    kind = SharedHashVocabulary if is_shared else HashVocabulary
    return kind(num_buckets)
