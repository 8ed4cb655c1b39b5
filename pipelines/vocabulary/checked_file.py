"""A text file with a JSON header, lines and a checksum of its content."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterable
from typing import Any

from pipelines.runtime import UserError
from pipelines.whole_files import replacing

FORMAT_VERSION = 1
_MAGIC = b"# tf_dlrm vocabulary "
_CHECKSUM = b"# sha256 "


def write(path: str | os.PathLike, header: dict[str, Any], lines: Iterable[bytes]):
    """Write a file, which appears complete or not at all.

    Args:
        path: The file to write; an existing file is replaced.
        header: JSON-safe values for the first line.
        lines: The content, lines with their line ends.
    """
    header = {"format_version": FORMAT_VERSION, **header}
    first = _MAGIC + json.dumps(header, sort_keys=True).encode() + b"\n"
    checksum = hashlib.sha256()
    with replacing(path, "the vocabulary") as file:
        for line in itertools.chain([first], lines):
            file.write(line)
            checksum.update(line)
        file.write(_CHECKSUM + checksum.hexdigest().encode() + b"\n")


def read(path: str | os.PathLike) -> tuple[dict[str, Any], memoryview]:
    """Read a file written by `write`.

    Returns:
        The header and the bytes of the lines after it.

    Raises:
        ValueError: If the file is not such a file, is of a newer version, or was
            truncated or changed.
    """
    path = os.fspath(path)
    with open(path, "rb") as file:
        content = file.read()
    if not content.startswith(_MAGIC):
        raise UserError(f"{path}: not a vocabulary file of tf_dlrm.")
    end = content.rfind(b"\n", 0, -1) + 1
    expected = _CHECKSUM + hashlib.sha256(content[:end]).hexdigest().encode() + b"\n"
    if content[end:] != expected:
        raise UserError(
            f"{path}: the vocabulary file was truncated or changed: its checksum is "
            "missing or wrong. Copy the file again, or rebuild the vocabulary."
        )
    start = content.index(b"\n") + 1
    first = content[: start - 1]
    try:
        header = json.loads(first[len(_MAGIC) :])
        version = header.pop("format_version")
        is_newer = version > FORMAT_VERSION
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: the vocabulary file has a damaged header.") from None
    if is_newer:
        raise UserError(
            f"{path}: the vocabulary file has format version {version}; this version "
            f"of tf_dlrm reads up to {FORMAT_VERSION}. Update tf_dlrm."
        )
    return header, memoryview(content)[start:end]


def load(path: str | os.PathLike, classes) -> Any:
    """Read a vocabulary file as an object of the class that its kind names.

    Args:
        path: The file.
        classes: Classes to choose from, with `_kind` and `_from_file(header, lines)`,
            where `lines` is one `memoryview`.

    Raises:
        ValueError: If the file is of another kind, truncated or damaged.
    """
    header, lines = read(path)
    for cls in classes:
        if header["kind"] == cls._kind:
            return cls._from_file(header, lines)
    raise UserError(
        f"{os.fspath(path)} is a vocabulary of kind {header['kind']!r}, not "
        f"{classes[0]._kind!r}. Use `vocabulary.load`, which reads all kinds."
    )
