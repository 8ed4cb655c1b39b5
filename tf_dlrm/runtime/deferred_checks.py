"""Checks that a step makes on an accelerator and that the host reads later.

An assertion or a condition would make the device wait for the host at each step.
Instead, a failed check is recorded on the device, the step skips its batch, and the
caller of the steps raises an error at the next read.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime import accelerators, replicas

READ_EVERY = 50  # steps between two reads

_thread = threading.local()


class _Check(NamedTuple):
    """The first failure of a check, `(1, *details)`; zeros if there was none."""

    record: tf.Variable
    describe: Callable[[np.ndarray], Exception]


class DeferredChecks:
    """The checks of one model's steps."""

    def __init__(self) -> None:
        self._checks: dict[str, _Check] = {}
        self._failed: list[tf.Tensor] = []
        self._num_readers = 0

    @contextlib.contextmanager
    def read_at_end(self) -> Iterator[None]:
        """Return a context in which steps defer checks; raise errors when it ends.

        Steps outside such a context, as in a user's own loop, raise immediately.

        Raises:
            tf.errors.InvalidArgumentError: For the first check that failed.
        """
        self._num_readers += 1
        try:
            yield
        except tf.errors.InvalidArgumentError as error:
            raise _without_graph(error) from None
        finally:
            self._num_readers -= 1
        self.raise_first()

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Return a context that defers the checks of the step that is traced in it.

        On CPUs, in eager mode and with several replicas, checks raise immediately.
        """
        is_read = self._num_readers > 0 and accelerators.are_visible()
        if not is_read or tf.executing_eagerly() or replicas.count() > 1:
            yield
            return
        before, self._failed = self._failed, []
        outer, _thread.current = current(), self
        try:
            yield
        finally:
            self._failed, _thread.current = before, outer

    def note(
        self,
        name: str,
        failed: tf.Tensor,
        details: tf.Tensor,
        describe: Callable[[np.ndarray], Exception],
    ) -> None:
        """Record the result of a check.

        Args:
            name: Name of the check; checks with the same name share `describe`.
            failed: Whether the check failed, bool scalar tensor.
            details: Vector of the numbers for the message.
            describe: Function that returns an exception for such numbers.
        """
        details = tf.concat([tf.ones((1,), details.dtype), details], 0)
        if name not in self._checks:
            self._checks[name] = _Check(_make_variable(details), describe)
        record = self._checks[name].record
        is_first = tf.logical_and(failed, tf.equal(record[0], 0))
        accelerators.assign_unless(tf.logical_not(is_first), record, details)
        self._failed.append(failed)

    def passed(self) -> tf.Tensor | None:
        """Return whether all checks of the step passed so far; `None` without any."""
        if not self._failed:
            return None
        return tf.logical_not(tf.reduce_any(tf.stack(self._failed)))

    def raise_first(self) -> None:
        """Raise the error of the first recorded failure, if there is one."""
        for record, describe in self._checks.values():
            values = record.numpy()
            if values[0]:
                record.assign(tf.zeros_like(record))
                raise describe(values[1:])


def _without_graph(error):
    """Return an error of our own assertions without the trace of its graph."""
    for line in str(error).splitlines():
        text = line.partition("assertion failed: [")[2].replace("] [", " ")
        if text.startswith(("Labels must", "Sample weights must", "Id out of range")):
            return tf.errors.InvalidArgumentError(None, None, text.removesuffix("]"))
    return error


def _make_variable(like: tf.Tensor) -> tf.Variable:
    """Create a variable of zeros, outside of the graph and of any strategy."""
    shape, dtype = like.shape, like.dtype
    device = replicas.device_names()[0]
    return replicas.on_device(
        device, lambda: tf.Variable(tf.zeros(shape, dtype), trainable=False)
    )


def current() -> DeferredChecks | None:
    """Return the checks of the step that this thread traces, or `None`."""
    return getattr(_thread, "current", None)
