"""Input files at remote addresses, such as `s3://bucket/day_0.gz`.

This module needs the standard library and `errors`, and Arrow to read an address. Arrow
takes keys, regions and endpoints from the usual settings: environment variables and
files of AWS, Google Cloud, Azure and Hadoop, or options of the address.
"""

import fnmatch
import functools
import io
import os
import re
import urllib.parse
import urllib.request
from typing import Any, BinaryIO

from tf_dlrm.runtime.errors import UserError

_SCHEMES = {
    "s3": "s3",
    "s3a": "s3",  # Hadoop's name
    "gs": "gs",
    "gcs": "gs",
    "hdfs": "hdfs",
    "viewfs": "viewfs",
    "abfs": "abfs",
    "abfss": "abfss",
}
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+)://?(?P<rest>.*)", re.DOTALL)
_PATTERN = re.compile(r"[*\[]")  # "?" begins the options of an address
_BUFFER_BYTES = 4 << 20  # bytes per request
_LONGEST_REASON = 300
_GOOGLE_SECONDS = "10"  # time limit for retries; the client's default is 15 minutes


def is_remote(path: str | os.PathLike) -> bool:
    """Return whether a path is an address and not an existing local file."""
    path = os.fspath(path)
    if not isinstance(path, str) or not _ADDRESS.fullmatch(path):
        return False
    return not os.path.exists(path)


def to_local(path: str) -> str:
    """Return the path of a `file:` address; return other paths unchanged.

    Raises:
        ValueError: If the address names another host.
    """
    if not path.lower().startswith("file:/") or os.path.exists(path):
        return path
    address = urllib.parse.urlsplit(path)
    if address.netloc not in ("", "localhost"):
        raise UserError(
            f"{path!r} names the host {address.netloc!r}. A local address has three "
            "slashes: file:///folder/file."
        )
    return urllib.request.url2pathname(address.path)


def absolute(path: str | os.PathLike) -> str:
    """Return an absolute path; return an address unchanged."""
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


def name_of(path: str | os.PathLike) -> str:
    """Return the file name without folders and without the options of an address."""
    if is_remote(path):
        path = _split(os.fspath(path))[0]
    return os.path.basename(path)


def open_file(path: str | os.PathLike, buffer_bytes: int = _BUFFER_BYTES) -> BinaryIO:
    """Open a file to read its bytes.

    Args:
        path: A local path, or an address.
        buffer_bytes: For an address, the number of bytes per request; 0 fetches only
            the requested bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an address cannot be read; the message says why.
        OSError: If a local file cannot be read.
    """
    if not is_remote(path):
        return open(path, "rb")
    raw = _RemoteFile(os.fspath(path))
    reader: Any = io.BufferedReader(raw, buffer_bytes) if buffer_bytes else raw
    return reader


def size_of(path: str | os.PathLike) -> int:
    """Return the size of a file in bytes."""
    return _find(os.fspath(path)).size if is_remote(path) else os.path.getsize(path)


def stamp(path: str | os.PathLike) -> tuple[int, int, int]:
    """Return size, modification time and inode (0 if remote), to detect changes."""
    if is_remote(path):
        file = _find(os.fspath(path))
        return file.size, file.mtime_ns or 0, 0
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino


def expand(address: str) -> tuple[list[str], bool]:
    """Return the files that an address stands for.

    Args:
        address: Address of a file or a folder, or with `*` and `[...]` in its names.

    Returns:
        The sorted addresses of the files, and whether `address` is a folder.

    Raises:
        FileNotFoundError: If the address does not exist, or no file matches.
        ValueError: If the address cannot be read; the message says why.
    """
    path, options = _split(address)
    wildcard = _PATTERN.search(path)
    if wildcard is None:
        from pyarrow import fs

        file = _find(address)
        if file.type == fs.FileType.File:
            return [address], False
        return _list(path.rstrip("/"), options, 1), True
    base = path[: wildcard.start()].rpartition("/")[0]
    pattern = path[len(base) + 1 :].split("/")
    matches = []
    for file in _list(base, options, len(pattern)):
        inner = urllib.parse.unquote(_split(file)[0][len(base) + 1 :])
        names = inner.split("/")
        if len(names) == len(pattern) and all(map(fnmatch.fnmatchcase, names, pattern)):
            matches.append(file)
    if not matches:
        raise FileNotFoundError(f"No file matches the pattern {address!r}.")
    return matches, False


def _list(base, options, depth):
    from pyarrow import fs

    system, root = _open_system(base + options)
    selector = fs.FileSelector(root, recursive=depth > 1)
    with _Explaining(base + options):
        files = system.get_file_info(selector)
    return sorted(
        base + urllib.parse.quote(file.path[len(root.rstrip("/")) :]) + options
        for file in files
        if file.type == fs.FileType.File
    )


def _split(address):
    path, mark, options = address.partition("?")
    return path, mark + options


def _find(address):
    from pyarrow import fs

    system, path = _open_system(address)
    with _Explaining(address):
        file = system.get_file_info(path)
    if file.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"There is no file {address!r}.")
    return file


def _open_system(address):
    """Return Arrow's file system for an address, and the path in it."""
    match = _ADDRESS.fullmatch(address)
    scheme = match["scheme"].lower() if match else ""
    if match is None or scheme not in _SCHEMES or "://" not in address:
        raise UserError(
            f"{address!r} is a remote address that cannot be read. Supported "
            f"addresses begin with {', '.join(f'{name}://' for name in _SCHEMES)}. "
            "Copy the file to a local folder, or mount the remote folder."
        )
    path, options = _split(f"{_SCHEMES[scheme]}://{match['rest']}")
    if ":" in path[: path.find("@") + 1].partition("://")[2]:
        raise UserError(
            "An address must not contain a password, because it would be written to "
            "logs and run folders. Set the password in the environment, for example "
            "with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    if _SCHEMES[scheme] == "gs" and "retry_limit_seconds" not in options:
        options += f"{'&' if options else '?'}retry_limit_seconds={_GOOGLE_SECONDS}"
    with _Explaining(address):
        return _from_uri(path + options)


@functools.lru_cache(4096)  # requests the region of a bucket only once
def _from_uri(uri):
    from pyarrow import fs

    return fs.FileSystem.from_uri(uri)


class _Explaining:
    """A context that raises Arrow's errors as one sentence."""

    def __init__(self, address):
        self._address = address

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        import pyarrow

        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(f"There is no file {self._address!r}.") from error
        if isinstance(error, OSError | pyarrow.ArrowException):
            words = " ".join(str(error).split()).rstrip(".")
            if len(words) > _LONGEST_REASON:
                words = f"{words[:_LONGEST_REASON]}..."
            raise UserError(
                f"{self._address}: cannot be read: {words}. Check the address, the "
                "network and the credentials, or copy the file to a local folder."
            ) from error


class _RemoteFile(io.RawIOBase):
    """A stream of a file at an address, with errors in one sentence."""

    def __init__(self, address):
        self._address = address
        system, path = _open_system(address)
        with _Explaining(address):
            self._file = system.open_input_file(path)

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._file.tell()

    def seek(self, offset, whence=io.SEEK_SET):
        with _Explaining(self._address):
            return self._file.seek(offset, whence)

    def readinto(self, buffer):
        with _Explaining(self._address):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self):
        if not self.closed:
            self._file.close()
        super().close()
