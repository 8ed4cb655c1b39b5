"""The best checkpoint of a training run, by a monitored validation result."""

import dataclasses
import math
import pathlib

from tf_dlrm.callbacks.monitor import Monitor
from tf_dlrm.training.checkpoints.files import CheckpointFolder


@dataclasses.dataclass(frozen=True)
class BestCheckpoint:
    """A checkpoint and the results of the model in it.

    Attributes:
        path: Folder of the checkpoint.
        epoch: Number of the epoch, from 1.
        step: Number of steps that the model was trained for.
        value: The monitored value.
        results: Training results of the epoch so far, and validation results.
    """

    path: pathlib.Path
    epoch: int
    step: int
    value: float
    results: dict[str, float]


def find(folder: CheckpointFolder, monitor: str | None) -> BestCheckpoint | None:
    """Return the best checkpoint in a folder, the earliest of equal ones.

    Args:
        folder: The checkpoints.
        monitor: Name of the monitored result. With `None`, no checkpoint is best.
    """
    if monitor is None:
        return None
    best = None
    for name in folder.names():
        content = folder.peek(name)
        monitored = content.get("monitored")
        if not monitored or monitored[0] != monitor:
            continue
        if is_better(monitored[1], best, monitor):
            within_epoch = content["batch"] > 0
            best = BestCheckpoint(
                folder.path / name,
                content["epoch"] + within_epoch,
                folder.step(name),
                monitored[1],
                content.get("results", {}),
            )
    return best


def is_better(value: float | None, best: BestCheckpoint | None, monitor: str) -> bool:
    """Return whether a value is finite and better than that of `best`."""
    return Monitor(monitor, best=best.value if best else None).improves(value)


def facts(results: dict, monitor: str | None) -> dict:
    """Return the part of a checkpoint's manifest that `find` reads.

    Args:
        results: Results of the saved model.
        monitor: Name of the monitored result.
    """
    value = results.get(monitor)
    if value is None or not math.isfinite(value):
        return {"monitored": None}
    values = {name: float(value) for name, value in results.items()}
    return {"monitored": [monitor, float(value)], "results": values}
