"""`Monitor`: the best value of a monitored result, and how long ago it was."""

import math
from collections.abc import Mapping
from typing import Any

from tf_dlrm.runtime.errors import UserError

_LARGER_IS_BETTER = ("auc", "accuracy", "precision", "recall")


class Monitor:
    """The best value of a result, and the number of evaluations since.

    Args:
        name: Name of the result. The largest value is best if the name ends in auc,
            accuracy, precision or recall, otherwise the smallest.
        min_delta: An improvement must be larger than this.
        best: The best value so far.

    Attributes:
        name: Name of the result.
        sign: 1 if larger values are better, otherwise -1.
        best: The best value so far; `None` before the first finite one.
        num_without: Number of evaluations since, or since it was set to 0. Two
            evaluations after the same step count as one.

    Raises:
        ValueError: If `min_delta` is negative.
    """

    def __init__(
        self, name: str, min_delta: float = 0.0, best: float | None = None
    ) -> None:
        if not min_delta >= 0:
            raise UserError(f"`min_delta` must be at least 0. Received: {min_delta!r}")
        self.name, self._min_delta = name, min_delta
        self.sign = 1.0 if name.endswith(_LARGER_IS_BETTER) else -1.0
        self.best, self.num_without = best, 0
        self._step: int | None = None

    def reset(self) -> None:
        """Forget all evaluations."""
        self.best, self.num_without, self._step = None, 0, None

    def get_state(self) -> dict[str, Any]:
        """Return the state that `set_state` sets, JSON-safe."""
        return {
            "best": self.best,
            "num_without": self.num_without,
            "step": self._step,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Set the state that `get_state` returned."""
        self.best, self.num_without = state["best"], state["num_without"]
        self._step = state.get("step")  # missing in the oldest checkpoints

    def improves(self, value: float | None) -> bool:
        """Return whether a value is finite and better than the best so far."""
        if value is None or not math.isfinite(value):
            return False
        gain = math.inf if self.best is None else self.sign * (value - self.best)
        return gain > self._min_delta

    def update(self, value: float, step: int) -> None:
        """Take the value of an evaluation after a step into account."""
        if self.improves(value):
            self.best, self.num_without = value, 0
        elif step != self._step:  # the last step of an epoch may be evaluated twice
            self.num_without += 1
        self._step = step

    def check_results(self, results: Mapping[str, Any]) -> None:
        """Raise an error if an epoch without any evaluation ends without the result.

        Args:
            results: Results of the epoch, by name.

        Raises:
            ValueError: If the name is not among the results.
        """
        if self._step is None and self.name not in results:
            raise UserError(
                f"`monitor` must be one of the results {', '.join(results)}. "
                "Validation results require `validation_data` or "
                f"`EvaluateWithinEpochs`. Received: monitor={self.name!r}"
            )

    def describe(self) -> str:
        """Return what does not improve, as text for a message."""
        if self.best is None:
            return f"{self.name} was never finite"
        return f"{self.name} has not improved on {self.best:.5f}"
