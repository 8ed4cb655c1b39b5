"""`HealthMonitor`: watch the answers of a released model, and take a bad one back."""

from typing import Any

import numpy as np
import numpy.typing as npt

from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import PathLike
from tf_dlrm.serving.deltas import operations
from tf_dlrm.serving.deltas.channel import Channel
from tf_dlrm.serving.deltas.format import Position
from tf_dlrm.serving.deltas.gate import BAD, HEALTHY, SUSPECT, Bounds, measure


class HealthMonitor:
    """The state of a released model, judged by its answers and their later labels.

    Rows are collected in windows. A window out of bounds makes the model suspect; so
    many in a row make it bad, and a good one makes it healthy again. A bad model goes
    back by itself: `HEAD.json` moves to the last release that was healthy, and is
    pinned until a publication passes a gate or a person calls `release`.

    Bounds are relative to the gate's results of the release; without a gate, to the
    first window of this monitor that is within the calibration.

    Args:
        base_dir: Folder of the published model, or its address.
        bounds: The bounds.
        window_rows: Number of rows of a window.
        num_windows: Number of windows out of bounds, in a row, that make a model bad.

    Attributes:
        state: `"healthy"`, `"suspect"` or `"bad"`.
        reason: What was out of bounds in the last window, or "".

    Reference:
        Sima et al. 2022, Ekko (OSDI'22), section 5: the manager of model states.
    """

    def __init__(
        self,
        base_dir: PathLike,
        bounds: Bounds | None = None,
        window_rows: int = 10_000,
        num_windows: int = 2,
    ) -> None:
        for name, value in (("window_rows", window_rows), ("num_windows", num_windows)):
            if value < 1:
                raise UserError(f"`{name}` must be at least 1. Received: {value!r}")
        self._channel, self._bounds = Channel(base_dir), bounds or Bounds()
        self._window_rows, self._num_windows = window_rows, num_windows
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._num_faults, self._position = 0, Position(0, 0)
        self._baseline: dict[str, Any] | None = None
        self.state, self.reason = HEALTHY, ""

    def observe(
        self,
        labels: npt.ArrayLike,
        probabilities: npt.ArrayLike,
        position: Position | tuple[int, int],
    ) -> str:
        """Take answers and their labels into account, and return the state.

        Args:
            labels: The labels, `(n,)`.
            probabilities: The answers, `(n,)` or `(n, 1)`.
            position: The state that gave the answers. Those of an earlier one are
                ignored.
        """
        position = Position(*position)
        if position < self._position:
            return self.state
        if position > self._position:
            self._position, self._parts = position, []
        rows = np.reshape(labels, -1), np.reshape(probabilities, -1)
        if len(rows[0]) != len(rows[1]):
            raise UserError(
                "`labels` and `probabilities` must have the same number of rows. "
                f"Received: {len(rows[0])} and {len(rows[1])}"
            )
        self._parts.append(rows)
        if sum(len(own[0]) for own in self._parts) >= self._window_rows:
            self._judge()
        return self.state

    def _judge(self) -> None:
        labels, answers = (np.concatenate(column) for column in zip(*self._parts))
        self._parts = []
        head = self._channel.read_head()
        if head is None or Position(head["base"], head["sequence"]) < self._position:
            return  # it has gone back already
        results = measure(labels, answers)
        released = head.get("results") or self._baseline
        self.reason = self._bounds.find_fault(results, released)
        if not self.reason:
            self._baseline = self._baseline or results
            self.state, self._num_faults = HEALTHY, 0
            return
        self._num_faults += 1
        self.state = SUSPECT
        if self._num_faults >= self._num_windows:
            self.state, self._num_faults = BAD, 0
            self._go_back(head)

    def _go_back(self, head: dict[str, Any]) -> None:
        healthy = operations.find_healthy(self._channel, head)
        if healthy is None:
            self.reason += " There is no earlier healthy release to go back to."
            return
        operations.rollback(
            self._channel.base_dir,
            healthy.sequence,
            healthy.base,
            by="monitor",
            reason=self.reason,
        )
        self._position = healthy
