"""What surrounds the loops of Keras' `fit`, `evaluate` and `predict`."""

import contextlib
from collections.abc import Iterator
from typing import Any

from tf_dlrm.runtime import place
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
