"""Files at local paths and at addresses of object stores, through `tf.io.gfile`.

A folder is complete or absent on a local disk. An object store has no folders to
rename: there, the file that makes a folder valid is written last.
"""

import hashlib
import os
import pathlib
from collections.abc import Mapping

import tensorflow as tf

from tf_dlrm.runtime import disk, remote_files
from tf_dlrm.runtime.types import PathLike


def is_local(path: PathLike) -> bool:
    """Return whether a path is on a file system of this machine."""
    return "://" not in os.fspath(path)


def join(folder: str, *names: str) -> str:
    """Join a folder or address and names."""
    return "/".join((folder.rstrip("/"), *names))


def normalize(path: PathLike) -> str:
    """Return a path or address as a string without `file:`."""
    return remote_files.to_local(os.fspath(path))


def read(path: str) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: If there is no such file.
    """
    try:
        if is_local(path):
            return pathlib.Path(path).read_bytes()
        with tf.io.gfile.GFile(path, "rb") as file:
            return bytes(file.read())
    except (FileNotFoundError, NotADirectoryError, tf.errors.NotFoundError):
        raise FileNotFoundError(f"There is no file {path}.") from None


def names_in(folder: str) -> list[str]:
    """Return the names in a folder without temporary ones; none if it is absent."""
    try:
        names = os.listdir(folder) if is_local(folder) else tf.io.gfile.listdir(folder)
    except (FileNotFoundError, NotADirectoryError, tf.errors.NotFoundError):
        return []
    return sorted(n.rstrip("/") for n in names if not n.startswith("."))


def size_of(path: str) -> int:
    """Return the size of a file in bytes."""
    return int(
        os.path.getsize(path) if is_local(path) else tf.io.gfile.stat(path).length
    )


def replace_file(path: str, content: bytes) -> None:
    """Write a file so that readers see the old or the new content."""
    if is_local(path):
        place = pathlib.Path(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        with disk.replacing_file(place.name, place) as staged:
            staged.write_bytes(content)
        disk.sync(place.parent)
        return
    temporary = f"{path}.tmp"
    tf.io.gfile.makedirs(os.path.dirname(path))
    _write_remote(temporary, content)
    tf.io.gfile.rename(temporary, path, overwrite=True)


def write_folder(folder: str, files: Mapping[str, bytes], last: str) -> None:
    """Write the files of a new folder, which must not exist.

    Args:
        folder: The folder.
        files: Content by name.
        last: Name of the file that makes the folder valid.

    Raises:
        FileExistsError: If the folder exists with that file.
        OSError: If a file cannot be written; the folder is then absent.
    """
    order = [*(name for name in files if name != last), last]
    if not is_local(folder):
        if tf.io.gfile.exists(join(folder, last)):
            raise FileExistsError(f"{folder} already exists.")
        tf.io.gfile.makedirs(folder)
        for name in order:
            _write_remote(join(folder, name), files[name])
        return
    final = pathlib.Path(folder)
    final.parent.mkdir(parents=True, exist_ok=True)
    with disk.explaining("the delta", final, "Published deltas are unchanged."):
        disk.remove_abandoned(final.parent)
        if final.exists():
            raise FileExistsError(f"{folder} already exists.")
        staging = final.with_name(disk.temporary_name(final.name))
        remove(str(staging))  # of an earlier failure of this process
        staging.mkdir()
        try:
            for name in order:
                (staging / name).write_bytes(files[name])
            disk.sync_tree(staging)
            os.rename(staging, final)
            disk.sync(final.parent)
        except BaseException:
            remove(str(staging))
            raise


def copy_tree(source: str, target: str) -> None:
    """Copy all files of a folder; either may be an address."""
    for path in list_tree(source):
        place = join(target, path)
        tf.io.gfile.makedirs(os.path.dirname(place))
        tf.io.gfile.copy(join(source, path), place, overwrite=True)


def digest(path: str) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    checksum = hashlib.sha256()
    with tf.io.gfile.GFile(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum.update(block)
    return checksum.hexdigest()


def list_tree(folder: str) -> list[str]:
    """Return the sorted paths of all files below a folder, relative to it."""
    paths = []
    walk = os.walk(folder) if is_local(folder) else tf.io.gfile.walk(folder)
    for root, _, names in walk:
        inner = root.rstrip("/")[len(folder.rstrip("/")) :].strip("/")
        paths += [join(inner, name) if inner else name for name in names]
    return sorted(paths)


def remove(folder: str) -> None:
    """Remove a folder and everything in it; do nothing if it is absent.

    A local folder is renamed first, so that it is complete or absent.
    """
    if not is_local(folder):
        if tf.io.gfile.exists(folder):
            tf.io.gfile.rmtree(folder)
        return
    path = pathlib.Path(folder)
    if not path.exists():
        return
    if not path.name.startswith("."):
        doomed = path.with_name(disk.temporary_name(path.name) + ".removed")
        remove(str(doomed))
        os.rename(path, doomed)
        path = doomed
    tf.io.gfile.rmtree(str(path))


def _write_remote(path: str, content: bytes) -> None:
    with tf.io.gfile.GFile(path, "wb") as file:
        file.write(content)
