"""Files and folders: flushing to the disk, and errors that explain a failed write.

This module needs only `tf_dlrm.runtime.remote_files` and the standard library, so that
commands can use it without TensorFlow (see `pipelines.whole_files`).
"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import socket
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.remote_files import name_of, open_file, size_of

_TEMPORARY = re.compile(r"\..+\.(?P<host>[0-9a-f]{8})\.(?P<pid>\d+)\.tmp.*", re.DOTALL)
_NUM_BLOCKS = 64
_DEEPEST = 100
_TOO_DEEP = object()
_FIXES = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space within your quota",
    errno.EFBIG: "Raise the largest allowed file size (ulimit -f)",
    errno.EROFS: "Choose a place that can be written to",
    errno.EACCES: "Make it writable, or choose another place",
    errno.EPERM: "Make it writable, or choose another place",
    errno.ENAMETOOLONG: "Choose a shorter name",
}
_WRITE_ERRORS = {*_FIXES, errno.EIO}
_SQLITE = {
    "database or disk is full": errno.ENOSPC,
    "disk I/O error": errno.EIO,
    "attempt to write a readonly database": errno.EROFS,
}


def sync(path: str | os.PathLike) -> None:
    """Flush the content of a file, or the entries of a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: str | os.PathLike) -> None:
    """Flush a folder and everything in it to the disk."""
    for root, _, files in os.walk(os.fspath(folder)):
        for name in files:
            sync(os.path.join(root, name))
        sync(root)


# Reading


