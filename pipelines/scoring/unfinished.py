"""An output that is written piece by piece, and resumes where it was interrupted.

Beside `scores.csv`, `scores.csv.unfinished` holds the bytes and
`scores.csv.unfinished.json` tells, every few seconds, how many of them count and how
far the input was read for them. What was written after that is cut off when a run goes
on. The file takes its name when all of it is there.
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
    """The unfinished form of an output file, locked against other processes.

    A context: without an error the output takes its name at the end; an error leaves
    what was done, for the same job to go on.

    Args:
        output: The file. One that ends in ".gz" is compressed, each piece by itself.
        job: What it is made of, JSON-safe: `{"settings": ..., "files": ...}`. Of a
            job with other settings nothing is overwritten; if only the files were
            changed, the work is started over.
        overwrite: Whether a finished output may be replaced, and unfinished work of
            another job given up.

    Attributes:
        state: What the last `note` of an earlier run said; `None`: there is none.
        was_finished: Whether only the last clean-up of an earlier run was missing.

    Raises:
        FileExistsError: If the finished output exists.
        ValueError: If it is unfinished work of another job, or is being written.
    """

    def __init__(self, output, job: dict[str, Any], overwrite: bool = False):
        check(output, job, overwrite)
        self._output = pathlib.Path(output)
        self._job = json.loads(json.dumps(job))
        self._path, self._notes = _names(output)
        with contextlib.ExitStack() as stack:
            stack.enter_context(locks.locked_file(self._output))
            # Again, now that nobody else can change them.
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
            print(f"{self._output}: started over. {_what_changed(notes, self._job)}")
            self._notes.unlink()
        if not self.was_finished:
            self._file.truncate(size)
            self._file.seek(size)
        self._noted = time.monotonic()

    def pack(self, text: bytes) -> bytes:
        """The bytes to write for a piece of text; other threads may do it."""
        if self._output.suffix != ".gz" or not text:
            return text
        return gzip.compress(text, 6, mtime=0)

    def write(self, packed: bytes) -> None:
        """Add a piece."""
        with disk.explaining("the predictions", self._path):
            self._file.write(packed)

    def is_note_due(self) -> bool:
        """Return whether the last note is some seconds old."""
        return time.monotonic() - self._noted >= _SECONDS_BETWEEN_NOTES

    def note(self, state: dict[str, Any]) -> None:
        """Keep what was written so far, and `state` of the work that made it."""
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
        # Always the same name beside: one that a killed run left is written over.
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
                if self.state is None:  # nothing that would be worth to keep
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
        job: What the output is made from, JSON-safe.
        overwrite: Whether to replace what is there.

    Returns:
        The state from which the job would go on, or `None`.

    Raises:
        FileExistsError: If the finished output exists.
        ValueError: If it is unfinished work of another job.
    """
    if str(output).endswith(_OTHER_FORMATS):
        raise UserError(
            f"{output}: text is written, plain or, where the name ends in "
            ".gz, as gzip. Choose such a name."
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
            f"{path} is unfinished work of another command. "
            f"{_what_changed(notes, job)} Start that command again to resume it, "
            "name another `output`, or discard the work with `overwrite=True`."
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
            f"{path}: not the notes of an unfinished output. Remove it, or name "
            "another `output`."
        )
    return notes


def _is_finished(output, path, notes):
    """Return whether the output has its name, and only the notes are left."""
    is_left = path.exists() and path.stat().st_size == notes["num_bytes"]
    is_there = output.exists() and output.stat().st_size == notes["num_bytes"]
    return notes["finished"] and is_there and not is_left


def _what_changed(notes, job):
    """The first difference of two jobs, as a sentence."""
    for part in ("settings", "files"):
        before, now = notes["job"][part], job[part]
        for name in [*before, *now]:
            if before.get(name) != now.get(name):
                if part == "files":
                    return f"Changed since it was started: {name}."
                return (
                    f"It was started with `{name}={before.get(name)}`, not "
                    f"{now.get(name)}."
                )
    return ""
