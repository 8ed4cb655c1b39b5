"""`Base`, `Manifest` and `Delta`: the links of a chain, and which one follows which."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tf_dlrm.serving.deltas import files
from tf_dlrm.serving.deltas import format as formats
from tf_dlrm.serving.deltas.format import DeltaError, Layout, TableRows


class Base(NamedTuple):
    """An export to which deltas are applied.

    Attributes:
        version: Version of the export.
        identity: SHA-256 of `base.json`, which has those of all its files.
        layout: Where it stores its weights.
        facts: The content of `base.json`.
    """

    version: int
    identity: str
    layout: Layout
    facts: dict[str, Any]


class Manifest(NamedTuple):
    """The description of a delta.

    Attributes:
        name: Name of the folder.
        first: Sequence number of the first change that it contains.
        sequence: Sequence number of the state that it leads to.
        parents: Identities of the states that it may be applied to.
        state: Identity of the state that it leads to.
        facts: The content of `manifest.json`.
    """

    name: str
    first: int
    sequence: int
    parents: tuple[str, ...]
    state: str
    facts: dict[str, Any]


class Delta(NamedTuple):
    """A delta whose checksums were verified.

    Attributes:
        manifest: Its description.
        tables: The rows that it replaces, by table.
        dense: All dense weights.
    """

    manifest: Manifest
    tables: dict[str, TableRows]
    dense: list[np.ndarray]


def to_manifest(facts: dict[str, Any], name: str, base: Base, path: str) -> Manifest:
    """Return the description of a delta after checking that it belongs to a base.

    Args:
        facts: The content of `manifest.json`.
        name: Name of the folder.
        base: The base.
        path: Path of the file for messages.

    Raises:
        DeltaError: If it belongs to another base, or lacks a value.
    """
    try:
        own, sequence, first = (
            facts["base"],
            int(facts["sequence"]),
            int(facts["first"]),
        )
        parents, state = tuple(facts["parents"]), facts.get("state") or facts["sha256"]
        version, identity = own["version"], own["sha256"]
    except (KeyError, TypeError, ValueError) as error:
        raise DeltaError("damaged", f"{path} lacks {error}.") from None
    if (version, identity) != (base.version, base.identity):
        raise DeltaError(
            "foreign",
            f"{path} belongs to base {version} ({identity[:8]}), not to base "
            f"{base.version} ({base.identity[:8]}).",
        )
    return Manifest(name, first, sequence, parents, state, facts)


def check_follows(manifest: Manifest, sequence: int, state: str) -> None:
    """Check that a delta may be applied to a state of its base.

    Args:
        manifest: Description of the delta.
        sequence: Sequence number of the state.
        state: Identity of the state.

    Raises:
        DeltaError: If the delta was applied already, another is missing before it, or
            it was made for another state.
    """
    name = f"Delta {manifest.sequence}"
    if manifest.sequence <= sequence:
        problem = f"{name} was applied already: the model is at sequence {sequence}."
        raise DeltaError("repeated", problem)
    if manifest.first > sequence + 1:
        raise DeltaError(
            "missing",
            f"{name} follows {manifest.first - 1}, but the model is at sequence "
            f"{sequence}: apply delta {sequence + 1} first.",
        )
    if state not in manifest.parents:
        raise DeltaError(
            "reordered",
            f"{name} was made for state {manifest.parents[0][:8]}, but the model at "
            f"sequence {sequence} is {state[:8]}: it has another history.",
        )


def describe_files(folder: str) -> dict[str, dict[str, Any]]:
    """Return size and checksum of each file below a folder, by its path."""
    return {
        path: {
            "bytes": files.size_of(files.join(folder, path)),
            "sha256": files.digest(files.join(folder, path)),
        }
        for path in files.list_tree(folder)
    }


def verify_files(folder: str, expected: Mapping[str, Mapping[str, Any]]) -> None:
    """Compare the files of a folder with what `describe_files` returned.

    Raises:
        DeltaError: If one is missing, truncated or damaged.
    """
    for name, facts in expected.items():
        path = files.join(folder, name)
        try:
            size = files.size_of(path)
        except Exception:  # of the operating system or of TensorFlow
            raise DeltaError("missing", f"There is no file {path}.") from None
        if size != facts["bytes"]:
            problem = f"{path} has {size:,} bytes, not {facts['bytes']:,}."
            raise DeltaError("truncated", problem)
        if files.digest(path) != facts["sha256"]:
            raise DeltaError("damaged", f"{path} does not match its checksum.")


def read_verified(path: str, facts: Mapping[str, Any] | None) -> bytes:
    """Return the content of a file whose size and checksum are known.

    Raises:
        DeltaError: If it is missing, truncated or damaged.
    """
    if facts is None:
        raise DeltaError("damaged", f"The manifest does not describe {path}.")
    try:
        content = files.read(path)
    except FileNotFoundError as error:
        raise DeltaError("missing", str(error)) from None
    if len(content) != facts["bytes"]:
        problem = f"{path} has {len(content):,} bytes, not {facts['bytes']:,}."
        raise DeltaError("truncated", problem)
    if formats.digest(content) != facts["sha256"]:
        raise DeltaError("damaged", f"{path} does not match its checksum.")
    return content
