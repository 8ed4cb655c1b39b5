"""A run of several workers, of which the chief writes the folder."""

import contextlib
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import tensorflow as tf

from pipelines.runs.folder import RunFolder
from tf_dlrm.runtime import collectives, place


def place_of(strategy: tf.distribute.Strategy | None) -> place.Place:
    """Return the place of this process under the strategy of a run."""
    return place.ALONE if strategy is None else place.place_of(strategy)


def explaining_lost(
    strategy: tf.distribute.Strategy | None,
) -> contextlib.AbstractContextManager[None]:
    """Return a context whose errors name the workers that are missing."""
    return place.explaining_lost_workers(place_of(strategy))


@contextlib.contextmanager
def folder_of(folder: RunFolder, own: place.Place) -> Iterator[RunFolder]:
    """Return the folder that this worker writes: a temporary one except in the chief.

    It begins as a copy of the run's description and shares its checkpoints, so that all
    workers take the same decisions.

    Args:
        folder: The folder of the run, on a file system that all workers share.
        own: The place of this worker.
    """
    if own.num_workers == 1 or own.is_chief:
        collectives.wait_for_all(own)  # the others copy first
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="worker-") as scratch:
        copy = RunFolder(pathlib.Path(scratch) / folder.path.name)
        copy.path.mkdir()
        copy.checkpoint_dir = folder.checkpoint_dir
        for path in _described(folder):
            shutil.copy(path, copy.path)
        collectives.wait_for_all(own)
        yield copy


def _described(folder: RunFolder) -> list[pathlib.Path]:
    """Return the files of a run, except its models."""
    if not folder.path.is_dir():
        return []
    return [
        path
        for path in folder.path.iterdir()
        if path.is_file() and path.suffix in (".json", ".tsv", ".csv", ".jsonl")
    ]
