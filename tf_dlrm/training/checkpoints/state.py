"""The state of a training run: what Keras' weights files hold, and what they lack.

They hold weights, tables and the state of optimizers, but not the seeds of dropout, nor
metrics in the middle of an epoch.
"""

import io
import math
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError

WEIGHTS, STATE = "model.weights.h5", "state.npz"


def write(
    model: keras.Model, metrics: dict[str, np.ndarray], folder: pathlib.Path
) -> None:
    """Write the state of a model into a folder.

    Args:
        model: The model.
        metrics: What `get_metrics` returned, or an empty dict.
        folder: The folder.
    """
    with _WeightsFile(folder / WEIGHTS) as file:
        model.save_weights(file)
        file.check()
    arrays: dict[str, Any] = {**_get_variables(model), **metrics, **_get_guard(model)}
    np.savez(folder / STATE, **arrays)


class _WeightsFile(io.BytesIO):
    """A file on disk that HDF5 writes to, where a full disk is an ordinary error.

    HDF5 cannot close a file of its own once a write has failed: it prints a traceback
    for each object in it, and crashes at the end of the process. So it is told that all
    went well, and `check` raises the first failure. (Keras takes a path or a `BytesIO`
    of which nothing but these methods is used.)

    Args:
        path: The file, named as Keras wants it.
    """

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__()
        self._path = str(path)
        self._error: OSError | None = None
        self._file = open(path, "w+b", buffering=0)
        self._end = 0

    def __str__(self) -> str:
        return self._path

    def write(self, data: Any) -> int:
        data = memoryview(data).cast("B")
        start, done = self._file.tell(), 0
        try:
            while done < len(data) and self._error is None:
                done += self._file.write(data[done:])
        except OSError as error:
            self._error = error
        self._end = max(self._end, start + len(data))
        self._file.seek(start + len(data))
        return len(data)

    def readinto(self, buffer: Any) -> int:
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_END:  # of all that it believes to have written
            offset, whence = offset + self._end, io.SEEK_SET
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def truncate(self, size: int | None = None) -> int:
        self._end = self.tell() if size is None else size
        try:
            self._file.truncate(self._end)
        except OSError as error:
            self._error = self._error or error
        return self._end

    def check(self) -> None:
        """Raise the first failure of a write."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        self._file.close()
        super().close()


def restore(model: keras.Model, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Restore the state of a model that `write` has written.

    Returns:
        Everything else that was written: the state of metrics.

    Raises:
        ValueError: If it is of another model or optimizer.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    try:
        with warnings.catch_warnings():
            # Keras skips the state of another optimizer with no more than a warning.
            warnings.simplefilter("error", UserWarning)
            model.load_weights(folder / WEIGHTS)
    except (UserWarning, ValueError) as error:
        raise UserError(
            f"{folder} is a checkpoint of another model or optimizer: {error}"
        ) from error
    with np.load(folder / STATE, allow_pickle=False) as file:
        state = dict(file)
    variables = model.non_trainable_variables
    keys = [key for key in state if key.startswith("variable:")]
    if len(keys) != len(variables):
        raise UserError(f"{folder} is a checkpoint of another model.")
    for i, variable in enumerate(variables):
        variable.assign(state[f"variable:{i}"])
    guard = getattr(model, "_guard", None)
    if guard is not None and "guard" in state:
        guard.set_state(state["guard"])
    return state


def count_bytes(model: keras.Model) -> int:
    """Return the approximate size of what `write` writes."""
    variables = [*model.variables, *model.optimizer.variables]
    total = sum(
        math.prod(v.shape) * np.dtype(_plain(v.dtype)).itemsize for v in variables
    )
    slots = getattr(getattr(model, "embedding", None), "slot_bytes", lambda: 0)
    return total + slots()


def _plain(dtype: Any) -> str:
    name = getattr(dtype, "name", dtype)
    return "float16" if name == "bfloat16" else name


def _get_variables(model: keras.Model) -> dict[str, np.ndarray]:
    variables = model.non_trainable_variables
    return {f"variable:{i}": v.numpy() for i, v in enumerate(variables)}


def _get_guard(model: keras.Model) -> dict[str, np.ndarray]:
    guard = getattr(model, "_guard", None)
    return {} if guard is None else {"guard": guard.get_state()}


def has_just_skipped(model: keras.Model) -> bool:
    """Return whether the last batch of `fit` was skipped, not applied.

    Raises:
        tf.errors.InvalidArgumentError: If an accelerator noted of a step before that
            an id or a label was out of range.
    """
    getattr(model, "raise_deferred", lambda: None)()
    guard = getattr(model, "_guard", None)
    return guard is not None and guard.has_just_skipped


def _metric_variables(model: keras.Model) -> Iterator[list[tf.Variable]]:
    """Variables of all metrics: lists of tf.Variables, one for each replica."""
    for metric in model.metrics:
        for variable in metric.variables:
            variable = variable.value
            yield list(getattr(variable, "values", [variable]))


def get_metrics(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the state of all metrics, of each replica."""
    return {
        f"metric:{i}:{j}": each.numpy()
        for i, replicas in enumerate(_metric_variables(model))
        for j, each in enumerate(replicas)
    }


def set_metrics(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    """Set what `get_metrics` returned; the metrics must be built.

    Raises:
        ValueError: If the model has other metrics.
    """
    for i, replicas in enumerate(_metric_variables(model)):
        count = sum(key.startswith(f"metric:{i}:") for key in state)
        if not count:
            raise UserError("The checkpoint was written with other metrics.")
        values = [state[f"metric:{i}:{j}"] for j in range(count)]
        if count != len(replicas):  # of another number of devices: what matters
            total = np.sum(values, axis=0)  # is the sum
            values = [total] + [np.zeros_like(total)] * (len(replicas) - 1)
        for each, value in zip(replicas, values, strict=True):
            if each.shape != value.shape:
                raise UserError("The checkpoint was written with other metrics.")
            each.assign(value)
