"""Models that score lines: `serving_tsv` of a SavedModel, or a Keras model."""

import os
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipelines.pipeline_errors import shorten
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.vocabulary.record_ids import RecordIds
from tf_dlrm.serving import existing_versions

SIGNATURES = ("serving_tsv", "serving_lines")
_SCHEMA = pathlib.Path("assets.extra") / "schema.json"
_GRAPH = "saved_model.pb"


class Source(NamedTuple):
    """The files of a model, which identify it.

    Attributes:
        path: Folder of the files.
        files: For each file: name in the folder, size in bytes, time of change in ns.
    """

    path: str
    files: list[tuple[str, int, int]]

    @classmethod
    def of(cls, path: str | os.PathLike, names: Iterable) -> "Source":
        """Return the source with the named files of a folder."""
        found = []
        for name in sorted(map(str, names)):
            status = (pathlib.Path(path) / name).stat()
            found.append((name, status.st_size, status.st_mtime_ns))
        return cls(str(path), found)


class Model(NamedTuple):
    """A function that scores lines, and the files that it was loaded from.

    Attributes:
        score: Function that maps `(B,)` lines, a string tensor, to `(B,)` float32
            probabilities. Several threads may call it. A line that is not a valid
            row raises `tf.errors.InvalidArgumentError`.
        source: The files of the model.
        schema: The columns of the lines; default: Criteo's.
    """

    score: Callable[[tf.Tensor], np.ndarray]
    source: Source
    schema: Schema = Schema.criteo()


def find(path: str | os.PathLike) -> Source:
    """Find the files of a SavedModel, without loading it.

    Args:
        path: Folder of one version, or of all versions to find the newest.

    Raises:
        ValueError: If there is no SavedModel.
    """
    path = pathlib.Path(path)
    if not path.is_dir():
        raise UserError(f"There is no folder {path}: name the folder of a model.")
    if not (path / _GRAPH).exists():
        versions = existing_versions(path)
        if not versions:
            raise UserError(
                f"{path} contains no SavedModel and is not the folder of a run."
            )
        path = path / str(versions[-1])
        if not (path / _GRAPH).exists():
            raise UserError(f"{path}, the newest version, contains no SavedModel.")
    names = (file.relative_to(path) for file in path.rglob("*") if file.is_file())
    return Source.of(path, names)


def load(path: str | os.PathLike) -> Model:
    """Load a SavedModel that was exported with its parser; it needs no other files.

    Args:
        path: Folder of one version, or of all versions to load the newest.

    Returns:
        The model.

    Raises:
        ValueError: If there is no SavedModel, or it does not score raw lines.
    """
    source = find(path)
    try:
        loaded = tf.saved_model.load(source.path)
    except tf.errors.OpError as error:
        message = shorten(error)
        raise UserError(f"{path}: the SavedModel is damaged: {message}") from error
    name = _find_signature(loaded, source.path)

    def score(lines):
        # Call it through `loaded`: a signature does not keep its variables alive.
        return loaded.signatures[name](lines=lines)["probabilities"][:, 0].numpy()

    return Model(score, source, read_schema(source.path))


def of_keras(model, parser, source: Source) -> Model:
    """Return the `Model` of a Keras model and its parser.

    Args:
        model: A `DLRM`.
        parser: The `Parser` of the model.
        source: The files that they were loaded from.

    Raises:
        ValueError: If the parser cannot read lines, as its ids came with records.
    """
    if isinstance(parser.vocabulary, RecordIds):
        parser.vocabulary.refuse()

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string)], autograph=False)
    def score(lines):
        return model(parser.features(lines), training=False)[:, 0]

    return Model(lambda lines: score(lines).numpy(), source, parser.vocabulary.schema)


def read_schema(path: str | os.PathLike) -> Schema:
    """Return the schema of an exported model; Criteo's if the export has none."""
    file = pathlib.Path(path) / _SCHEMA
    return Schema.load(file) if file.exists() else Schema.criteo()


def _find_signature(loaded, path):
    names = sorted(loaded.signatures)
    found = [name for name in SIGNATURES if name in names]
    if not found:
        raise UserError(
            f"{path} has no signature {' or '.join(SIGNATURES)}, which scores raw "
            f"lines; it has {', '.join(names) or 'none'}. Export the model with its "
            "parser: tf-dlrm export --model RUN, or "
            "tf_dlrm.export_saved_model(model, base_dir, preprocessor=parser)."
        )
    signature = loaded.signatures[found[0]]
    inputs = sorted(signature.structured_input_signature[1])
    outputs = sorted(signature.structured_outputs)
    if inputs != ["lines"] or "probabilities" not in outputs:
        raise UserError(
            f"{path}: {found[0]} must take `lines` and return `probabilities`. "
            f"Received: {inputs} -> {outputs}"
        )
    return found[0]
