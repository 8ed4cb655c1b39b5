"""The scalars in a folder of logs, read with TensorBoard's reader of event files."""

import dataclasses
import math
import pathlib
from typing import NamedTuple

_GROUPS = ("metrics/", "speed/")


class Entry(NamedTuple):
    """A value that was written at a step, and when (seconds since 1970)."""

    time: float
    step: int
    value: float


@dataclasses.dataclass(frozen=True)
class LogFile:
    """One event file: what one process wrote into one folder.

    Attributes:
        start: When its first event was written.
        end: When its last one was.
        scalars: Entries of each tag of metrics and speed, as they were written.
    """

    start: float
    end: float
    scalars: dict[str, list[Entry]]

    def get(self, tag: str) -> list[Entry]:
        """The entries of a tag."""
        return self.scalars.get(tag, [])


def read_folder(folder) -> list[LogFile]:
    """The event files of a folder, in the order in which they were begun.

    A file may end in mid-record: its process was killed, or is still writing.
    """
    paths = pathlib.Path(folder).glob("events.out.tfevents.*")
    found = [_read_file(path) for path in paths]
    return sorted((each for each in found if each), key=lambda each: each.start)


def join(files: list[LogFile], tag: str) -> dict[int, float]:
    """A tag's values by step, over all files.

    A run that was killed and goes on repeats the steps since its last checkpoint: of
    what was written before, only steps ahead of those count.
    """
    found = {}
    for file in files:
        entries = file.get(tag)
        if entries:
            first = entries[0].step
            found = {step: value for step, value in found.items() if step < first}
            found |= {entry.step: entry.value for entry in entries}
    return found


def finite(value) -> float | None:
    """A number, or `None` for what is missing, infinite or not a number."""
    return None if value is None or not math.isfinite(value) else float(value)


def _read_file(path):
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub import errors, pywrap_tensorflow

    # TensorBoard's reader in Python: that in C++ is TensorFlow.
    reader = pywrap_tensorflow.PyRecordReader_New(str(path))
    times, scalars = [], {}
    while True:
        try:
            reader.GetNext()
        except (errors.OutOfRangeError, errors.DataLossError):
            break
        event = Event.FromString(reader.record())
        times.append(event.wall_time)
        for value in event.summary.value:
            if value.tag.startswith(_GROUPS):
                entry = Entry(event.wall_time, event.step, _number(value))
                scalars.setdefault(value.tag, []).append(entry)
    return LogFile(min(times), max(times), scalars) if times else None


def _number(value):
    from tensorboard.util import tensor_util

    if value.WhichOneof("value") == "simple_value":
        return value.simple_value
    return float(tensor_util.make_ndarray(value.tensor).item())
