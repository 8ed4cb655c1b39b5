"""`GrowingFolder`: the finished files of a folder to which others add files."""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from pipelines.runtime import UserError

_HIDDEN = ("_", ".")
_UNFINISHED = (".tmp", ".temp", ".part", ".partial", ".inprogress", ".crdownload")


@dataclasses.dataclass(frozen=True)
class Arrivals:
    """The rules by which files of a growing folder are taken.

    Args:
        order: `"name"`: files in the order of their paths, so names should contain the
            time, such as `2026-11-30T10.gz`; `"time"`: in the order of event times,
            which needs a schema with a time column.
        marker: Name of a file, such as `_SUCCESS`, that appears in a folder when all
            files next to it are finished. Files without it are left alone. Default:
            none.
        settle_seconds: Without a marker, a file counts as finished when its size and
            time have not changed for so long.
        late: Policy for a file that is before one that was already taken: `"train"` on
            it as soon as it is found, or `"skip"` it; both are recorded.
        poll_seconds: Time between two looks at the folder.
        idle_seconds: Time without a new file after which training ends. Default: it
            waits without end.

    Raises:
        ValueError: If a value is unknown or out of range.
    """

    order: Literal["name", "time"] = "name"
    marker: str | None = None
    settle_seconds: float = 5.0
    late: Literal["train", "skip"] = "train"
    poll_seconds: float = 1.0
    idle_seconds: float | None = None

    def __post_init__(self):
        for name, known in (("order", ("name", "time")), ("late", ("train", "skip"))):
            value = getattr(self, name)
            if value not in known:
                raise UserError(f"`{name}` must be one of {known}. Received: {value!r}")
        for name in ("settle_seconds", "poll_seconds", "idle_seconds"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"`{name}` must be at least 0. Received: {value!r}")


class Arrival(NamedTuple):
    """A finished file.

    Attributes:
        path: Its path.
        name: Its path in the folder.
        key: What files are ordered by: event time, if any, and name.
        is_late: Whether one that comes after it was already taken.
    """

    path: str
    name: str
    key: tuple[float, str]
    is_late: bool


class GrowingFolder:
    """The finished files of a folder, each returned once.

    Names that begin with "_" or ".", or end like unfinished downloads (`.tmp`, `.part`
    and others), are left alone, also as folders. Empty files are left alone until they
    have content. A file that changes after it was taken is not read again.

    Args:
        folder: The folder; partitions below it, such as `day=2026-11-30/`, count too.
        arrivals: The rules.
        time_of: Function of a path that returns its event time in seconds since 1970,
            for `order="time"`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        arrivals: Arrivals | None = None,
        time_of: Callable[[str], float] | None = None,
    ):
        self.folder = pathlib.Path(folder)
        self.arrivals = arrivals or Arrivals()
        if self.arrivals.order == "time" and time_of is None:
            raise UserError(
                "`order='time'` needs a schema with a time column: set `time` in the "
                "schema, or use order='name'."
            )
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is not a folder.")
        self._time_of = time_of if self.arrivals.order == "time" else None
        self._taken: dict[str, str] = {}  # name to why: trained, skipped, refused
        self._last: tuple[float, str] | None = None
        self._times: dict[str, float] = {}

    # State in checkpoints

    def get_state(self) -> dict[str, Any]:
        """Return which files were taken, JSON-safe.

        Files that are no longer in the folder are forgotten.
        """
        names = {name for name, _ in self._list()}
        self._taken = {n: why for n, why in self._taken.items() if n in names}
        return {"taken": self._taken, "last": self._last}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Set the state that `get_state` returned."""
        self._taken = dict(state["taken"])
        self._last = None if state["last"] is None else tuple(state["last"])

    def take(self, arrival: Arrival, why: str = "trained") -> None:
        """Note that a file is done with."""
        self._taken[arrival.name] = why
        if why != "refused":
            self._last = max(self._last or arrival.key, arrival.key)

    # Files

    def next(self, now: float | None = None) -> Arrival | None:
        """Return the next finished file, or `None` if there is none yet.

        Late files that the policy skips are noted as taken.

        Args:
            now: The time, in seconds since 1970.
        """
        now = time.time() if now is None else now
        ready = []
        for name, path in self._list():
            if name in self._taken or not self._is_finished(path, now):
                continue
            key = (self._event_time(name, path), name)
            is_late = self._last is not None and key < self._last
            arrival = Arrival(str(path), name, key, is_late)
            if is_late and self.arrivals.late == "skip":
                self._taken[name] = "skipped"
                print(
                    f"Skipped {name}: it is before {self._last[1]}, which was taken.",
                    flush=True,
                )
                continue
            ready.append(arrival)
        return min(ready, key=lambda arrival: arrival.key, default=None)

    def _list(self) -> list[tuple[str, pathlib.Path]]:
        """Return the names and paths of all files that are not hidden."""
        found = []
        for root, folders, names in os.walk(self.folder):
            folders[:] = [f for f in folders if not _is_hidden(f)]
            for name in names:
                if not _is_hidden(name):
                    path = pathlib.Path(root, name)
                    found.append((path.relative_to(self.folder).as_posix(), path))
        return sorted(found)

    def _is_finished(self, path: pathlib.Path, now: float) -> bool:
        try:
            status = path.stat()
        except FileNotFoundError:
            return False  # it was removed or renamed
        if not status.st_size:
            return False
        if self.arrivals.marker is not None:
            return (path.parent / self.arrivals.marker).exists()
        return now - status.st_mtime >= self.arrivals.settle_seconds

    def _event_time(self, name: str, path: pathlib.Path) -> float:
        if self._time_of is None:
            return 0.0
        if name not in self._times:
            self._times[name] = self._time_of(str(path))
        return self._times[name]


def _is_hidden(name: str) -> bool:
    return name.startswith(_HIDDEN) or name.lower().endswith(_UNFINISHED)
