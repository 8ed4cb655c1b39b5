"""Find logs and folders of records, and count their rows and values."""

import dataclasses
import os
import pathlib

import numpy as np

from pipelines import vocabulary as vocabularies
from pipelines.compression import compression_of, read_start
from pipelines.files import Paths, expand_paths
from pipelines.formats import tables
from pipelines.formats.diagnosis import no_rows
from pipelines.formats.layout import Wanted
from pipelines.formats.scanning import ChunkReader, scan, take_apart
from pipelines.formats.tables import is_parquet
from pipelines.multi_hot import MultiHot
from pipelines.prepare import VOCABULARY, WORK
from pipelines.progress import bar
from pipelines.records.layout import MANIFEST, Manifest
from pipelines.runtime import UserError, disk, remote_files
from pipelines.sampling import NegativeSampling
from pipelines.schema import Schema
from pipelines.vocabulary import Vocabulary
from pipelines.vocabulary.record_ids import RecordIds

_FEW_ROWS = 100_000


def find_records(paths: Paths) -> str | None:
    """Return the folder of records that `paths` names, or `None` if it names files.

    Raises:
        FileNotFoundError: If the folder contains records that are not finished.
    """
    if not isinstance(paths, str | os.PathLike):
        if len(paths) != 1:
            return None
        (paths,) = paths
    folder = pathlib.Path(paths)
    if not folder.is_dir():
        return None
    if (folder / WORK).is_dir():
        Manifest.load(folder)  # raises an error for unfinished records
    return os.fspath(folder) if (folder / MANIFEST).is_file() else None


def describe_data(train_paths: Paths, valid_paths: Paths | None) -> dict:
    """Return the facts that identify the data of a run, for its `config.json`.

    Files are identified by their path and the fingerprint of their content.
    """
    folder = find_records(train_paths)
    if folder is not None:
        shards = Manifest.load(folder).shards
        paths = [shard.path(folder, part) for shard in shards for part in shard.files]
        files = {"records": [os.path.join(folder, MANIFEST), *paths]}
        data = {"records": os.path.abspath(folder)}
    else:
        files = {
            "train": expand_paths(train_paths),
            "valid": expand_paths(valid_paths) if valid_paths else [],
        }
        data = {k: [remote_files.absolute(p) for p in v] for k, v in files.items()}
    return data | {"content": {k: disk.fingerprints(v) for k, v in files.items()}}


def rate_of(manifest: Manifest) -> float:
    """Return the negative sampling rate of records; 1 if they were not sampled."""
    return manifest.origin.get("options", {}).get("negative_sampling_rate", 1.0)


def load_vocabulary(folder, manifest: Manifest):
    """Return the vocabulary of the ids of records.

    It is `RecordIds` for records that were written without a vocabulary.

    Raises:
        ValueError: If it is missing, or not the vocabulary of the records.
    """
    path = pathlib.Path(folder) / VOCABULARY
    if not path.exists() and manifest.vocabulary_digest is None:
        columns = manifest.schema
        is_soft = any(shard.has_soft_labels(folder) for shard in manifest.shards)
        return RecordIds(
            columns.dense, columns.sparse, columns.vocabulary_sizes, is_soft
        )
    if not path.exists():
        raise UserError(
            f"{folder} contains no {VOCABULARY}, which `tf-dlrm prepare` writes. Copy "
            "it there, or prepare the records again."
        )
    vocabulary = vocabularies.load(path)
    if vocabulary.digest != manifest.vocabulary_digest:
        raise UserError(f"{path} is not the vocabulary of the records in its folder.")
    return vocabulary


def expander_of(manifest: Manifest) -> MultiHot | None:
    """Return the `MultiHot` that expanded the rows of records, or `None`.

    A model of such rows needs the same bags in evaluation and serving.
    """
    config = manifest.origin.get("multi_hot")
    return None if config is None else MultiHot.from_config(config)


def build_vocabulary(
    paths: Paths,
    min_count: int = 10,
    max_size: int | None = None,
    quarantine=None,
    schema: Schema | None = None,
) -> Vocabulary:
    """Count the values of labelled files, with progress.

    Args:
        paths: Files, as in `pipelines.files.expand_paths`.
        min_count: Number of times that a value must occur to get an id.
        max_size: Maximum number of ids of a feature; `None`: no limit.
        quarantine: Collects bad rows.
        schema: The columns; default: `Schema.criteo()`.
    """
    with bar("Counting values") as update:
        return Vocabulary.build(paths, min_count, max_size, update, quarantine, schema)


def check_rows(paths, quarantine, schema: Schema):
    """Read labelled rows once, only to find bad rows."""
    done = 0
    with bar("Checking validation rows") as update:
        for block in scan(paths, quarantine, schema):
            done += block.rows.num_lines
            update(done)
    quarantine.check()
    if quarantine.num_rows == quarantine.num_bad:
        raise UserError(no_rows(paths, schema))


def estimate_rows(paths) -> int | None:
    """Estimate the number of rows from file sizes; `None` if that is not possible."""
    total = 0
    for path in expand_paths(paths):
        if is_parquet(path):
            total += tables.count_rows(path)
            continue
        if compression_of(path):
            return None
        start = read_start(path, 1 << 20)
        bytes_a_line = max(start.rfind(b"\n") + 1, 1) / max(start.count(b"\n"), 1)
        total += remote_files.size_of(path) / bytes_a_line
    return round(total)


def are_worth_compiling_for(paths: Paths, split: str = "test") -> bool:
    """Return True if there are enough rows for XLA to save more time than it costs.

    Args:
        paths: Files, or one folder of records.
        split: Name of the split, for records.
    """
    folder = find_records(paths)
    if folder is None:
        num_rows = estimate_rows(paths)
        return num_rows is None or num_rows >= _FEW_ROWS
    return Manifest.load(folder).num_rows(split) >= _FEW_ROWS


def count_rows(paths, schema: Schema, sampling: NegativeSampling | None = None) -> int:
    """Count lines, including bad ones, or those that a sampling keeps."""
    reader = ChunkReader(schema)
    total = done = 0
    with bar("Counting rows") as update:
        for file, path in enumerate(paths):
            if sampling is None and reader.is_table(path):
                total += tables.count_rows(path)
                continue
            first = place = 0
            while (chunk := reader.read(path, place)).size:
                if sampling is None:
                    total += chunk.num_rows
                else:
                    rows = first + np.arange(chunk.num_rows)
                    labels = _are_clicks(reader, path, chunk)
                    total += int(sampling.keep(file, rows, labels).sum())
                place += chunk.size
                first += chunk.num_rows
                done += chunk.num_rows
                update(done)
    return total


def _are_clicks(reader, path, chunk):
    """Return True for lines that are clicks; a bad label counts as no click."""
    layout = reader.layout(path)
    schema = layout.schema
    only_label = dataclasses.replace(schema, dense=(), sparse=schema.sparse[:1])
    layout = dataclasses.replace(layout, schema=only_label)
    rows = take_apart(chunk.content, layout, Wanted())
    labels = np.zeros(rows.num_lines, bool)
    good = np.ones(rows.num_lines, bool)
    good[[position for position, *_ in rows.bad]] = False
    labels[good] = rows.labels != 0
    return labels
