"""Files that appear complete or not at all: written to a temporary name and renamed."""

import contextlib
import csv
import gzip
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from pipelines.runtime import disk

_swept = set()  # folders


@contextlib.contextmanager
def replacing(path: str | os.PathLike, what: str = "the file") -> Iterator[BinaryIO]:
    """Open a file that appears at `path`, complete, only if the block succeeds.

    Bytes are written to a temporary file in the same folder and synced to disk before
    it is renamed. If the path ends in ".gz", they are compressed, without time or name
    in the header, so that equal content gives equal bytes. Temporary files that killed
    processes of this host left in the folder are removed.

    Args:
        path: The file to write; an existing file is replaced.
        what: Description of the file, for the error message.

    Raises:
        tf_dlrm.runtime.disk.WriteError: An `OSError`, if it cannot be written.

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
    kept = f"The existing {path.name} is unchanged." if path.exists() else ""
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
    """Write a text file as UTF-8; make its folder if it does not exist."""
    with disk.explaining(what, path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, what) as file:
        file.write(text.encode())


def write_csv(path, rows: Iterable[Sequence], what: str = "the file") -> None:
    """Write rows as a CSV file, whose first row holds the names of the columns."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    write_text(path, text.getvalue(), what)
