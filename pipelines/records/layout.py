r"""The layout of a folder of records.

```
data/
  manifest.json                     written last: without it, the folder is unfinished
  train/part-00000_dense.npy        float32 (rows, num_dense), transformed
  train/part-00000_sparse.npy       int32 (rows, num_sparse) ids, -1 where missing;
                                    int64 with growing tables
  train/part-00000_labels.npy       uint8 (rows,), or float32 where labels are soft
```

If features have bags, `_sparse.npy` contains the concatenated ids of all bags, row by
row and feature by feature in each row, int32 `(ids,)`; `_lengths.npy`, uint16
`(rows, num_sparse)`, contains the length of each bag, and `_id_weights.npy`, float32
`(ids,)`, the weights of the ids, if any. Sample weights are in `_weights.npy`, float32
`(rows,)`. All files are plain NumPy files.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from pipelines.runtime import UserError, disk
from pipelines.whole_files import write_text

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PARTS = ("labels", "dense", "sparse", "lengths", "id_weights", "weights")
DTYPES = {
    "labels": "|u1",
    "dense": "<f4",
    "sparse": "<i4",
    "lengths": "<u2",
    "id_weights": "<f4",
    "weights": "<f4",
}
SOFT_LABELS = "<f4"
FINGERPRINTS = "<i8"  # ids that do not fit into int32


@dataclasses.dataclass(frozen=True)
class Schema:
    """The columns of records.

    Args:
        dense: Names of the dense features.
        sparse: Names of the sparse features.
        vocabulary_sizes: Number of ids of each sparse feature.

    Raises:
        ValueError: If a name is repeated, or a size is missing or not positive.
    """

    dense: tuple[str, ...]
    sparse: tuple[str, ...]
    vocabulary_sizes: tuple[int, ...]

    def __post_init__(self):
        for name in ("dense", "sparse"):
            object.__setattr__(self, name, tuple(map(str, getattr(self, name))))
        sizes = tuple(int(size) for size in self.vocabulary_sizes)
        object.__setattr__(self, "vocabulary_sizes", sizes)
        names = (*self.dense, *self.sparse)
        if len(set(names)) != len(names):
            raise UserError(f"Names of features must be distinct. Received: {names}")
        if len(sizes) != len(self.sparse) or min(sizes, default=1) < 1:
            raise UserError(
                "`vocabulary_sizes` must be a positive integer for each of the "
                f"{len(self.sparse)} sparse features. Received: {sizes}"
            )

    @property
    def id_dtype(self) -> str:
        """NumPy type of the ids: int64 for those of growing tables, else int32."""
        is_wide = max(self.vocabulary_sizes, default=0) > 1 << 31
        return FINGERPRINTS if is_wide else DTYPES["sparse"]

    @classmethod
    def criteo(cls, vocabulary_sizes) -> "Schema":
        """Return the schema with Criteo's columns, I1 .. I13 and C1 .. C26."""
        from pipelines import schema

        log = schema.Schema.criteo()
        return cls(log.dense_features, log.sparse_features, tuple(vocabulary_sizes))

    def feature_spec(self, embedding_dim: int = 16):
        """Return the `tf_dlrm.FeatureSpec` of a model for such records.

        Args:
            embedding_dim: Width of the embedding tables.
        """
        from tf_dlrm import EmbeddingTable, FeatureSpec

        return FeatureSpec(
            dense=self.dense,
            tables=[
                EmbeddingTable(name, size, embedding_dim)
                for name, size in zip(self.sparse, self.vocabulary_sizes, strict=True)
            ],
        )


