"""`TableVocabulary`: what vocabularies of values and of hashes have in common."""

import abc
import functools
import os
from typing import Any, ClassVar, Self

import numpy as np

from pipelines.formats.fields import Values
from pipelines.schema import Schema
from pipelines.vocabulary import checked_file


class TableVocabulary(abc.ABC):
    """A vocabulary with a numbering for each table.

    Attributes:
        schema: The columns.
        is_shared: Whether all features share one table; otherwise the tables are those
            of the schema.
        learned: Means, deviations and edges of buckets, by feature.
    """

    schema: Schema
    is_shared = False
    learned: dict[str, Any] = {}
    _kind: ClassVar[str]

    @property
    @abc.abstractmethod
    def numberings(self) -> list[Any]:
        """The numbering of each table."""

    @property
    @abc.abstractmethod
    def digest(self) -> str:
        """SHA-256, in hex, of everything that determines the ids."""

    @functools.cached_property
    def by_feature(self) -> list[Any]:
        """The numbering of each feature."""
        numberings = self.numberings
        return [numberings[table] for table in self.schema.table_of]

    def find(self, feature: int, values: Values) -> np.ndarray:
        """Return the ids of distinct values of one feature.

        Args:
            feature: Position of the feature in `schema.sparse`.
            values: The values; their `keys` and `texts` are used.

        Returns:
            int32 ids of the keys and then of the texts; 0 for unknown values.
        """
        return self.by_feature[feature].find(values)

    def make_lookup(self, asset_dir: str | None = None) -> Any:
        """Return the `tf.Module` that finds ids, a `lookups.Lookup`."""
        from pipelines.vocabulary.lookups import Lookup

        return Lookup(self, asset_dir)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read a file written by `save`.

        Raises:
            ValueError: If the file is of another kind, truncated or damaged.
        """
        return checked_file.load(path, (cls,))

    def __eq__(self, other):
        if not isinstance(other, TableVocabulary):
            return NotImplemented
        return self.digest == other.digest

    def __hash__(self):
        return hash(self.digest)
