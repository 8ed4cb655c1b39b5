"""Datasets that can begin at any batch of any epoch, for exact resumption."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime import disk
from tf_dlrm.runtime.errors import UserError


class Position:
    """The position at which the next iteration of a dataset begins.

    `ResumableTraining` sets it at the start of each epoch, and its dataset reads it
    when the dataset is iterated.

    Args:
        is_endless: Whether the dataset has no end.
        epochs_differ: Whether epochs have different numbers of batches.

    Attributes:
        epoch: Number of the epoch, from 0.
        batch: Number of the batch in the epoch, from 0.
        is_followed: Whether a `fit` uses this position.
        epochs_differ: Whether epochs have different numbers of batches.
        steps_per_epoch: Number of steps in an epoch of an endless dataset, or `None`.
    """

    def __init__(self, is_endless: bool = False, epochs_differ: bool = False) -> None:
        self.epoch = self.batch = 0
        self.epochs_differ = epochs_differ
        self.is_followed = False
        self.steps_per_epoch: int | None = None
        self._is_endless = is_endless

    def follow(self, steps_per_epoch: int | None, steps_per_execution: int) -> None:
        """Take over the arguments of a `fit`, which calls this method before it begins.

        Args:
            steps_per_epoch: The argument of `fit`.
            steps_per_execution: The argument of `compile`.

        Raises:
            ValueError: If `steps_per_epoch` is set for a dataset that ends.
        """
        self.is_followed = True
        if steps_per_epoch is None:
            return
        if not self._is_endless:
            raise UserError(
                "`steps_per_epoch` with a resumable dataset requires an endless one "
                f"(repeat=True). Received: steps_per_epoch={steps_per_epoch}"
            )
        executions = -(-steps_per_epoch // steps_per_execution)
        self.steps_per_epoch = executions * steps_per_execution

    def begins(self) -> tf.data.Dataset:
        """Return a dataset with one element, the current `(epoch, first batch)`.

        The position is read when the dataset is iterated. In an endless dataset, which
        `steps_per_epoch` divides into epochs, the epoch is 0 and batches are counted
        from the start.
        """

        def read():
            if self.steps_per_epoch:
                return np.int64(0), np.int64(
                    self.epoch * self.steps_per_epoch + self.batch
                )
            return np.int64(self.epoch), np.int64(self.batch)

        def read_in_graph(_):
            position = tf.numpy_function(read, [], (tf.int64, tf.int64))
            for tensor in position:
                tensor.set_shape(())
            return tuple(position)

        return tf.data.Dataset.from_tensors(0).map(read_in_graph)


@dataclasses.dataclass(frozen=True)
class ResumableInput:
    """Description of a dataset that can begin at any batch.

    A dataset has it as the attribute `resumable_input`.

    Args:
        description: All JSON-safe values that determine the batches. A checkpoint with
            another description is refused.
        seed: Seed of the order of rows.
        make: Function `(position, seed)` that returns a dataset, which begins at the
            position each time it is iterated. The content of a batch must depend only
            on the seed, the epoch and the number of the batch.
        num_batches: Number of batches in an epoch, or `None` if it is unknown.
        is_endless: Whether the dataset continues with the next epoch by itself.
        epochs_differ: Whether epochs have different numbers of batches.
        files: Files whose content determines the batches. A checkpoint that was written
            with other content is refused.
    """

    description: dict[str, Any]
    seed: int
    make: Callable[[Position, int], tf.data.Dataset]
    num_batches: int | None = None
    is_endless: bool = False
    epochs_differ: bool = False
    files: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """Return the description together with fingerprints of the files."""
        if not self.files:
            return self.description
        return {**self.description, "content": disk.fingerprints(self.files)}

    def attach(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Set this object as the dataset's `resumable_input`; return the dataset."""
        dataset.resumable_input = self
        return dataset

    def begin(self, seed: int | None) -> tuple[tf.data.Dataset, Position]:
        """Create a dataset, and return it with the position at which it begins.

        Args:
            seed: Seed of the order of rows; default: `self.seed`.
        """
        position = Position(self.is_endless, self.epochs_differ)
        dataset = self.make(position, self.seed if seed is None else seed)
        dataset.position = position
        if self.num_batches is not None:
            # Keras needs the size of a full epoch. (`assert_cardinality` would be wrong
            # in an epoch that begins in the middle.)
            dataset.cardinality = lambda: tf.constant(self.num_batches, tf.int64)
        return dataset, position