@dataclasses.dataclass(frozen=True)
class Shard:
    """The files of consecutive rows.

    Attributes:
        split: Name of the split of the rows, such as `"train"`.
        name: Name of the shard, such as `"part-00000"`.
        num_rows: Number of rows.
        files: Size in bytes and SHA-256 in hex of each existing file, by part (see
            `PARTS`): `{"dense": [bytes, digest], ...}`. Lengths exist only if features
            have bags.
    """

    split: str
    name: str
    num_rows: int
    files: Mapping[str, tuple[int, str]]

    def path(self, folder, part: str) -> str:
        """Return the path of one of its files in the folder of the records."""
        return os.path.join(folder, self.split, f"{self.name}_{part}.npy")

    @property
    def has_bags(self) -> bool:
        """True if its features have bags of several ids."""
        return self.has("lengths")

    def has_soft_labels(self, folder) -> bool:
        """Return True if its labels are probabilities."""
        path = self.path(folder, "labels")
        with open(path, "rb") as file:
            return b"'<f4'" in file.read(128)

    def has(self, part: str) -> bool:
        """Return True if it has a file for this part."""
        return part in self.files


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The contents of a folder of records; written when the folder is complete.

    Attributes:
        schema: The columns.
        shards: All shards, split by split, in the order of their rows.
        vocabulary_digest: `digest` of the vocabulary of the ids, or `None`.
        origin: Options and inputs of the records, JSON-safe.
    """

    schema: Schema
    shards: tuple[Shard, ...]
    vocabulary_digest: str | None = None
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        return list(dict.fromkeys(shard.split for shard in self.shards))

    def shards_of(self, split: str) -> list[Shard]:
        """Return the shards of a split.

        Raises:
            ValueError: If there is no such split.
        """
        shards = [shard for shard in self.shards if shard.split == split]
        if not shards:
            raise UserError(
                f"There is no split {split!r}. The records have: "
                f"{', '.join(self.splits)}"
            )
        return shards

    def num_rows(self, split: str) -> int:
        """Return the number of rows of a split."""
        return sum(shard.num_rows for shard in self.shards_of(split))

    def save(self, folder) -> None:
        """Write `manifest.json`, which marks the folder as complete."""
        content = {
            "format": "tf_dlrm records",
            "format_version": FORMAT_VERSION,
            "num_rows": {split: self.num_rows(split) for split in self.splits},
            "schema": dataclasses.asdict(self.schema),
            "vocabulary_digest": self.vocabulary_digest,
            "origin": dict(self.origin),
            "shards": [dataclasses.asdict(shard) for shard in self.shards],
        }
        text = json.dumps(content, indent=1)
        path = pathlib.Path(folder) / MANIFEST
        write_text(path, f'{text[:-2]},\n "sha256": "{_digest(content)}"\n}}\n')

    @classmethod
    def load(cls, folder) -> "Manifest":
        """Read the manifest, and check that all files exist with the right size.

        Raises:
            FileNotFoundError: If there is no manifest: no records or unfinished ones.
            ValueError: If the manifest is damaged or of a newer version, or a file is
                missing or has another size.
        """
        path = pathlib.Path(folder) / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} contains no finished records: it has no {MANIFEST}. If "
                "`tf-dlrm prepare` was interrupted, run it again to resume."
            )
        content = disk.read_json(path)
        digest = content.pop("sha256", None)
        version = content.get("format_version", 0)
        if not isinstance(version, int) or digest is None:
            raise UserError(f"{path} is damaged: it has no checksum or no version.")
        if version > FORMAT_VERSION:
            raise UserError(
                f"{path}: format version {content['format_version']}; this version "
                f"of tf_dlrm reads up to {FORMAT_VERSION}. Update tf_dlrm."
            )
        if digest != _digest(content):
            raise UserError(f"{path} is damaged: its checksum is wrong.")
        try:
            shards = tuple(
                Shard(
                    **shard
                    | {"files": {k: tuple(v) for k, v in shard["files"].items()}}
                )
                for shard in content["shards"]
            )
            schema = Schema(**{k: tuple(v) for k, v in content["schema"].items()})
            rest = content["vocabulary_digest"], dict(content["origin"])
            manifest = cls(schema, shards, *rest)
            manifest._check_sizes(folder)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} is damaged: {type(error).__name__}: {error}"
            ) from None
        return manifest

    def _check_sizes(self, folder):
        for shard in self.shards:
            for part, (size, _) in shard.files.items():
                path = shard.path(folder, part)
                if not os.path.exists(path):
                    raise UserError(f"{path}: missing; the records are incomplete.")
                if os.path.getsize(path) != size:
                    raise UserError(
                        f"{path} has {os.path.getsize(path):,} bytes instead of the "
                        f"{size:,} in the manifest: it was truncated or changed."
                    )

    def verify(self, folder, progress=None) -> None:
        """Read every file and compare its SHA-256 with the manifest.

        Args:
            folder: The folder of the records.
            progress: Function that is called with the number of rows verified so far.

        Raises:
            ValueError: If a file was changed; the message names it.
        """
        done = 0
        for shard in self.shards:
            for part, (_, expected) in shard.files.items():
                path = shard.path(folder, part)
                with open(path, "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                if digest != expected:
                    raise UserError(f"{path} is damaged: its checksum is wrong.")
            done += shard.num_rows
            if progress is not None:
                progress(done)


def _digest(content) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
