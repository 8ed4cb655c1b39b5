"""SIGTERM, by which schedulers announce that they will stop a process."""

import signal
import threading
import types
from typing import Any

SIGTERM_EXIT_CODE = 128 + int(signal.SIGTERM)  # as shells report it


class Termination:
    """A record of SIGTERM, which does not end the process between `begin` and `end`.

    Attributes:
        requested: Whether there was one.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def begin(self) -> None:
        """Catch SIGTERM from now on, in the main thread."""
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