def fingerprints(
    paths: Sequence[str | os.PathLike], most_bytes: int = 256 << 20
) -> list[list[str]]:
    """Identify files by their content, at a bounded cost.

    If the files have up to `most_bytes` in total, they are digested completely.
    Otherwise, each file gets an equal share of that, but at least 1 MiB. A larger file
    is identified by its size and 64 evenly spaced blocks, including the first and the
    last. A change between blocks that keeps the size is not detected.

    Args:
        paths: The files, or their addresses.
        most_bytes: Approximate number of bytes to read.

    Returns:
        For each file, its name without folders, and its size with a BLAKE2 digest, such
        as `"1234:whole:1f..."` or `"1234:blocks of 65536:1f..."`.
    """
    share = max(most_bytes // max(len(paths), 1), 1 << 20)
    total = sum(map(size_of, paths))
    fingerprints = []
    for path in paths:
        is_whole = total <= most_bytes or size_of(path) <= share
        digest = _fingerprint(path, None if is_whole else share // _NUM_BLOCKS)
        fingerprints.append([name_of(path), digest])
    return fingerprints


def _fingerprint(path: str | os.PathLike, block_bytes: int | None) -> str:
    size, digest = size_of(path), hashlib.blake2b(digest_size=16)
    with open_file(path) as file:
        if block_bytes is None:
            while block := file.read(1 << 20):
                digest.update(block)
            return f"{size}:whole:{digest.hexdigest()}"
        for i in range(_NUM_BLOCKS):
            file.seek((size - block_bytes) * i // (_NUM_BLOCKS - 1))
            digest.update(file.read(block_bytes))
    return f"{size}:blocks of {block_bytes}:{digest.hexdigest()}"


def read_json(path: str | os.PathLike, kind: type = dict) -> Any:
    """Read a JSON file, which may be damaged or hostile.

    Args:
        path: The file.
        kind: Type of the top-level value.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not JSON, is nested too deeply, or has another
            top-level type; the message names the file.
    """
    with open(path, "rb") as file:
        text = file.read()
    try:
        content = json.loads(text)
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not UTF-8.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: it is not JSON ({error}).") from None
    except RecursionError:
        content = _TOO_DEEP
    if content is _TOO_DEEP or not _is_shallow(content):
        raise UserError(f"{path} is damaged: it is nested too deeply.")
    if not isinstance(content, kind):
        raise UserError(
            f"{path} is damaged: it contains a {type(content).__name__}, not a "
            f"{kind.__name__}."
        )
    return content


def _is_shallow(content: Any) -> bool:
    """Return whether content is nested so little that recursion can handle it."""
    level = [content]
    for _ in range(_DEEPEST):
        containers = (value for value in level if isinstance(value, dict | list))
        level = [
            part
            for value in containers
            for part in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return True
    return False


# Failed writes


class WriteError(OSError):
    """A failed write, explained in one line with the way to continue.

    Args:
        number: The `errno` of the failure.
        problem: Sentence that says what cannot be written, where and why.
        kept: Sentence that says what remains unchanged, or "".
        then: How to continue after the cause is removed, as the end of a sentence.
    """

    def __init__(self, number: int, problem: str, kept: str, then: str) -> None:
        self.problem = problem
        fix = _FIXES.get(number, "Remove the cause")
        parts = (problem, kept, f"{fix}, then {then}.")
        super().__init__(number, " ".join(part for part in parts if part))

    def __str__(self) -> str:
        return self.strerror or ""


def find_reason(error: BaseException) -> tuple[int, str] | None:
    """Return the `errno` and text of a failed write, or `None` for other errors.

    HDF5 and TensorFlow raise their own errors, which contain the system's text, and
    SQLite raises errors with words of its own.
    """
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and number:
        return number, os.strerror(number)
    text = f"{error} {error.__cause__ or ''}"
    for words, number in _SQLITE.items():
        if words in text:
            return number, os.strerror(number)
    for number in _WRITE_ERRORS:
        if os.strerror(number) in text or f"errno = {number}," in text:
            return number, os.strerror(number)
    return None


@contextlib.contextmanager
def explaining(
    what: str,
    path: str | os.PathLike,
    kept: str = "",
    then: str = "start again",
    also: tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
    """Return a context that raises failed writes as a `WriteError`, in one line.

    A `WriteError` in the context is raised unchanged; `advising` can change its advice.

    Args:
        what: Name of the thing that is written, such as "the vocabulary".
        path: File or folder that is written to.
        kept: Sentence that says what remains unchanged after a failure.
        then: How to continue, as the end of a sentence.
        also: Other types of exceptions that failed writes may raise.
    """
    kinds: tuple[type[BaseException], ...] = (OSError, *also)
    try:
        yield
    except WriteError:
        raise
    except kinds as error:
        reason = find_reason(error)
        # An error with a file name may come from reading another file.
        file = getattr(error, "filename", None)
        is_write = _is_at(file, path) if file else reason and reason[0] in _WRITE_ERRORS
        if reason is None or not is_write:
            raise
        number, words = reason
        problem = f"{path}: {what} cannot be written: {words}."
        raise WriteError(number, problem, kept, then) from error


@contextlib.contextmanager
def explaining_logs() -> Iterator[None]:
    """Return a context that raises TensorFlow's failures to write event files.

    They surface at any later operation on the file, as errors of several lines.

    Raises:
        WriteError: If an event file for TensorBoard cannot be written.
    """
    try:
        yield
    except Exception as error:
        file = re.search(r"([^\s'\"`]+)/[^/\s]*tfevents", str(error))
        reason = find_reason(error)
        if file is None or reason is None or isinstance(error, WriteError):
            raise
        problem = f"{file[1]}: logs for TensorBoard cannot be written: {reason[1]}."
        raise WriteError(reason[0], problem, "", "start again") from error


@contextlib.contextmanager
def replacing_file(what: str, path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a temporary path; at the end, the complete file replaces `path`.

    Args:
        what: Name of the thing that is written, such as "the model".
        path: The file to write or replace.

    Raises:
        ValueError: If the folder does not exist.
        WriteError: If the file cannot be written. An existing file is unchanged.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise UserError(
            f"{path}: {what} cannot be written, because the folder {path.parent} does "
            "not exist. Create it."
        )
    kept = f"The existing {path.name} is unchanged." if path.exists() else ""
    with explaining(what, path, kept):
        remove_abandoned(path.parent)
        if path.is_symlink():
            path = path.resolve()
        # Unique for threads and restarts too.
        name = temporary_name(path.name) + uuid.uuid4().hex[:8]
        folder = path.with_name(name)
        folder.mkdir()
        try:
            yield folder / path.name
            sync(folder / path.name)
            os.replace(folder / path.name, path)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def advising(kept: str, then: str) -> Iterator[None]:
    """Return a context that gives each `WriteError` raised in it this advice.

    Args:
        kept: Sentence that says what remains unchanged after a failure.
        then: How to continue, as the end of a sentence.
    """
    try:
        yield
    except WriteError as error:
        raise type(error)(
            error.errno or 0, error.problem, kept, then
        ) from error.__cause__


def _is_at(file: Any, path: str | os.PathLike) -> bool:
    """Return whether a file is at a path, beside it, inside it, or above it."""
    if not isinstance(file, str | bytes | os.PathLike):
        return True
    file, path = pathlib.Path(os.fsdecode(file)), pathlib.Path(path)
    return file.parent == path.parent or path in file.parents or file in path.parents


# Temporary names


@functools.cache
def _host_tag() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def temporary_name(name: str) -> str:
    """Return a hidden name for an incomplete file, which contains host and process."""
    return f".{name}.{_host_tag()}.{os.getpid()}.tmp"


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Remove temporary files of processes on this host that no longer run."""
    try:
        names = os.listdir(folder)
    except OSError:
        return
    for name in names:
        match = _TEMPORARY.fullmatch(name)
        if match and match["host"] == _host_tag() and not is_alive(int(match["pid"])):
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                os.unlink(path) if not os.path.isdir(path) else shutil.rmtree(path)


def is_alive(pid: int, start: str | None = None) -> bool:
    """Return whether a process runs on this machine, with this start time if given."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it belongs to another user
    return start is None or start_of(pid) in (start, None)


def start_of(pid: int) -> str | None:
    """Return the start time of a process in kernel ticks, or `None` if unknown."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
