"""The guard of the train step: a batch that would spoil the weights is left out.

`TerminateOnNaN` and its like see a loss after the weights were updated with it. Here
the step looks before it updates anything.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.runtime import accelerators, deferred_checks, replicas
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Logs

# What is looked at where something is not finite, in the order of the computation.
SOURCES = ("dense features", "labels", "sample weights", "embeddings", "the loss")


class NotFiniteError(UserError):
    """Batch after batch had a loss or gradients that were not finite."""


class StepGuard:
    """Tells batches that may be applied from others, and counts these.

    All replicas apply a batch, or none does.

    Args:
        device: Where the counts lie.

    Attributes:
        reads_seldom: Whether the host reads the counts every so many steps only, not
            to make an accelerator wait.
    """

    def __init__(self, device: str) -> None:
        def make():
            return tf.Variable(tf.zeros(1 + len(SOURCES), tf.int64), trainable=False)

        # How many were skipped, and what was not finite in the last of them. A batch
        # that is applied writes nothing.
        self._counts = replicas.on_device(device, make)
        self._has_just_skipped = False
        self.reads_seldom = accelerators.are_visible()
        # How many in a row were skipped, now and at most.
        self._in_a_row = None
        if self.reads_seldom:
            self._in_a_row = replicas.on_device(
                device, lambda: tf.Variable(tf.zeros(2, tf.int64), trainable=False)
            )

    def admit(self, sources: Sequence[Any], gradients: Any) -> tf.Tensor:
        """Decide whether a batch may be applied, and count it if not.

        To be called by each replica, once a step.

        Args:
            sources: Tensors in any structure for each of `SOURCES`; `None` for what
                is not there.
            gradients: Tensors in any structure.

        Returns:
            Bool scalar tensor: whether loss and gradients are finite in all replicas.
        """
        finite = is_finite((sources[-1], gradients))

        def look():
            return tf.stack([is_finite(source) for source in sources])

        if replicas.count() == 1:
            self._count_unless(finite, look)
            return finite
        found = tf.cond(finite, lambda: tf.ones(len(SOURCES), tf.bool), look)
        return replicas.run_for_all(self._agree, {"finite": finite, "found": found})

    def _agree(self, of_replicas):
        finite = tf.reduce_all([each["finite"] for each in of_replicas])
        found = [each["found"] for each in of_replicas]
        self._count_unless(finite, lambda: tf.reduce_all(found, axis=0))
        return [finite] * len(of_replicas)

    def _count_unless(self, finite, look):
        if self._in_a_row is not None:
            counted = tf.concat([self._counts[:1] + 1, tf.cast(~look(), tf.int64)], 0)
            accelerators.assign_unless(finite, self._counts, counted)
            now = tf.where(finite, tf.zeros((), tf.int64), self._in_a_row[0] + 1)
            most = tf.maximum(self._in_a_row[1], now)
            self._in_a_row.assign(tf.stack([now, most]))
            return

        def count():
            spoiled = tf.cast(~look(), tf.int64)
            self._counts.assign(tf.concat([self._counts[:1] + 1, spoiled], 0))
            return True

        tf.cond(finite, lambda: False, count)

    @property
    def has_just_skipped(self) -> bool:
        """True if the last call of the train function in `fit` left a batch out."""
        if self._in_a_row is not None:
            return bool(self._in_a_row.numpy()[0])
        return self._has_just_skipped

    @has_just_skipped.setter
    def has_just_skipped(self, value: bool) -> None:
        self._has_just_skipped = value

    def take_most_in_a_row(self) -> int:
        """Return the longest row of skipped batches since the last call of this.

        Zero where the host reads the counts at each step, and can tell.
        """
        if self._in_a_row is None:
            return 0
        now, most = (int(each) for each in self._in_a_row.numpy())
        self._in_a_row.assign([now, 0])
        return most

    def forget_row(self) -> None:
        """Let the next skipped batch be the first in a row."""
        self._has_just_skipped = False
        if self._in_a_row is not None:
            self._in_a_row.assign(tf.zeros(2, tf.int64))

    @property
    def num_skipped(self) -> int:
        """Batches that were not applied so far."""
        return int(self._counts.numpy()[0])

    def describe(self) -> str:
        """Name what was not finite in the last batch that was not applied."""
        spoiled = self._counts.numpy()[1:]
        names = [name for name, bad in zip(SOURCES, spoiled, strict=True) if bad]
        return ", ".join(names) or "a gradient"

    def get_state(self) -> np.ndarray:
        """Return the counts, int64, to resume with."""
        return self._counts.numpy()

    def set_state(self, state: np.ndarray) -> None:
        """Set what `get_state` returned."""
        self._counts.assign(state)


def is_finite(x: Any) -> tf.Tensor:
    """Return whether all values are finite; `False` too where their sum overflows.

    Args:
        x: Tensors in any structure.

    Returns:
        Bool scalar tensor. One pass over the values, and no copy.
    """
    sums = [
        tf.reduce_sum(tf.cast(each, tf.float32))
        for each in tf.nest.flatten(x, expand_composites=True)
        if each is not None
    ]
    return tf.math.is_finite(tf.add_n(sums)) if sums else tf.constant(True)


class Restorable:
    """Variables of this replica, as they were when this object was made.

    Args:
        variables: Keras variables.
    """

    def __init__(self, variables: Iterable[keras.Variable]) -> None:
        number = replicas.number()
        self._variables = []
        for variable in variables:
            local = row_ops.local_variables(variable.value)
            self._variables.append(local[number if len(local) > 1 else 0])
        self._before = [tf.identity(variable) for variable in self._variables]

    def restore_unless(self, keep: tf.Tensor) -> None:
        """Set the variables back, unless `keep`, a bool scalar tensor."""
        if not self._variables:
            return
        if accelerators.are_visible():
            for variable, value in zip(self._variables, self._before, strict=True):
                accelerators.assign_unless(keep, variable, value)
            return

        def restore():
            for variable, value in zip(self._variables, self._before, strict=True):
                variable.assign(value)
            return tf.constant(0)

        tf.cond(keep, lambda: tf.constant(0), restore)


class GuardCallback(keras.callbacks.Callback):
    """Stops `fit` where too many batches in a row were skipped.

    Args:
        guard: The model's `StepGuard`.
        max_in_a_row: How many in a row are too many.
    """

    def __init__(self, guard: StepGuard, max_in_a_row: int) -> None:
        super().__init__()
        self._guard, self._max_in_a_row = guard, max_in_a_row

    def on_train_begin(self, logs: Logs = None) -> None:
        self._num_skipped = self._at_begin = self._guard.num_skipped
        self._in_a_row = 0
        self._first: tuple[int, int, int] | None = None  # epoch, batches from and to
        self._guard.forget_row()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._epoch, self._at_epoch = epoch, self._num_skipped
        self._batch, self._next, self._num_batches = 0, 0, 0
        self._has_read = True

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        if self._has_read:  # the first of those that the next read is about
            self._batch, self._next, self._has_read = batch, batch, False

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        self._num_batches += batch + 1 - self._next
        self._next = batch + 1
        num_batches = self._next - self._batch
        if not self._guard.reads_seldom or num_batches >= deferred_checks.READ_EVERY:
            self._read(batch, num_batches)

    def _read(self, batch, num_batches):
        self._has_read = True
        num_skipped = self._guard.num_skipped
        new, self._num_skipped = num_skipped - self._num_skipped, num_skipped
        self._guard.has_just_skipped = new > 0
        if self._guard.reads_seldom:
            self._in_a_row = self._guard.take_most_in_a_row()
        else:  # of several steps run at once one cannot say which they were
            self._in_a_row = self._in_a_row + new if new == num_batches else 0
        if new and self._first is None:
            self._first = (self._epoch, self._batch + 1, batch + 1)
        if self._in_a_row >= self._max_in_a_row:
            self._stop(batch + 1)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if not self._has_read:
            self._read(self._next - 1, self._next - self._batch)
        num_skipped = self._num_skipped - self._at_epoch
        if num_skipped and num_skipped >= self._num_batches:
            self._in_a_row = num_skipped
            self._stop(self._batch + 1)

    def _stop(self, batch):
        raise NotFiniteError(
            f"The training diverged, or its data are damaged: {self._in_a_row:,} "
            "batches in a row had a loss or gradients that are not finite, the last of "
            f"them batch {batch:,} of epoch {self._epoch + 1} (not finite: "
            f"{self._guard.describe()}). None of them was applied: the weights are as "
            f"before the first, {self._where()}. Try a smaller learning rate, or look "
            "at the data."
        )

    def _where(self):
        if self._first is None:
            return "outside of `fit`"
        epoch, first, last = self._first
        batches = (
            f"batch {first:,}" if first == last else f"batch {first:,} to {last:,}"
        )
        return f"{batches} of epoch {epoch + 1}"

    def report(self) -> None:
        """Warn of batches that were skipped in this `fit`."""
        num_skipped = self._guard.num_skipped - self._at_begin
        if num_skipped:
            warnings.warn(
                f"{num_skipped:,} batches had a loss or gradients that are not finite "
                f"and were not applied, the first of them {self._where()} (not "
                f"finite in the last: {self._guard.describe()}).",
                RuntimeWarning,
                stacklevel=3,
            )