def check_same(
    folder: Any, before: dict[str, Any] | None, now: dict[str, Any] | None
) -> None:
    """Check that checkpoints were written with the same dataset.

    Args:
        folder: The folder of the checkpoints, for the message.
        before: Description of their dataset; `None` if it cannot begin at any batch.
        now: Description of the dataset now.

    Raises:
        ValueError: If the datasets differ; the message says how.
    """
    if before == now:
        return
    if before is None or now is None:
        raise UserError(
            f"The checkpoints in {folder} were written with a dataset that "
            f"{_can(before)} start in the middle of an epoch, but this one {_can(now)}."
        )
    if differing := find_differences(before, now):
        raise UserError(
            f"The checkpoints in {folder} were written with another dataset: "
            f"{'; '.join(differing)}."
        )


def _can(description: dict[str, Any] | None) -> str:
    return "cannot" if description is None else "can"


def find_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the differences between two descriptions, each as a phrase.

    Checkpoints of earlier versions do not describe the content of files.
    """
    contents: tuple[Any, Any] = before.get("content"), now.get("content")
    differing = [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted({*before, *now} - {"content"})
        if before.get(name) != now.get(name)
    ]
    if differing or None in contents or contents[0] == contents[1]:
        return differing
    return [f"{name} has different content" for name in changed_files(*contents)]


def changed_files(before: list[list[str]], now: list[list[str]]) -> list[str]:
    """Return the names of files whose fingerprints differ or exist on one side only."""
    both = zip(before, now)
    changed = [old[0] for old, new in both if list(old) != list(new)]
    return changed + [name for name, _ in [*before[len(now) :], *now[len(before) :]]]


def resumable_input(dataset: tf.data.Dataset) -> ResumableInput | None:
    """Return the `ResumableInput` of a dataset, or `None`.

    Datasets that methods such as `map` return have none.
    """
    return getattr(dataset, "resumable_input", None)


def weigh_classes(options: dict[str, Any]) -> None:
    """Check the class weights of `fit`, and apply them to a dataset with a position.

    Keras' `fit` weights rows by `class_weight` too, but its dataset has no position.

    Args:
        options: Arguments of `fit` by name, which are changed.

    Raises:
        ValueError: If `class_weight` is not a dict of weights of the labels 0 and 1, or
            the rows have weights already.
    """
    given = options.get("class_weight")
    if given is None:
        return
    weights = [given.get(label, 1.0) for label in (0, 1)] if _is_dict(given) else []
    if not weights or not all(map(_is_weight, weights)):
        raise UserError(
            "`class_weight` must be a dict such as {0: 1.0, 1: 5.0}: weights of the "
            "labels 0 and 1 that are finite and not negative. Received: "
            f"class_weight={given!r}"
        )
    options["class_weight"] = dict(enumerate(map(float, weights)))
    dataset: Any = options.get("x")
    if not hasattr(dataset, "position"):
        return

    by_label = tf.constant(weights, tf.float32)

    def weigh(features, label, sample_weight=None):
        if sample_weight is not None:
            raise UserError("Use either `class_weight` or sample weights, not both.")
        row_weights = tf.gather(by_label, tf.cast(tf.round(label), tf.int32))
        return features, label, row_weights

    weighted = dataset.map(weigh, tf.data.AUTOTUNE, deterministic=True)
    weighted.position = dataset.position
    options["x"], options["class_weight"] = weighted, None


def _is_dict(given: Any) -> bool:
    """Return whether class weights are a dict of some of the labels 0 and 1."""
    return isinstance(given, Mapping) and bool(given) and set(given) <= {0, 1}


def _is_weight(value: Any) -> bool:
    """Return whether a value is a finite number that is not negative."""
    is_number = isinstance(value, int | float | np.number)
    return is_number and bool(0.0 <= value < math.inf)
