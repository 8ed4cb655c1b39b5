"""`SharedLock`: many readers together, or one writer alone."""

import contextlib
import threading
from collections.abc import Iterator


class SharedLock:
    """A lock that many readers hold together, or one writer alone."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._num_readers, self._is_written, self._num_waiting = 0, False, 0

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Return a context in which no writer is active."""
        with self._condition:
            self._condition.wait_for(
                lambda: not (self._is_written or self._num_waiting)
            )
            self._num_readers += 1
        try:
            yield
        finally:
            with self._condition:
                self._num_readers -= 1
                self._condition.notify_all()

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Return a context in which no other context is active; readers wait."""
        with self._condition:
            self._num_waiting += 1
            self._condition.wait_for(
                lambda: not (self._is_written or self._num_readers)
            )
            self._num_waiting -= 1
            self._is_written = True
        try:
            yield
        finally:
            with self._condition:
                self._is_written = False
                self._condition.notify_all()
