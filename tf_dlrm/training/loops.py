"""Contexts around what all workers of a model do: its loops, and saving it."""

import contextlib
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

from tf_dlrm.runtime import place
from tf_dlrm.runtime.collectives import wait_for_all
from tf_dlrm.training import keras_hooks


def explaining_lost_workers(model: Any) -> contextlib.AbstractContextManager[None]:
    """Return a context whose errors name the workers that a model's loop has lost."""
    return place.explaining_lost_workers(place.place_of(model.distribute_strategy))


@contextlib.contextmanager
def running(model: Any, steps: int | None) -> Iterator[None]:
    """Return a context for a loop that reads the tables of a model.

    Args:
        model: The `RowSparseModel`.
        steps: The argument of `evaluate` or `predict`.
    """
    model.embedding.settle()
    quiet = keras_hooks.without_end_of_data_warnings(steps)
    with quiet, explaining_lost_workers(model):
        yield


@contextlib.contextmanager
def written_by_chief(model: Any, path: Any) -> Iterator[Any]:
    """Return a context in which all workers write a file, and the chief's is kept.

    All workers must take part, because each table is on one of them. The others write
    temporary files, and wait until the chief has written its own.

    Args:
        model: The model.
        path: The path to write. A file object is returned unchanged.
    """
    own = place.place_of(model.distribute_strategy)
    if own.num_workers == 1 or not isinstance(path, str | os.PathLike):
        yield path
        return
    if own.is_chief:
        yield path
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield str(pathlib.Path(folder) / pathlib.Path(path).name)
    wait_for_all(own)
