"""The guard of the train step, which skips batches that would spoil the weights.

`TerminateOnNaN` and similar callbacks see a loss only after the weights were updated.
The guard checks loss and gradients before the step updates anything.
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

# The values to check when something is not finite, in the order of the computation.
SOURCES = ("dense features", "labels", "sample weights", "embeddings", "the loss")


class NotFiniteError(UserError):
    """Too many batches in a row had a loss or gradients that were not finite."""


class StepGuard:
    """Decision whether a batch may be applied, and a count of those that may not.

    Either all replicas apply a batch, or none does.

    Args:
        device: Device of the counts.

    Attributes:
        reads_seldom: Whether the host reads the counts only every few steps, so that an
            accelerator does not have to wait.
    """

    def __init__(self, device: str) -> None:
        def make():
            return tf.Variable(tf.zeros(1 + len(SOURCES), tf.int64), trainable=False)

        # Number of skipped batches, and what was not finite in the last of them. A
        # batch that is applied writes nothing.
        self._counts = replicas.on_device(device, make)
        self._has_just_skipped = False
        self.reads_seldom = accelerators.are_visible()
        # Number of batches skipped in a row: the current row, and the longest one.
        self._in_a_row = None
        if self.reads_seldom:
            self._in_a_row = replicas.on_device(
                device, lambda: tf.Variable(tf.zeros(2, tf.int64), trainable=False)
            )

    def admit(self, sources: Sequence[Any], gradients: Any) -> tf.Tensor:
        """Decide whether a batch may be applied, and count it if not.

        Each replica must call this method once per step.

        Args:
            sources: Tensors in any structure, one structure for each of `SOURCES`;
                `None` for absent values.
            gradients: Tensors in any structure.

        Returns:
            Whether loss and gradients are finite in all replicas, a bool scalar tensor.
        """
        finite = is_finite((sources[-1], gradients))

        def check_sources():
            return tf.stack([is_finite(source) for source in sources])

        if replicas.count() == 1:
            self._count_unless(finite, check_sources)
            return finite
        are_finite = tf.cond(
            finite, lambda: tf.ones(len(SOURCES), tf.bool), check_sources
        )
        arguments = {"finite": finite, "sources": are_finite}
        return replicas.run_for_all(self._agree, arguments)

    def _agree(self, replica_results):
        finite = tf.reduce_all([result["finite"] for result in replica_results])
        sources = [result["sources"] for result in replica_results]
        self._count_unless(finite, lambda: tf.reduce_all(sources, axis=0))
        return [finite] * len(replica_results)

    def _count_unless(self, finite, check_sources):
        if self._in_a_row is not None:
            spoiled = tf.cast(~check_sources(), tf.int64)
            counts = tf.concat([self._counts[:1] + 1, spoiled], 0)
            accelerators.assign_unless(finite, self._counts, counts)
            now = tf.where(finite, tf.zeros((), tf.int64), self._in_a_row[0] + 1)
            most = tf.maximum(self._in_a_row[1], now)
            self._in_a_row.assign(tf.stack([now, most]))
            return

        def count():
            spoiled = tf.cast(~check_sources(), tf.int64)
            self._counts.assign(tf.concat([self._counts[:1] + 1, spoiled], 0))
            return True

        tf.cond(finite, lambda: False, count)

    @property
    def has_just_skipped(self) -> bool:
        """True if the last call of the train function in `fit` skipped a batch."""
        if self._in_a_row is not None:
            return bool(self._in_a_row.numpy()[0])
        return self._has_just_skipped

    @has_just_skipped.setter
    def has_just_skipped(self, value: bool) -> None:
        self._has_just_skipped = value

    def take_most_in_a_row(self) -> int:
        """Return the most batches skipped in a row since the last call of this method.

        The result is 0 if the host reads the counts at each step anyway.
        """
        if self._in_a_row is None:
            return 0
        now, most = (int(count) for count in self._in_a_row.numpy())
        self._in_a_row.assign([now, 0])
        return most

    def forget_row(self) -> None:
        """Make the next skipped batch count as the first in a row."""
        self._has_just_skipped = False
        if self._in_a_row is not None:
            self._in_a_row.assign(tf.zeros(2, tf.int64))

    @property
    def num_skipped(self) -> int:
        """Number of batches skipped so far."""
        return int(self._counts.numpy()[0])

    def describe(self) -> str:
        """Return a text that names what was not finite in the last skipped batch."""
        spoiled = self._counts.numpy()[1:]
        names = [name for name, bad in zip(SOURCES, spoiled, strict=True) if bad]
        return ", ".join(names) or "a gradient"

    def get_state(self) -> np.ndarray:
        """Return the counts as int64, for `set_state`."""
        return self._counts.numpy()

    def set_state(self, state: np.ndarray) -> None:
        """Set the counts that `get_state` returned."""
        self._counts.assign(state)


def is_finite(x: Any) -> tf.Tensor:
    """Return whether all values, and their sum, are finite.

    The check makes one pass over the values and no copy.

    Args:
        x: Tensors in any structure.

    Returns:
        Bool scalar tensor.
    """
    sums = [
        tf.reduce_sum(tf.cast(tensor, tf.float32))
        for tensor in tf.nest.flatten(x, expand_composites=True)
        if tensor is not None
    ]
    return tf.math.is_finite(tf.add_n(sums)) if sums else tf.constant(True)


class Restorable:
    """Variables of this replica, with the values they had when this was created.

    Args:
        variables: Keras variables.
    """

    def __init__(self, variables: Iterable[keras.Variable]) -> None:
        number = replicas.local_number()
        self._variables = []
        for variable in variables:
            local = row_ops.local_variables(variable.value)
            self._variables.append(local[number if len(local) > 1 else 0])
        self._before = [tf.identity(variable) for variable in self._variables]

    def restore_unless(self, keep: tf.Tensor) -> None:
        """Restore the variables unless `keep`, a bool scalar tensor, is true."""
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
    """Callback that stops `fit` after too many skipped batches in a row.

    Args:
        guard: The model's `StepGuard`.
        max_in_a_row: Number of skipped batches in a row after which to stop.
    """

    def __init__(self, guard: StepGuard, max_in_a_row: int) -> None:
        super().__init__()
        self._guard, self._max_in_a_row = guard, max_in_a_row

    def on_train_begin(self, logs: Logs = None) -> None:
        self._num_skipped = self._at_begin = self._guard.num_skipped
        self._in_a_row = 0
        self._first: tuple[int, int, int] | None = None  # epoch, first and last batch
        self._guard.forget_row()

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._epoch, self._at_epoch = epoch, self._num_skipped
        self._batch, self._next, self._num_batches = 0, 0, 0
        self._has_read = True

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        if self._has_read:  # the first batch that the next read covers
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
        else:  # with several steps per call, it is unknown which of them were skipped
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
            f"The training diverged or the data are damaged: {self._in_a_row:,} "
            "batches in a row had a loss or gradients that are not finite. The last is "
            f"batch {batch:,} of epoch {self._epoch + 1} (not finite: "
            f"{self._guard.describe()}). None of them was applied, so the weights have "
            f"not changed since the first one, {self._where()}. Use a smaller learning "
            "rate, or check the data."
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
        """Warn if batches were skipped in this `fit`."""
        num_skipped = self._guard.num_skipped - self._at_begin
        if num_skipped:
            warnings.warn(
                f"{num_skipped:,} batches had a loss or gradients that are not finite "
                f"and were skipped. The first was {self._where()}; not finite in the "
                f"last one: {self._guard.describe()}.",
                RuntimeWarning,
                stacklevel=3,
            )
