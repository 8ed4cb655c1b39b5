"""Write records in shards, each of which appears complete or not at all."""

import contextlib
import hashlib
import io
import os
import pathlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from pipelines.records.batch import row_splits
from pipelines.records.layout import (
    DTYPES,
    MANIFEST,
    SOFT_LABELS,
    Manifest,
    Schema,
    Shard,
)
from pipelines.runtime import UserError, disk, locks

DEFAULT_ROWS_PER_SHARD = 1 << 20
_MAX_LENGTH = np.iinfo(np.uint16).max


class Writer:
    """Write the records of one split into a folder, and its manifest at the end.

    Args:
        folder: Folder of the records; made if it does not exist.
        schema: The columns.
        rows_per_shard: Rows in a shard; the last one may have fewer.
        split: Name of the split.
        vocabulary_digest: `digest` of the vocabulary of the ids, or `None`.
        origin: JSON-safe facts about the records, for the manifest.
        soft_labels: Whether labels are probabilities from 0 to 1.

    Use it in a `with` statement, which locks the folder against other processes.

    Raises:
        FileExistsError: If the folder already contains finished records.
        ValueError: If an argument is out of range, or another process is writing to the
            folder.

    Example:

    >>> import tempfile
    >>> from pipelines import records
    >>> folder = tempfile.mkdtemp()
    >>> schema = records.Schema(dense=["age"], sparse=["item"], vocabulary_sizes=[9])
    >>> with records.Writer(folder, schema) as writer:
    ...     writer.append(labels=[1, 0], dense=[[0.5], [1.5]], ids=[[3], [8]])
    >>> records.Manifest.load(folder).num_rows("train")
    2
    """

    def __init__(
        self,
        folder,
        schema: Schema,
        rows_per_shard: int = DEFAULT_ROWS_PER_SHARD,
        split: str = "train",
        vocabulary_digest: str | None = None,
        origin: Mapping | None = None,
        soft_labels: bool = False,
    ):
        self._folder, self._schema = folder, schema
        self._digest, self._origin = vocabulary_digest, dict(origin or {})
        self._check_free()
        self._shards = ShardWriter(
            folder, schema, rows_per_shard, split, soft_labels=soft_labels
        )
        self._lock = contextlib.ExitStack()

    def _check_free(self):
        if (pathlib.Path(self._folder) / MANIFEST).exists():
            raise FileExistsError(
                f"{self._folder} already contains finished records. Name another "
                "folder."
            )

    def append(
        self, labels, dense, ids, lengths=None, id_weights=None, weights=None
    ) -> None:
        """Add rows; the arguments are those of `ShardWriter.append`."""
        self._shards.append(labels, dense, ids, lengths, id_weights, weights)

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            stack.enter_context(locks.locked(self._folder))
            self._check_free()  # check again, now that the folder is locked
            self._lock = stack.pop_all()
        return self

    def __exit__(self, kind, error, trace):
        with self._lock:
            if kind is not None:
                self._shards.abandon()
                return
            shards = self._shards.finish()
            manifest = Manifest(self._schema, tuple(shards), self._digest, self._origin)
            manifest.save(self._folder)


