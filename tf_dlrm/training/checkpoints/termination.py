"""SIGTERM, with which schedulers announce the end of a machine's time."""

import signal
import threading
import types
from typing import Any

SIGTERM_EXIT_CODE = 128 + int(signal.SIGTERM)  # as shells report it


class Termination:
    """Notes a SIGTERM, instead of dying of it, between `begin` and `end`.

    Attributes:
        requested: Whether there was one.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def begin(self) -> None:
        self.requested = False
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)

    def end(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _note(self, number: int, frame: types.FrameType | None) -> None:
        self.requested = True
