"""Files that are there in full, or not at all: written beside, renamed into place."""

import contextlib
import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipelines.runtime import disk

_swept = set()  # folders


@contextlib.contextmanager
def replacing(path: str | os.PathLike, what: str = "the file") -> Iterator[BinaryIO]:
    """Open a file that appears at `path`, whole, only when the block succeeds.

    Bytes go to a temporary sibling, and to the disk before it takes the name. A path
    that ends in ".gz" is compressed, with no time and no name in its header: equal
    content gives equal bytes. What killed processes of this host left in the folder is
    removed.

    Args:
        path: The file; one that is there is replaced.
        what: What it is, for the message where it cannot be written.

    Raises:
        tf_dlrm.runtime.disk.WriteError: If it cannot be written, an `OSError`.

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
    if path.parent not in _swept:
        _swept.add(path.parent)
        disk.remove_abandoned(path.parent)
    temporary = path.with_name(disk.temporary_name(path.name))
    kept = f"The {path.name} that was there is as it was." if path.exists() else ""
    try:
        with disk.explaining(what, path, kept):
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


def write_text(path: str | os.PathLike, text: str, what: str = "the file") -> None:
    """Write a text file as UTF-8; its folder is made if it is not there."""
    with disk.explaining(what, path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, what) as file:
        file.write(text.encode())