class ShardWriter:
    """Write the shards of one split.

    Args:
        folder: Folder of the records.
        schema: The columns.
        rows_per_shard: Rows in a shard.
        split: Name of the split.
        finished: Shards that an earlier run wrote.
        on_shard: Function that is called with each finished `Shard`.
        soft_labels: Whether labels are probabilities from 0 to 1.
    """

    def __init__(
        self,
        folder,
        schema,
        rows_per_shard,
        split="train",
        finished=(),
        on_shard=None,
        soft_labels=False,
    ):
        if rows_per_shard < 1:
            raise UserError(
                f"`rows_per_shard` must be at least 1. Received: {rows_per_shard}"
            )
        self._folder, self._schema, self._split = folder, schema, split
        self._rows_per_shard = int(rows_per_shard)
        self._shards, self._on_shard = list(finished), on_shard
        self._num_shards = len(self._shards)
        self._files, self._num_rows = None, 0
        self._soft_labels = soft_labels
        self._dtypes = DTYPES | ({"labels": SOFT_LABELS} if soft_labels else {})
        self._dtypes["sparse"] = schema.id_dtype
        # Files are hashed and synced to disk while the next ones are written.
        self._closer, self._closing = ThreadPoolExecutor(1), []
        os.makedirs(os.path.join(folder, split), exist_ok=True)

    def append(
        self, labels, dense, ids, lengths=None, id_weights=None, weights=None
    ) -> None:
        """Add rows; pass the same optional arguments in every call.

        Args:
            labels: `(n,)`, 0 or 1, or with `soft_labels` from 0 to 1.
            dense: `(n, num_dense)` finite numbers.
            ids: `(n, num_sparse)` ids, -1 for a missing value; with `lengths`, the
                concatenated ids `(V,)` of all bags.
            lengths: `(n, num_sparse)` lengths of the bags, or `None`.
            id_weights: `(V,)` weights of the ids, or `None`; requires `lengths`.
            weights: `(n,)` sample weights, or `None`.

        Raises:
            ValueError: If a shape, a label or an id is wrong.
        """
        arrays = self._checked(labels, dense, ids, lengths, id_weights, weights)
        done = 0
        num_rows, id_ends = len(arrays["labels"]), None
        if lengths is not None:
            id_ends = row_splits(arrays["lengths"].sum(1, dtype=np.int64))
        while done < num_rows:
            if self._files is None:
                self._open(list(arrays))
            end = min(num_rows, done + self._rows_per_shard - self._num_rows)
            for part, file in self._files.items():
                rows = slice(done, end)
                if part in ("sparse", "id_weights") and id_ends is not None:
                    rows = slice(id_ends[done], id_ends[end])
                with disk.explaining("a shard of records", file.path):
                    file.write(arrays[part][rows])
            self._num_rows += end - done
            done = end
            if self._num_rows == self._rows_per_shard:
                self._close()

    def finish(self) -> list[Shard]:
        """Close the last shard and return all shards, at least one (maybe empty)."""
        if self._files is not None:
            self._close()
        if not self._num_shards:
            self._open(["labels", "dense", "sparse"])
            self._close()
        self._wait(0)
        self._closer.shutdown()
        return self._shards

    def abandon(self) -> None:
        """Remove unfinished files."""
        self._closer.shutdown()
        for file in (self._files or {}).values():
            with contextlib.suppress(OSError):  # flushing fails on a full disk
                file.remove()
        self._files = None

    def _checked(self, labels, dense, ids, lengths, id_weights, weights):
        schema = self._schema
        labels, dense, ids = np.asarray(labels), np.asarray(dense), np.asarray(ids)
        num_rows = len(labels)
        of_bags = (num_rows, len(schema.sparse))
        expected = {"labels": (labels, (num_rows,))}
        expected["dense"] = (dense, (num_rows, len(schema.dense)))
        if lengths is None:
            expected["sparse"] = (ids, of_bags)
        else:
            lengths = np.asarray(lengths)
            expected["lengths"] = (lengths, of_bags)
            expected["sparse"] = (ids, (int(lengths.sum()),))
            if id_weights is not None:
                expected["id_weights"] = (np.asarray(id_weights), ids.shape)
        if weights is not None:
            expected["weights"] = (np.asarray(weights), (num_rows,))
        for name, (array, shape) in expected.items():
            if array.shape != shape:
                raise ValueError(
                    f"`{name}` must have the shape {shape}. Received: {array.shape}"
                )
        self._check_labels(labels)
        self._check_numbers(dense)
        self._check_ids(ids, lengths)
        if lengths is not None and lengths.max(initial=0) > _MAX_LENGTH:
            raise UserError(
                f"A bag may have at most {_MAX_LENGTH:,} ids. "
                f"Received: a bag of {lengths.max():,}"
            )
        return {
            part: np.ascontiguousarray(expected[part][0], self._dtypes[part])
            for part in expected
        }

    def _check_labels(self, labels):
        if self._soft_labels:
            if not ((labels >= 0) & (labels <= 1)).all():
                raise ValueError("`labels` must be from 0 to 1.")
        elif not ((labels == 0) | (labels == 1)).all():
            raise ValueError(
                "`labels` must be 0 or 1; probabilities need `soft_labels=True`."
            )

    def _check_numbers(self, dense):
        if not np.isfinite(dense).all():
            row, column = np.argwhere(~np.isfinite(dense))[0]
            raise ValueError(
                f"Dense values must be finite. Received: {dense[row, column]} for "
                f"'{self._schema.dense[column]}' in row {row} of this call"
            )

    def _check_ids(self, ids, lengths):
        """Check that ids are in their tables; -1 stands for a missing one-hot value."""
        sizes = np.asarray(self._schema.vocabulary_sizes)
        if lengths is None:
            wrong = (ids < -1) | (ids >= sizes)
        else:
            features = np.tile(np.arange(len(sizes)), len(lengths))
            features = np.repeat(features, lengths.reshape(-1))
            wrong = (ids < 0) | (ids >= sizes[features])
        if wrong.any():
            place = np.argwhere(wrong)[0]
            feature = place[1] if lengths is None else features[place[0]]
            raise ValueError(
                f"Ids of '{self._schema.sparse[feature]}' must be in its table of "
                f"{sizes[feature]:,} ids. Received: {ids[tuple(place)]}"
            )

    def _open(self, parts):
        shapes = {
            "labels": (),
            "id_weights": (),
            "weights": (),
            "dense": (len(self._schema.dense),),
            "sparse": () if "lengths" in parts else (len(self._schema.sparse),),
            "lengths": (len(self._schema.sparse),),
        }
        shard = Shard(self._split, f"part-{self._num_shards:05d}", 0, {})
        self._files = {
            part: _NpyFile(
                shard.path(self._folder, part), self._dtypes[part], shapes[part]
            )
            for part in parts
        }
        self._num_shards, self._num_rows = self._num_shards + 1, 0

    def _close(self):
        name = f"part-{self._num_shards - 1:05d}"
        job = self._closer.submit(self._complete, self._files, name, self._num_rows)
        self._files, self._num_rows = None, 0
        self._closing.append(job)
        self._wait(2)

    def _wait(self, num_left):
        while len(self._closing) > num_left:
            self._closing.pop(0).result()

    def _complete(self, files, name, num_rows):
        folder = os.path.join(self._folder, self._split)
        with disk.explaining("a shard of records", os.path.join(folder, name)):
            described = {part: file.close() for part, file in files.items()}
            for file in files.values():
                file.put_in_place()
            disk.sync(folder)
        shard = Shard(self._split, name, num_rows, described)
        self._shards.append(shard)
        if self._on_shard is not None:
            self._on_shard(shard)


class _NpyFile:
    """A NumPy file of rows, under a temporary name until it is complete."""

    def __init__(self, path, dtype, row_shape):
        self.path, self._temporary = path, f"{path}.tmp"
        self._dtype, self._row_shape = np.dtype(dtype), row_shape
        self._num_rows = 0
        with disk.explaining("a shard of records", path):
            self._file = open(self._temporary, "wb")
            self._file.write(self._header())

    def write(self, rows):
        self._num_rows += len(rows)
        self._file.write(np.ascontiguousarray(rows))

    def close(self):
        """Complete the file; return its size and SHA-256.

        The number of rows in the header is only known at the end, so the complete file
        is read again to hash it, usually from the page cache.
        """
        self._file.seek(0)
        self._file.write(self._header())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        with open(self._temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return os.path.getsize(self._temporary), digest

    def put_in_place(self):
        os.replace(self._temporary, self.path)

    def remove(self):
        try:
            self._file.close()
        finally:
            os.unlink(self._temporary)

    def _header(self):
        """Return a header of NumPy's format 1.0, of the same length for any size."""
        header = io.BytesIO()
        shape = (self._num_rows, *self._row_shape)
        content = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, content)
        return header.getvalue()
