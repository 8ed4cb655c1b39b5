"""Files and folders: flushed to the disk, with errors that explain a failed write.

Needs `tf_dlrm.runtime.remote_files` and the standard library alone, so that commands
without TensorFlow can use it (see `pipelines.whole_files`).
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
_OF_WRITING = {*_FIXES, errno.EIO}


def sync(path: str | os.PathLike) -> None:
    """Flush a file's content, or the names in a folder, to the disk."""
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


# What was read


def fingerprints(
    paths: Sequence[str | os.PathLike], most_bytes: int = 256 << 20
) -> list[list[str]]:
    """Identify files by their content, at a bounded cost.

    Of up to `most_bytes` in all, whole files are digested. Of more, each file has an
    equal part of that, at least 1 MiB: a larger file is told by its size and by 64
    blocks of that part, the first and the last and others evenly between, so that a
    change between two blocks that keeps the size is not seen.

    Args:
        paths: The files, or their addresses.
        most_bytes: Bytes to read, about.

    Returns:
        For each its name without folders, and its size with a BLAKE2 digest:
        `"1234:whole:1f..."` or `"1234:blocks of 65536:1f..."`.
    """
    share = max(most_bytes // max(len(paths), 1), 1 << 20)
    total = sum(map(size_of, paths))
    found = []
    for path in paths:
        whole = total <= most_bytes or size_of(path) <= share
        digest = _fingerprint(path, None if whole else share // _NUM_BLOCKS)
        found.append([name_of(path), digest])
    return found


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
    """Read a JSON file that may hold anything.

    Args:
        path: The file.
        kind: What it must hold at the top.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not JSON text, nested too deeply, or holds something else;
            the message names the file.
    """
    with open(path, "rb") as file:
        text = file.read()
    try:
        content = json.loads(text)
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: it is not UTF-8.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged: no JSON text ({error}).") from None
    except RecursionError:
        content = _TOO_DEEP
    if content is _TOO_DEEP or not _is_shallow(content):
        raise UserError(f"{path} is damaged: it is nested too deeply.")
    if not isinstance(content, kind):
        raise UserError(
            f"{path} is damaged: it holds a {type(content).__name__}, not a "
            f"{kind.__name__}."
        )
    return content


def _is_shallow(content: Any) -> bool:
    """Return whether recursion can handle it, wherever that begins."""
    level = [content]
    for _ in range(_DEEPEST):
        inner = (each for each in level if isinstance(each, dict | list))
        level = [
            part
            for each in inner
            for part in (each.values() if isinstance(each, dict) else each)
        ]
        if not level:
            return True
    return False


# What could not be written


class WriteError(OSError):
    """A failed write: what, where, why, and how to continue, in one line.

    Args:
        number: The `errno` of what failed.
        problem: What cannot be written, where and why, as a sentence.
        kept: What is still there, as a sentence, or "".
        then: How to continue once the cause is removed, as the end of a sentence.
    """

    def __init__(self, number: int, problem: str, kept: str, then: str) -> None:
        self.problem = problem
        fix = _FIXES.get(number, "Remove the cause")
        parts = (problem, kept, f"{fix}, then {then}.")
        super().__init__(number, " ".join(part for part in parts if part))

    def __str__(self) -> str:
        return self.strerror or ""


def find_reason(error: BaseException) -> tuple[int, str] | None:
    """Return the `errno` and the words of a failed write; `None` for other failures.

    HDF5 and TensorFlow raise errors of their own, with the system's words inside.
    """
    number = getattr(error, "errno", None)
    if isinstance(error, OSError) and number:
        return number, os.strerror(number)
    text = str(error)
    for number in _OF_WRITING:
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
    """Raise failed writes inside as a `WriteError`, in one line.

    A `WriteError` from inside stays as it is; `advising` gives it other words.

    Args:
        what: What is written, such as "the vocabulary".
        path: Where.
        kept: What is still there if it fails, as a sentence.
        then: How to continue, as the end of a sentence.
        also: Other exceptions that may tell of a failed write.
    """
    kinds: tuple[type[BaseException], ...] = (OSError, *also)
    try:
        yield
    except WriteError:
        raise
    except kinds as error:
        reason = find_reason(error)
        # One with a name is of that file: perhaps it was read.
        named = getattr(error, "filename", None)
        is_ours = _is_at(named, path) if named else reason and reason[0] in _OF_WRITING
        if reason is None or not is_ours:
            raise
        number, words = reason
        problem = f"{path}: {what} cannot be written: {words}."
        raise WriteError(number, problem, kept, then) from error


@contextlib.contextmanager
def replacing_file(what: str, path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yield a path to write to; the file takes its place, complete, at the end.

    Args:
        what: What is written, such as "the model".
        path: The file.

    Raises:
        WriteError: If it cannot be written; a file that was there stays.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise UserError(
            f"{path}: there is no folder {path.parent} to write {what} to. Create it."
        )
    with explaining(what, path):
        remove_abandoned(path.parent)
        if path.is_symlink():
            path = path.resolve()
        name = temporary_name(path.name) + uuid.uuid4().hex[:8]  # threads, restarts
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
    """Give each `WriteError` raised inside this advice; see `explaining`."""
    try:
        yield
    except WriteError as error:
        raise type(error)(
            error.errno or 0, error.problem, kept, then
        ) from error.__cause__


def _is_at(named: Any, path: str | os.PathLike) -> bool:
    """Return whether a file is at a path, beside it, within it, or a parent."""
    if not isinstance(named, str | bytes | os.PathLike):
        return True
    named, path = pathlib.Path(os.fsdecode(named)), pathlib.Path(path)
    return named.parent == path.parent or path in named.parents or named in path.parents


# Temporary names


@functools.cache
def _host_tag() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def temporary_name(name: str) -> str:
    """Return a hidden name for an incomplete file, with host and process."""
    return f".{name}.{_host_tag()}.{os.getpid()}.tmp"


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Remove temporary files that dead processes of this host left."""
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
    """Return whether a process of this machine runs, the one with that `start`."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass  # it is another user's
    return start is None or start_of(pid) in (start, None)


def start_of(pid: int) -> str | None:
    """Return the start time of a process in the kernel's ticks, if it runs."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
