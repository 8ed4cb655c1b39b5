"""Files that are there in full, or not at all: written beside, renamed into place."""

import contextlib
import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file that appears at `path`, whole, only when the block succeeds.

    Bytes go to a temporary sibling, and to the disk before it takes the name. A path
    that ends in ".gz" is compressed, with no time and no name in its header: equal
    content gives equal bytes.

    Args:
        path: The file; one that is there is replaced.

    Example:

    >>> import os, tempfile
    >>> from pipelines import whole_files
    >>> path = os.path.join(tempfile.mkdtemp(), "a")
    >>> with whole_files.replacing(path) as file:
    ...     count, there = file.write(b"all of it"), os.path.exists(path)
    >>> there, os.path.getsize(path)
    (False, 9)
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as plain:
            if path.suffix == ".gz":
                with gzip.GzipFile("", "wb", 6, plain, mtime=0) as packed:
                    yield packed
            else:
                yield plain
            plain.flush()
            os.fsync(plain.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file as UTF-8; its folder is made if it is not there."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(text.encode())


def sync_folder(folder: str | os.PathLike) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
