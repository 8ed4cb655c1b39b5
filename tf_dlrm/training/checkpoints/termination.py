"""Handling of SIGTERM, with which schedulers announce that they will stop a process."""

import signal
import threading
import types
from typing import Any

SIGTERM_EXIT_CODE = 128 + int(signal.SIGTERM)  # as shells report it


class Termination:
    """A handler that records SIGTERM instead of ending the process.

    It is active between `begin` and `end`.

    Attributes:
        requested: Whether SIGTERM was received.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def begin(self) -> None:
        """Start to catch SIGTERM, if this is the main thread."""
        self.requested = False
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def end(self) -> None:
        """Restore the previous handler."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = True
