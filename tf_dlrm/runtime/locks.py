"""Locks of folders and files, which allow one writer and end with its process.

This module needs only `tf_dlrm.runtime.disk` and the standard library.
"""

import contextlib
import contextvars
import datetime
import errno
import fcntl
import functools
import json
import os
import pathlib
import shlex
import socket
import sys
from collections.abc import Iterator

from tf_dlrm.runtime.disk import explaining, is_alive, remove_abandoned, start_of
from tf_dlrm.runtime.errors import UserError

_LOCK = ".lock"
_MAX_NOTE_BYTES = 4096
_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EINVAL}


class InUseError(UserError):
    """Another process is writing to a folder or file. Nothing was changed."""


_open_locks: dict[str, int] = {}  # descriptors of this process's locks by path
_held: contextvars.ContextVar[frozenset[tuple[int, str]]] = contextvars.ContextVar(
    "held", default=frozenset()
)


def _forget_locks() -> None:
    """Close all descriptors in a forked child, which holds no lock."""
    for descriptor in _open_locks.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _open_locks.clear()


os.register_at_fork(after_in_child=_forget_locks)


@contextlib.contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Lock a folder against other writers, and create it if necessary.

    The lock is the system's lock (`flock`) of the file `.lock` in the folder. It ends
    with the process, however that ends, so a killed process never blocks others. The
    file says which process holds the lock. The lock is safe on local file systems, and
    on network file systems that forward `flock` (NFS, CephFS, Lustre mounted with
    `flock`). If the file system has no locks, the text of the file counts, and a
    process on this host is identified by its id and start time. On network file systems
    whose locks are local to a host, two hosts that start at the same moment can both
    get the lock.

    If a process of another host left the file behind, this host cannot tell whether the
    process still runs. The lock is then refused, and the message says what to remove.

    Functions called in the context may lock the same folder again. Other threads and
    forked children may not.

    Args:
        folder: The folder.

    Raises:
        InUseError: If another process is writing to the folder.
        WriteError: If the folder is not writable.
    """
    folder = pathlib.Path(folder)
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    with explaining("the folder", folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(folder / _LOCK, folder):
            yield
    finally:
        for path in new_folders:  # remove those that are still empty
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def locked_file(path: str | os.PathLike) -> Iterator[None]:
    """Lock a single file, and files that belong to it, by `.<name>.lock` next to it.

    Raises:
        InUseError: If another process is writing to the file.
        WriteError: If the folder is not writable.
    """
    path = pathlib.Path(path)
    with explaining("the folder", path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_name(f".{path.name}{_LOCK}"), path):
        yield


@contextlib.contextmanager
def _locked(path: str | os.PathLike, what: str | os.PathLike) -> Iterator[None]:
    key = os.getpid(), os.path.realpath(path)
    if key in _held.get():
        yield
        return
    take(path, what)
    _held.set(_held.get() | {key})
    try:
        yield
    finally:
        if key[0] == os.getpid():
            _held.set(_held.get() - {key})
            release(path)


def take(path: str | os.PathLike, what: str | os.PathLike) -> None:
    """Take a lock, which is held until `release` or the end of the process.

    Args:
        path: File of the lock.
        what: The locked folder or file, for the message.

    Raises:
        InUseError: If another process, or this one, already holds the lock.
        WriteError: If the file cannot be created.
    """
    while True:
        with explaining("the lock", path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            has_locks = _try_lock(descriptor)
            if has_locks is None:
                raise InUseError(_describe(path, what, _read_note(descriptor)))
            if not _is_still(descriptor, path):
                os.close(descriptor)
                continue  # it was released, and its file removed, in the meantime
            note = _read_note(descriptor)
            if note and (_is_elsewhere(note) or not (has_locks or _is_over(note))):
                raise InUseError(_describe(path, what, note))
            _write_note(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(descriptor)
            raise
        remove_abandoned(os.path.dirname(path) or ".")
        _open_locks[os.path.realpath(path)] = descriptor
        return


def release(path: str | os.PathLike) -> None:
    """Release a lock; do nothing if this process does not hold it."""
    descriptor = _open_locks.pop(os.path.realpath(path), None)
    if descriptor is None:
        return
    with contextlib.suppress(OSError):
        if _is_still(descriptor, path):
            os.unlink(path)
    os.close(descriptor)


def holds(path: str | os.PathLike) -> bool:
    """Return whether this process holds a lock."""
    return os.path.realpath(path) in _open_locks


def _try_lock(descriptor: int) -> bool | None:
    """Try to take a lock.

    Returns:
        `True` if it was taken, `None` if another process holds it, `False` if the file
        system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False
    return True


def _is_still(descriptor: int, path: str | os.PathLike) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


@functools.cache
def _boot() -> str:
    """Return the id of this machine's current boot, the same in all its containers."""
    try:
        return pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _write_note(descriptor: int) -> None:
    command = [os.path.basename(sys.argv[0] or "python"), *sys.argv[1:]]
    note = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "boot": _boot(),
        "start": start_of(os.getpid()),
        "since": datetime.datetime.now().astimezone().isoformat(" ", "seconds"),
        "command": shlex.join(command)[:300],
    }
    with contextlib.suppress(OSError):  # the lock works even if the disk is full
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(note).encode() + b"\n", 0)


def _read_note(descriptor: int) -> dict:
    """Return the note of the lock's holder, or `{}` if there is none."""
    try:
        note = json.loads(os.pread(descriptor, _MAX_NOTE_BYTES, 0))
        kinds = {"pid": int, "host": str, "boot": str, "since": str, "command": str}
        is_complete = all(isinstance(note[name], kind) for name, kind in kinds.items())
        return note if is_complete else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _is_elsewhere(note: dict) -> bool:
    """Return whether the holder ran on another machine, where it may still run."""
    return note["host"] != socket.gethostname() and note["boot"] != (_boot() or None)


def _is_over(note: dict) -> bool:
    """Return whether a holder on this machine no longer runs."""
    return note["boot"] != _boot() or not is_alive(note["pid"], note.get("start"))


def _describe(path: str | os.PathLike, what: str | os.PathLike, note: dict) -> str:
    if not note:
        return (
            f"{what} is being written by another process. Wait for it, or choose "
            "another place."
        )
    host, command = (_printable(note[name]) for name in ("host", "command"))
    who = (
        f"{what} is being written by process {note['pid']} on {host} ({command}), "
        f"since {_printable(note['since'])}"
    )
    if _is_elsewhere(note):
        return (
            f"{who}. This host cannot tell whether that process still runs. If it does "
            f"not, remove {path} and start again."
        )
    return f"{who}. Wait for it, or choose another place; nothing was changed."


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:300]
