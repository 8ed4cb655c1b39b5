"""The ids in records, for runs on records without a vocabulary."""

import functools
import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any, NoReturn

from pipelines.runtime import UserError
from pipelines.schema import Dense, Label, Schema, Sparse
from pipelines.vocabulary import checked_file


class RecordIds:
    """The features of records that `records.Writer` or `tf-dlrm generate` wrote.

    There are vocabulary sizes but no values: a model of such records is evaluated on
    records and served by `serving_default` and `serving_ragged`, which take ids.

    Args:
        dense: Names of the dense features.
        sparse: Names of the sparse features.
        sizes: Number of ids of each sparse feature.
        soft_labels: Whether labels are probabilities.
    """

    is_shared = False
    learned: dict[str, Any] = {}
    _kind = "ids"

    def __init__(
        self,
        dense: Sequence[str],
        sparse: Sequence[str],
        sizes: Sequence[int],
        soft_labels: bool = False,
    ):
        self._content = (list(dense), list(sparse), [int(s) for s in sizes])
        self._soft_labels = soft_labels
        self.schema = Schema(
            Label("label", soft=soft_labels),
            tuple(Dense(name) for name in dense),
            tuple(Sparse(name) for name in sparse),
        )

    @property
    def sizes(self) -> list[int]:
        """Vocabulary sizes: the number of ids of each table."""
        return list(self._content[2])

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256, in hex, of the features and their vocabulary sizes."""
        return hashlib.sha256(json.dumps(["ids", *self._content]).encode()).hexdigest()

    def refuse(self) -> NoReturn:
        """Raise the error that there are no values.

        Raises:
            ValueError: Always.
        """
        raise UserError(_NO_VALUES)

    def find(self, feature: int, values: Any) -> NoReturn:
        """Raise the error that there are no values."""
        del feature, values
        self.refuse()

    def make_lookup(self, asset_dir: str | None = None) -> None:
        """Return `None`: there are no values to look up."""

    def save(self, path: str | os.PathLike) -> None:
        """Write the features to one small file."""
        dense, sparse, sizes = self._content
        header = {"kind": self._kind, "dense": dense, "sparse": sparse, "sizes": sizes}
        checked_file.write(path, header | {"soft_labels": self._soft_labels}, [])

    @classmethod
    def _from_file(cls, header: dict[str, Any], lines: memoryview) -> "RecordIds":
        del lines
        names = ("dense", "sparse", "sizes", "soft_labels")
        return cls(*(header[name] for name in names))

    def __repr__(self) -> str:
        return f"<RecordIds of {sum(self.sizes):,} ids>"


_NO_VALUES = (
    "The model was trained on records without a vocabulary, so it cannot read lines of "
    "values. Evaluate it on records, or send ids to `serving_default`."
)
