"""A folder of checkpoints, each of which is complete and checksummed, or absent.

A checkpoint is a folder such as `step-000001234` with its files and a `manifest.json`,
which contains their sizes and SHA-256 checksums, its own checksum, and further facts.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from tf_dlrm.runtime import disk, locks
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import PathLike

MANIFEST = "manifest.json"
_FORMAT = 1
_TEMPORARY, _DAMAGED = ".tmp-", "damaged-"
_NAME = re.compile(r"step-(\d{9,})(?:\.(\d+))?")
_KEPT = "Existing checkpoints are unchanged."
_THEN = "start the training again to resume from the newest checkpoint"
_SPARE_BYTES = 1 << 20  # for the file system's own data


class CheckpointFolder:
    """Checkpoints in a folder, named by step.

    Args:
        path: The folder; it is created with the first checkpoint.
    """

    def __init__(self, path: PathLike) -> None:
        self.path = pathlib.Path(path)
        self._lock = self.path / ".lock"

    def names(self) -> list[str]:
        """Return the names of the checkpoints, oldest first, without reading them."""
        if not self.path.is_dir():
            return []
        matches = [_NAME.fullmatch(entry.name) for entry in self.path.iterdir()]
        keys = [(int(m[1]), int(m[2] or 0), m[0]) for m in matches if m]
        return [name for _, _, name in sorted(keys)]

    def step(self, name: str) -> int:
        """Return the step of a checkpoint from its name.

        Raises:
            ValueError: If it is not the name of a checkpoint.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(
                "`name` must be the name of a checkpoint, such as 'step-000000100'. "
                f"Received: {name!r}"
            )
        return int(match[1])

    def check_writable(self, num_bytes: int) -> None:
        """Lock the folder for this process, and check that it is writable.

        The method also removes what interrupted saves left behind.

        Args:
            num_bytes: Approximate size of a checkpoint in bytes.

        Raises:
            InUseError: If another process holds the lock, that is, it has neither
                called `release` nor ended. Nothing was changed.
            WriteError: If the folder is not writable, or the disk is full.
        """
        with self._explaining():
            self.path.mkdir(parents=True, exist_ok=True)
            if not locks.holds(self._lock):
                locks.take(self._lock, self.path)
            for leftover in self.path.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(leftover, ignore_errors=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
            self._check_space(num_bytes)

    def release(self) -> None:
        """Let other processes write checkpoints into the folder again."""
        locks.release(self._lock)

    def _explaining(self) -> contextlib.AbstractContextManager[None]:
        return disk.explaining(
            "a checkpoint", self.path, _KEPT, _THEN, also=(RuntimeError,)
        )

    def _check_space(self, num_bytes: int) -> None:
        free = shutil.disk_usage(self.path).free
        needed = num_bytes + _SPARE_BYTES
        if free < needed:
            raise disk.WriteError(
                errno.ENOSPC,
                f"A checkpoint needs {_megabytes(needed)} in {self.path}, but only "
                f"{_megabytes(free)} are free.",
                _KEPT,
                _THEN,
            )

    def write(
        self,
        step: int,
        facts: dict[str, Any],
        write_files: Callable[[pathlib.Path], None],
        num_bytes: int,
    ) -> pathlib.Path:
        """Write a checkpoint, completely or not at all.

        Args:
            step: Step of the checkpoint.
            facts: JSON-safe values, which `read_facts` returns.
            write_files: Function that writes files into the folder it is called with.
            num_bytes: Approximate size of the files in bytes.

        Returns:
            The checkpoint's folder.

        Raises:
            WriteError: If the checkpoint cannot be written. Others are unchanged.
        """
        with self._explaining():
            return self._write(step, facts, write_files, num_bytes)

    def _write(
        self,
        step: int,
        facts: dict[str, Any],
        write_files: Callable[[pathlib.Path], None],
        num_bytes: int,
    ) -> pathlib.Path:
        staging = None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._check_space(num_bytes)
            staging = pathlib.Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.path))
            write_files(staging)
            facts = json.loads(json.dumps(facts))  # as `read_facts` will read them
            content = {"format": _FORMAT, "step": step, "facts": facts}
            content["files"] = {
                file.name: {"bytes": file.stat().st_size, "sha256": _sum_file(file)}
                for file in sorted(staging.iterdir())
            }
            content["sha256"] = _sum_content(content)
            text = json.dumps(content, indent=1) + "\n"
            (staging / MANIFEST).write_text(text, encoding="utf-8")
            staging.chmod(0o755)  # mkdtemp's default is 0o700
            disk.sync_tree(staging)
            final = self._free_path(step)
            os.rename(staging, final)
            disk.sync(self.path)
        finally:
            if staging is not None:
                shutil.rmtree(staging, ignore_errors=True)
        return final

    def _free_path(self, step: int) -> pathlib.Path:
        """Return an unused path for a step, so that no checkpoint is ever replaced."""
        path, number = self.path / f"step-{step:09d}", 0
        while path.exists():
            number += 1
            path = self.path / f"step-{step:09d}.{number}"
        return path

    def read_facts(self, name: str) -> dict[str, Any]:
        """Return the facts of a checkpoint after verifying all of its files.

        Raises:
            ValueError: If the checkpoint is damaged; the message says what is wrong.
        """
        folder = self.path / name
        try:
            content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            checksum = content.pop("sha256")
            files, facts, file_format = (
                content[k] for k in ("files", "facts", "format")
            )
        except (
            OSError,
            ValueError,
            KeyError,
            AttributeError,
            TypeError,
            RecursionError,
        ):
            raise UserError(f"{folder}: {MANIFEST} cannot be read") from None
        if checksum != _sum_content(content):
            raise UserError(f"{folder}: {MANIFEST} does not match its checksum")
        if file_format != _FORMAT:
            raise UserError(f"{folder}: format {file_format} is unknown")
        for file, expected in files.items():
            path = folder / file
            if not path.is_file():
                raise UserError(f"{folder}: {file} is missing")
            if path.stat().st_size != expected["bytes"]:
                raise UserError(f"{folder}: {file} has the wrong size")
            if _sum_file(path) != expected["sha256"]:
                raise UserError(f"{folder}: {file} does not match its checksum")
        return facts

    def peek(self, name: str) -> dict[str, Any]:
        """Return the facts of a checkpoint unverified, or `{}` if it is unreadable."""
        try:
            text = (self.path / name / MANIFEST).read_text(encoding="utf-8")
            return json.loads(text)["facts"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {}

    def find_newest(self, say: Callable[[str], None]) -> tuple[str, dict] | None:
        """Return the name and facts of the newest intact checkpoint, or `None`.

        Damaged checkpoints are renamed to `damaged-...`.

        Args:
            say: Function that is called with a line about each damaged checkpoint.
        """
        for name in reversed(self.names()):
            try:
                return name, self.read_facts(name)
            except ValueError as error:
                say(f"Damaged checkpoint: {error}. Trying the one before it.")
                with contextlib.suppress(OSError):
                    os.rename(self.path / name, self.path / f"{_DAMAGED}{name}")
        return None

    def prune(self, keep: int, also: str | None) -> None:
        """Remove all checkpoints but the newest `keep` and the one named `also`."""
        names = self.names()
        for name in names[: max(len(names) - keep, 0)]:
            if name != also:
                self._remove(self.path / name)

    def clear(self, but: str | None = None) -> None:
        """Remove all checkpoints except `but`, and the folder if it is then empty."""
        self.prune(0, but)
        for leftover in (*self._matching(_TEMPORARY), *self._matching(_DAMAGED)):
            shutil.rmtree(leftover, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _matching(self, prefix: str) -> Iterator[pathlib.Path]:
        return self.path.glob(f"{prefix}*")

    def _remove(self, folder: pathlib.Path) -> None:
        # Rename it first, so that an interruption never leaves half a checkpoint.
        doomed = self.path / f"{_TEMPORARY}{folder.name}"
        with contextlib.suppress(OSError):
            os.rename(folder, doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _sum_file(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sum_content(content: Any) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
