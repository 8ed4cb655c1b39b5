"""Checks that a step makes on an accelerator and the host reads later.

An assertion, or a condition, would make the device wait for the host at each step. A
failed check is noted on the device instead, the step leaves its batch out, and whoever
runs the steps raises at the next read.
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
    """The first failure of a check: `(1, *details)`, zeros before."""

    noted: tf.Variable
    describe: Callable[[np.ndarray], Exception]


class DeferredChecks:
    """The checks of one model's steps."""

    def __init__(self) -> None:
        self._checks: dict[str, _Check] = {}
        self._failed: list[tf.Tensor] = []
        self._num_readers = 0

    @contextlib.contextmanager
    def read_at_end(self) -> Iterator[None]:
        """Let the steps that run inside defer their checks; raise for them at the end.

        Steps that nobody reads, such as those of a loop of the user's, raise at once.

        Raises:
            tf.errors.InvalidArgumentError: For the first check that failed.
        """
        self._num_readers += 1
        try:
            yield
        finally:
            self._num_readers -= 1
        self.raise_first()

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Defer the checks of the step that is traced inside, on accelerators.

        In eager mode, and under several replicas, they raise at once.
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
        """Note the result of a check.

        Args:
            name: Of the check: checks of one name have one `describe`.
            failed: Bool scalar tensor.
            details: Vector of the numbers that the message needs.
            describe: Makes the exception of them.
        """
        details = tf.concat([tf.ones((1,), details.dtype), details], 0)
        if name not in self._checks:
            self._checks[name] = _Check(_make_variable(details), describe)
        noted = self._checks[name].noted
        is_first = tf.logical_and(failed, tf.equal(noted[0], 0))
        accelerators.assign_unless(tf.logical_not(is_first), noted, details)
        self._failed.append(failed)

    def passed(self) -> tf.Tensor | None:
        """Return whether all checks of the step so far passed; `None` without any."""
        if not self._failed:
            return None
        return tf.logical_not(tf.reduce_any(tf.stack(self._failed)))

    def raise_first(self) -> None:
        """Raise for the first failure that was noted, if there is one."""
        for noted, describe in self._checks.values():
            values = noted.numpy()
            if values[0]:
                noted.assign(tf.zeros_like(noted))
                raise describe(values[1:])


def _make_variable(like: tf.Tensor) -> tf.Variable:
    """Make a variable of zeros, outside of the graph and of any strategy."""
    shape, dtype = like.shape, like.dtype
    device = replicas.device_names()[0]
    return replicas.on_device(
        device, lambda: tf.Variable(tf.zeros(shape, dtype), trainable=False)
    )


def current() -> DeferredChecks | None:
    """Return what collects the checks of the step that this thread traces, if any."""
    return getattr(_thread, "current", None)
