"""Files that are there in full, or not at all: written beside, renamed into place."""

import contextlib
import gzip
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def _import_alone(name):
    """Import a module of `tf_dlrm.runtime` without the package and its TensorFlow.

    Half of the commands do without TensorFlow. It is the same module as for others.
    """
    full_name = f"tf_dlrm.runtime.{name}"
    if full_name not in sys.modules:
        package = importlib.util.find_spec("tf_dlrm")  # found, not imported
        places = [f"{place}/runtime" for place in package.submodule_search_locations]
        spec = importlib.machinery.PathFinder.find_spec(full_name, places)
        module = importlib.util.module_from_spec(spec)
        sys.modules[full_name] = module
        spec.loader.exec_module(module)
    return sys.modules[full_name]


remote_files = _import_alone("remote_files")  # before `disk`, which imports it
disk = _import_alone("disk")
locks = _import_alone("locks")
_swept = set()  # folders


@contextlib.contextmanager
def replacing(path: str | os.PathLike, what: str = "the file") -> Iterator[BinaryIO]:
    """Opens a file that appears at `path`, whole, only when the block succeeds.

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
    """Writes a text file as UTF-8; its folder is made if it is not there."""
    with disk.explaining(what, path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(path, what) as file:
        file.write(text.encode())
