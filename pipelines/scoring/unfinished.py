"""An output that is written piece by piece, and resumes where it was interrupted.

Until `scores.csv` is complete, its bytes are in `scores.csv.unfinished`. Every few
seconds `scores.csv.unfinished.json` records how many of them are valid and the position
in the input. A resumed run truncates the file to that size. The file is renamed when it
is complete.
"""

import contextlib
import gzip
import json
import os
import pathlib
import time
from typing import Any

from pipelines.runtime import UserError, disk, locks

_VERSION = 1
_SECONDS_BETWEEN_NOTES = 5.0
_OTHER_FORMATS = (".parquet", ".zst", ".bz2", ".xz", ".zip")


class Unfinished:
    """An unfinished output file, locked against other processes.

    Use it as a context manager. At the end the file is renamed to the output; after an
    error the unfinished file stays, so that the same job can resume.

    Args:
        output: The file to write. If its name ends in ".gz", each piece is compressed.
        job: JSON-safe description of the job: `{"settings": ..., "files": ...}`.
            Unfinished output of a job with other settings is not overwritten; if only
            the files changed, the job restarts.
        overwrite: Whether to replace a finished output, and to discard unfinished
            output of another job.

    Attributes:
        state: State in the last `note` of an earlier run, or `None`.
        was_finished: Whether an earlier run finished except for its cleanup.

    Raises:
        FileExistsError: If the finished output already exists.
        ValueError: If it is unfinished output of another job, or another process is
            writing it.
    """

    def __init__(self, output, job: dict[str, Any], overwrite: bool = False):
        check(output, job, overwrite)
        self._output = pathlib.Path(output)
        self._job = json.loads(json.dumps(job))
        self._path, self._notes = _names(output)
        with contextlib.ExitStack() as stack:
            stack.enter_context(locks.locked_file(self._output))
            # Check again, now that no other process can change the files.
            check(output, job, overwrite)
            with disk.explaining("the output", self._path):
                file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            self._file = stack.enter_context(open(file, "r+b"))
            self._resume()
            self._held = stack.pop_all()

    def _resume(self):
        notes = _read_notes(self._notes)
        self.state, self.was_finished = None, False
        size = 0
        if notes is not None and notes["job"] == self._job:
            self.state, size = notes["state"], notes["num_bytes"]
            self.was_finished = _is_finished(self._output, self._path, notes)
        elif notes is not None:
            print(f"{self._output}: restarting. {_what_changed(notes, self._job)}")
            self._notes.unlink()
        if not self.was_finished:
            self._file.truncate(size)
            self._file.seek(size)
        self._noted = time.monotonic()

    def pack(self, text: bytes) -> bytes:
        """Return the bytes to write for a piece of text; other threads may call it."""
        if self._output.suffix != ".gz" or not text:
            return text
        return gzip.compress(text, 6, mtime=0)

    def write(self, packed: bytes) -> None:
        """Add a piece."""
        with disk.explaining("the predictions", self._path):
            self._file.write(packed)

    def is_note_due(self) -> bool:
        """Return True if the last note is more than a few seconds old."""
        return time.monotonic() - self._noted >= _SECONDS_BETWEEN_NOTES

    def note(self, state: dict[str, Any]) -> None:
        """Record the number of valid bytes so far and the `state` of the job."""
        with disk.explaining("the predictions", self._path):
            self._flush()
            self._write_notes(state)
        self._noted = time.monotonic()

    def _write_notes(self, state, finished=False):
        notes = {
            "version": _VERSION,
            "job": self._job,
            "state": state,
            "num_bytes": self._file.tell(),
            "finished": finished,
        }
        # A fixed temporary name: a file that a killed run left is overwritten.
        beside = self._notes.with_name(f"{self._notes.name}.new")
        with open(beside, "w", encoding="utf-8") as file:
            file.write(json.dumps(notes) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, self._notes)
        self.state = state

    def _flush(self):
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        with self._held:
            if kind is not None:
                with contextlib.suppress(OSError):  # on a full disk
                    self._file.close()
                if self.state is None:  # there is nothing worth keeping
                    self._path.unlink(missing_ok=True)
                return
            if self.was_finished:
                self._path.unlink()
            else:
                with disk.explaining("the predictions", self._output):
                    self._flush()
                    self._write_notes(self.state, finished=True)
                    os.replace(self._path, self._output)
                    disk.sync(self._output.parent)
            self._notes.unlink()


def check(output, job: dict[str, Any], overwrite: bool = False) -> dict | None:
    """Check that an output may be written, without writing anything.

    Args:
        output: The output file.
        job: JSON-safe description of the job.
        overwrite: Whether to replace an existing output.

    Returns:
        The state from which the job would resume, or `None`.

    Raises:
        FileExistsError: If the finished output already exists.
        ValueError: If it is unfinished output of another job.
    """
    if str(output).endswith(_OTHER_FORMATS):
        raise UserError(
            f"{output}: only plain text and gzip (.gz) can be written. Name a file "
            "with another ending."
        )
    path, notes_path = _names(output)
    notes = _read_notes(notes_path)
    job = json.loads(json.dumps(job))
    is_same = notes is not None and notes["job"] == job
    if is_same and _is_finished(pathlib.Path(output), path, notes):
        return notes["state"]
    if os.path.exists(output) and not overwrite:
        raise FileExistsError(
            f"{output} already exists. Name another `output`, or replace it with "
            "`overwrite=True`."
        )
    if is_same:
        return notes["state"]
    if notes is None or overwrite:
        return None
    if notes["job"]["settings"] != job["settings"]:
        raise UserError(
            f"{path} is unfinished output of a command with other options. "
            f"{_what_changed(notes, job)} Run that command again to resume it, "
            "name another `output`, or discard it with `overwrite=True`."
        )
    return None


def _names(output):
    return pathlib.Path(f"{output}.unfinished"), pathlib.Path(
        f"{output}.unfinished.json"
    )


def _read_notes(path):
    try:
        notes = disk.read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        notes = None
    if not isinstance(notes, dict) or notes.get("version") != _VERSION:
        raise UserError(
            f"{path}: not the state of an unfinished output, or damaged. Remove it, or "
            "name another `output`."
        )
    return notes


def _is_finished(output, path, notes):
    """Return True if the output is already renamed and only the notes are left."""
    is_left = path.exists() and path.stat().st_size == notes["num_bytes"]
    is_there = output.exists() and output.stat().st_size == notes["num_bytes"]
    return notes["finished"] and is_there and not is_left


def _what_changed(notes, job):
    """Return a sentence on the first difference of two jobs."""
    for part in ("settings", "files"):
        before, now = notes["job"][part], job[part]
        for name in [*before, *now]:
            if before.get(name) != now.get(name):
                if part == "files":
                    return f"{name} has changed since it was started."
                return (
                    f"It was started with `{name}={before.get(name)}`, not "
                    f"{now.get(name)}."
                )
    return ""
