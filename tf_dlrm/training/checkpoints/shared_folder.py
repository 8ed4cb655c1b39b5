"""`SharedFolder`: checkpoints that one worker writes and all workers read."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np

from tf_dlrm.runtime.collectives import gather_arrays
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.place import Place
from tf_dlrm.runtime.types import PathLike
from tf_dlrm.training.checkpoints.files import CheckpointFolder

_ASK_EVERY = 8  # batches between two questions


class SharedFolder(CheckpointFolder):
    """A folder of checkpoints on a file system that all workers share.

    All workers call the same methods in the same order. The chief writes; the others
    take part in reading the tables, and wait until it has written.

    Args:
        path: The folder.
        place: The place of this worker.
    """

    def __init__(self, path: PathLike, place: Place) -> None:
        super().__init__(path)
        self._place = place

    def _wait(self, value: int = 0) -> list[int]:
        """Wait for all workers; return a number from each."""
        own = np.array([value], np.int64)
        return [int(part[0]) for part in gather_arrays(self._place, own)]

    def check_writable(self, num_bytes: int) -> None:
        """Lock the folder and check that it is writable, in the chief."""
        if self._place.is_chief:
            super().check_writable(num_bytes)
        self._wait()

    def release(self) -> None:
        """Let other processes write checkpoints into the folder again."""
        if self._place.is_chief:
            super().release()

    def write(
        self,
        step: int,
        facts: dict[str, Any],
        write_files: Callable[[pathlib.Path], None],
        num_bytes: int,
    ) -> pathlib.Path:
        """Write a checkpoint in the chief, with the state of all workers."""
        if self._place.is_chief:
            path = super().write(step, facts, write_files, num_bytes)
            self._wait()
            return path
        with tempfile.TemporaryDirectory() as folder:
            write_files(pathlib.Path(folder))
        self._wait()
        return self.path / self.names()[-1]

    def find_newest(self, say: Callable[[str], None]) -> tuple[str, dict] | None:
        """Return the newest intact checkpoint, which must be the same for all.

        Raises:
            ValueError: If a worker sees other checkpoints.
        """
        newest = None
        if self._place.is_chief:
            newest = super().find_newest(say)
            self._wait()
        else:
            self._wait()
            newest = super().find_newest(say)
        steps = self._wait(-1 if newest is None else self.step(newest[0]))
        if len(set(steps)) > 1:
            seen = ", ".join(
                f"{name}: {'none' if step < 0 else f'step {step}'}"
                for name, step in zip(self._place.workers, steps, strict=True)
            )
            raise UserError(
                f"The workers see different checkpoints in {self.path} ({seen}). Use a "
                "folder on a file system that all workers share."
            )
        return newest

    def prune(self, keep: int, also: str | None) -> None:
        """Remove old checkpoints, in the chief."""
        if self._place.is_chief:
            super().prune(keep, also)
        self._wait()

    def clear(self, but: str | None = None) -> None:
        """Remove checkpoints, in the chief."""
        if self._place.is_chief:
            super().clear(but)  # which calls `prune`, and thereby waits
        else:
            self._wait()


def folder_of(path: PathLike, place: Place) -> CheckpointFolder:
    """Return the folder of checkpoints of a process or of several workers."""
    if place.num_workers == 1:
        return CheckpointFolder(path)
    return SharedFolder(path, place)


def agree(place: Place, batch: int | None, *flags: bool) -> tuple[bool, ...]:
    """Return for each flag whether it is set in any worker.

    Several workers ask each other only every few batches, and otherwise return False.

    Args:
        place: The place of this worker.
        batch: Number of the batch; `None`: ask now.
        *flags: The flags of this worker.
    """
    if place.num_workers == 1:
        return flags
    if batch is not None and (batch + 1) % _ASK_EVERY:
        return (False,) * len(flags)
    parts = gather_arrays(place, np.array(flags, np.int64))
    return tuple(bool(flag) for flag in np.max(parts, axis=0))
