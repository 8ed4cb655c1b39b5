"""Datasets that can begin at any batch of any epoch, as an exact resume needs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime import disk
from tf_dlrm.runtime.errors import UserError


class Position:
    """The position at which the next iteration of a dataset begins.

    `ResumableTraining` moves it at the start of each epoch; a dataset made with it
    reads it when it is iterated.

    Attributes:
        epoch: Number of the epoch.
        batch: Number of the batch in the epoch.
        is_followed: Whether `fit` follows it.
        epochs_differ: Whether an epoch may have more batches than the one before.
    """

    def __init__(self, is_endless: bool = False, epochs_differ: bool = False) -> None:
        self.epoch = self.batch = 0
        self.epochs_differ = epochs_differ
        self.is_followed = False
        self.steps_per_epoch: int | None = None
        self._is_endless = is_endless

    def follow(self, steps_per_epoch: int | None, steps_per_execution: int) -> None:
        """Follow a `fit`, which calls this before it begins, with its own arguments.

        Raises:
            ValueError: If `steps_per_epoch` cuts a dataset that ends.
        """
        self.is_followed = True
        if steps_per_epoch is None:
            return
        if not self._is_endless:
            raise UserError(
                "`steps_per_epoch` with a resumable dataset needs one without end "
                "(repeat=True). Received: "
                f"steps_per_epoch={steps_per_epoch}"
            )
        executions = -(-steps_per_epoch // steps_per_execution)
        self.steps_per_epoch = executions * steps_per_execution

    def begins(self) -> tf.data.Dataset:
        """Return a dataset of one `(epoch, first batch)`, read when it is iterated.

        For an endless dataset, which `steps_per_epoch` divides into epochs, the epoch
        is 0 and batches are counted from the start.
        """

        def read():
            if self.steps_per_epoch:
                return np.int64(0), np.int64(
                    self.epoch * self.steps_per_epoch + self.batch
                )
            return np.int64(self.epoch), np.int64(self.batch)

        def look(_):
            found = tf.numpy_function(read, [], (tf.int64, tf.int64))
            for each in found:
                each.set_shape(())
            return tuple(found)

        return tf.data.Dataset.from_tensors(0).map(look)


@dataclasses.dataclass(frozen=True)
class ResumableInput:
    """The attribute `resumable_input` of a dataset that can begin at any batch.

    Args:
        description: Everything that decides the batches, JSON-safe: a checkpoint with
            another description is refused.
        seed: The seed of its order, drawn if none was given.
        make: Function of `(position, seed)` that returns a dataset which begins at the
            position each time it is iterated. The content of a batch must be a
            function of the seed, its epoch and its number.
        num_batches: Batches in an epoch, `None` if that is not known.
        is_endless: Whether the dataset continues with the next epoch by itself.
        epochs_differ: Whether epochs have different numbers of batches.
        files: Files whose content decides the batches: a checkpoint that was written
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
        """Return the description, with fingerprints of the files."""
        if not self.files:
            return self.description
        return {**self.description, "content": disk.fingerprints(self.files)}

    def attach(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return the dataset, with this as its attribute."""
        dataset.resumable_input = self
        return dataset

    def begin(self, seed: int | None) -> tuple[tf.data.Dataset, Position]:
        """Return a dataset and the position that it follows.

        Args:
            seed: Seed of its order; `None` for its own.
        """
        position = Position(self.is_endless, self.epochs_differ)
        dataset = self.make(position, self.seed if seed is None else seed)
        dataset.position = position
        if self.num_batches is not None:
            # That of an epoch, for Keras. (`assert_cardinality` would be wrong in the
            # epoch that begins in the middle.)
            dataset.cardinality = lambda: tf.constant(self.num_batches, tf.int64)
        return dataset, position


def find_differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the differences of two descriptions, each as a phrase.

    Checkpoints of earlier versions do not know the content of files.
    """
    contents: tuple[Any, Any] = before.get("content"), now.get("content")
    differing = [
        f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
        for name in sorted({*before, *now} - {"content"})
        if before.get(name) != now.get(name)
    ]
    if differing or None in contents or contents[0] == contents[1]:
        return differing
    return [f"{name} has another content" for name in changed_files(*contents)]


def changed_files(before: list[list[str]], now: list[list[str]]) -> list[str]:
    """Return the names of files whose fingerprints differ or exist on one side only."""
    both = zip(before, now)
    changed = [old[0] for old, new in both if list(old) != list(new)]
    return changed + [name for name, _ in [*before[len(now) :], *now[len(before) :]]]


def resumable_input(dataset: tf.data.Dataset) -> ResumableInput | None:
    """Return the `ResumableInput` of a dataset, or `None` if it has none.

    Methods such as `map` return another dataset, which has none.
    """
    return getattr(dataset, "resumable_input", None)


def weigh_classes(
    dataset: tf.data.Dataset, class_weight: dict[int, float]
) -> tf.data.Dataset:
    """Give the rows of a dataset with a position the weights of their labels.

    As Keras' `fit` does with `class_weight`, whose dataset would have no position.

    Args:
        dataset: Of `(features, label)`, with a `position`.
        class_weight: Label, 0 or 1, to weight; 1.0 where there is none.

    Raises:
        ValueError: If the rows have weights already.
    """
    weights = [float(class_weight.get(label, 1.0)) for label in (0, 1)]

    def weigh(features, label, sample_weight=None):
        if sample_weight is not None:
            raise UserError("Give either `class_weight` or sample weights, not both.")
        return features, label, tf.gather(weights, tf.cast(tf.round(label), tf.int32))

    weighted = dataset.map(weigh, tf.data.AUTOTUNE, deterministic=True)
    weighted.position = dataset.position
    return weighted
