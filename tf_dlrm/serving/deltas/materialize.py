"""Materialize a state of a published model: a version that stock servers load."""

import json
import pathlib
import shutil
from typing import Any

import tensorflow as tf

from tf_dlrm.runtime import disk
from tf_dlrm.runtime.types import PathLike
from tf_dlrm.serving import versions
from tf_dlrm.serving.c_library import Request, read_recorded
from tf_dlrm.serving.deltas import files
from tf_dlrm.serving.deltas.channel import Channel
from tf_dlrm.serving.deltas.state import ModelState
from tf_dlrm.serving.requests import record

_DESCRIPTION = "assets.extra/tf_dlrm.json"
_README = """# State {base}.{sequence} of a published model

This version is base {base} with its deltas up to number {sequence} applied. Every
weight equals that of a complete export at this step. `tf_dlrm_requests.json` contains
requests to every signature with the answers of this version; `README.md` of the base
shows requests as curl commands and in Python.
"""


def write_version(
    channel: Channel,
    state: ModelState,
    output_dir: PathLike,
    version: int | None = None,
) -> str:
    """Write a state as a new version of a SavedModel, complete or not at all.

    Args:
        channel: The channel.
        state: The state.
        output_dir: Local folder of versions, which a server watches.
        version: Number of the version; default: the next one.

    Returns:
        The path of the version.
    """
    base_dir = channel.version_dir(state.base.version)
    with versions.staged_directory(output_dir, version) as staged:
        for path in files.list_tree(base_dir):
            if path.split("/")[0] == "variables":
                continue
            place = staged.path / path
            place.parent.mkdir(parents=True, exist_ok=True)
            tf.io.gfile.copy(files.join(base_dir, path), str(place), overwrite=True)
        state.save(staged.path / "variables")
        _describe(state, staged.path)
        _record_again(staged.path)
    return str(pathlib.Path(output_dir) / str(staged.version))


def _describe(state: ModelState, staging: pathlib.Path) -> None:
    path = staging / _DESCRIPTION
    described = disk.read_json(path)
    described["delta"] = {
        "base": state.base.version,
        "sequence": state.sequence,
        "state": state.identity,
    }
    path.write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    text = _README.format(base=state.base.version, sequence=state.sequence)
    (staging / "assets.extra" / "README.md").write_text(text, encoding="utf-8")


def _record_again(staging: pathlib.Path) -> None:
    """Replace the recorded answers by those of this version."""
    signatures = tf.saved_model.load(str(staging)).signatures
    requests = []
    for request in read_recorded(staging):
        inputs = {name: tf.constant(value) for name, value in request.inputs.items()}
        answer = signatures[request.signature](**inputs)["probabilities"].numpy()
        requests.append(
            Request(request.signature, request.inputs, answer, request.margins)
        )
    record(requests, staging)


def read_version(path: PathLike) -> dict[str, Any] | None:
    """Return `base`, `sequence` and `state` of a materialized version, or `None`."""
    try:
        described = disk.read_json(pathlib.Path(path) / _DESCRIPTION)
    except (FileNotFoundError, ValueError):
        return None
    own = described.get("delta")
    return own if isinstance(own, dict) else None


def newest_version(output_dir: PathLike) -> pathlib.Path | None:
    """Return the path of the newest version in a folder, or `None`."""
    numbers = versions.existing_versions(output_dir)
    return pathlib.Path(output_dir) / str(numbers[-1]) if numbers else None


def remove_old_versions(output_dir: PathLike, keep: int) -> None:
    """Remove all but the newest `keep` versions that were materialized."""
    for number in versions.existing_versions(output_dir)[:-keep]:
        path = pathlib.Path(output_dir) / str(number)
        if read_version(path) is not None:
            doomed = path.with_name(disk.temporary_name(path.name))
            path.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)
