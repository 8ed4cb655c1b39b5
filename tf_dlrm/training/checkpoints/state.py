"""The state of a training run: a Keras weights file, and the state that it lacks.

The weights file holds weights, tables and the state of optimizers, but not the seeds of
dropout, nor metrics in the middle of an epoch.
"""

import math
import pathlib
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.runtime.collectives import gather_arrays
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.place import place_of
from tf_dlrm.training import table_rates
from tf_dlrm.training.weights_file import WeightsFile

WEIGHTS, STATE = "model.weights.h5", "state.npz"


def write(
    model: keras.Model, metrics: dict[str, np.ndarray], folder: pathlib.Path
) -> None:
    """Write the state of a model to a folder.

    Args:
        model: The model.
        metrics: The result of `get_metrics`, or an empty dict.
        folder: The folder.
    """
    with WeightsFile(folder / WEIGHTS) as file:
        model.save_weights(file)
        file.check()
    arrays: dict[str, Any] = {**_get_variables(model), **metrics, **_get_guard(model)}
    arrays["table_rates"] = table_rates.get_rates(model)
    np.savez(folder / STATE, **arrays)


def restore(model: keras.Model, folder: pathlib.Path) -> dict[str, np.ndarray]:
    """Restore the state of a model from a folder that `write` wrote.

    Args:
        model: A compiled model with the same architecture and optimizers.
        folder: The folder.

    Returns:
        The other arrays in the folder, including the state of metrics.

    Raises:
        ValueError: If the folder belongs to another model or optimizer.
    """
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    try:
        with warnings.catch_warnings():
            # Keras only warns when it skips the state of another optimizer.
            warnings.simplefilter("error", UserWarning)
            model.load_weights(folder / WEIGHTS)
    except (UserWarning, ValueError) as error:
        raise UserError(
            f"{folder} belongs to another model or optimizer: {error}"
        ) from error
    with np.load(folder / STATE, allow_pickle=False) as file:
        state = dict(file)
    variables = model.non_trainable_variables
    keys = [key for key in state if key.startswith("variable:")]
    if len(keys) != len(variables):
        raise UserError(f"{folder} belongs to another model.")
    for i, variable in enumerate(variables):
        variable.assign(state[f"variable:{i}"])
    guard = getattr(model, "_guard", None)
    if guard is not None and "guard" in state:
        guard.set_state(state["guard"])
    # Older checkpoints lack them.
    table_rates.set_rates(model, state.pop("table_rates", np.zeros(0)))
    return state


def count_bytes(model: keras.Model) -> int:
    """Return the approximate size in bytes of the files that `write` writes."""
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
    """Return whether `fit` skipped its last batch.

    Raises:
        tf.errors.InvalidArgumentError: If a deferred check of an earlier step found an
            id or a label out of range.
    """
    getattr(model, "raise_deferred", lambda: None)()
    guard = getattr(model, "_guard", None)
    return guard is not None and guard.has_just_skipped


def _metric_variables(model: keras.Model) -> Iterator[list[tf.Variable]]:
    """Yield the variables of all metrics, each as a list with one for each replica."""
    for metric in model.metrics:
        for variable in metric.variables:
            variable = variable.value
            yield list(getattr(variable, "values", [variable]))


def get_metrics(model: keras.Model) -> dict[str, np.ndarray]:
    """Return the state of all metrics in each replica.

    With several workers, all of them must call this function.
    """
    own = [[v.numpy() for v in replicas] for replicas in _metric_variables(model)]
    place = place_of(model.distribute_strategy)
    if place.num_workers == 1:
        return _named(own)
    flat = [np.ravel(value) for values in own for value in values]
    parts = gather_arrays(place, np.concatenate([np.zeros(1), *flat], dtype=np.float64))
    gathered: list[list[np.ndarray]] = [[] for _ in own]
    for part in parts:
        first = 1
        for values, into in zip(own, gathered, strict=True):
            for like in values:
                value = part[first : first + like.size].reshape(like.shape)
                into.append(value.astype(like.dtype))
                first += like.size
    return _named(gathered)


def _named(states):
    return {
        f"metric:{i}:{j}": value
        for i, values in enumerate(states)
        for j, value in enumerate(values)
    }


def set_metrics(model: keras.Model, state: dict[str, np.ndarray]) -> None:
    """Set the state of metrics that `get_metrics` returned; they must be built.

    Raises:
        ValueError: If the model has other metrics.
    """
    place = place_of(model.distribute_strategy)
    for i, replicas in enumerate(_metric_variables(model)):
        count = sum(key.startswith(f"metric:{i}:") for key in state)
        if not count:
            raise UserError("The checkpoint was written with other metrics.")
        values = [state[f"metric:{i}:{j}"] for j in range(count)]
        num_all = len(replicas) * place.num_workers
        if count != num_all:  # the number of devices changed: keep the sum
            total = np.sum(values, axis=0)
            values = [total] + [np.zeros_like(total)] * (num_all - 1)
        first = len(replicas) * place.worker
        own = values[first : first + len(replicas)]
        for variable, value in zip(replicas, own, strict=True):
            if variable.shape != value.shape:
                raise UserError("The checkpoint was written with other metrics.")
            variable.assign(value)
