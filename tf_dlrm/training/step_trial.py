"""`StepTrial`: the choice between two kinds of training step by their measured times.

Compiling the dense part as one program takes seconds and saves up to a third of a
step, or nothing, depending on the processor. A training run therefore begins with small
compiled parts and tries the program only after it has run for long enough. Shorter runs
pay nothing.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

from tf_dlrm.runtime import choices

PARTS, PROGRAM = "parts", "program"
_WORDS = {
    PARTS: "XLA compiles small parts of the step",
    PROGRAM: "XLA compiles the dense part of the step as one program",
}
_SECONDS_BEFORE = 20.0  # seconds of steps before the program is tried
_TRIAL_SECONDS = 1.0
_FEWEST_CALLS = 5
_WARM_UP_CALLS = 2  # first calls of a kind, not timed: they trace and compile
_MARGIN = 0.97  # the program must take at most this share of the time


class StepTrial:
    """Choice of the kind of the next step from the times of earlier steps.

    All steps train the model, so a trial costs only the compile time and the extra time
    of the slower kind.

    Args:
        describe: Function that returns all that the choice depends on, JSON-safe. It is
            called after the first steps.
        clock: Function that returns a time in seconds.

    Attributes:
        kind: Kind of the next step, `"parts"` or `"program"`.
        is_over: Whether `kind` is final.
    """

    def __init__(
        self,
        describe: Callable[[], dict[str, Any]],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._describe, self._clock = describe, clock
        self.kind, self.is_over = PARTS, False
        self._num_calls = {PARTS: 0, PROGRAM: 0}
        self._seconds: dict[str, list[float]] = {PARTS: [], PROGRAM: []}
        self._first_program = 0.0
        self._spent = 0.0
        self._key: dict[str, Any] = {}
        self._earlier: dict[str, float] | None = None

    def run(self, call: Callable[[], Any]) -> Any:
        """Call a train function, which runs steps of `kind`, and time it.

        Args:
            call: Function without arguments that calls the train function.

        Returns:
            The result of `call`.
        """
        if self.is_over:
            return call()
        start = self._clock()
        result = call()
        self._record(self._clock() - start)
        return result

    def stop(self) -> None:
        """Choose small parts without further measurement."""
        self.kind, self.is_over = PARTS, True

    def _record(self, seconds):
        kind = self.kind
        self._num_calls[kind] += 1
        num_calls = self._num_calls[kind]
        if kind == PROGRAM and num_calls == 1:
            self._first_program = seconds
        if self._num_calls[PROGRAM]:  # the trial has begun
            if num_calls > _WARM_UP_CALLS or kind == PARTS:
                self._seconds[kind].append(seconds)
            self._continue()
        elif num_calls == _WARM_UP_CALLS:
            self._look_up()
        elif num_calls > _WARM_UP_CALLS:
            self._spent += seconds
            self._begin_if_worth_it()

    def _look_up(self):
        """Read the measurements of an earlier process."""
        self._key = {**choices.machine(), **self._describe()}
        figures = choices.find(self._key)
        if figures is not None and {PARTS, PROGRAM, "compile"} <= set(figures):
            self._earlier = figures
            if not _is_faster(figures[PROGRAM], figures[PARTS]):
                self._choose(PARTS, figures, "earlier")

    def _begin_if_worth_it(self):
        figures = self._earlier
        if figures is None:
            if self._spent >= _SECONDS_BEFORE:
                self.kind = PROGRAM
            return
        # Switch once the program would have saved its compile time.
        saving = 1 - figures[PROGRAM] / figures[PARTS]
        if self._spent * saving >= figures["compile"]:
            self._choose(PROGRAM, figures, "earlier")

    def _continue(self):
        """Alternate between both kinds until they have been timed for a second."""
        self.kind = PARTS if self.kind == PROGRAM else PROGRAM
        num_calls = min(map(len, self._seconds.values()))
        if num_calls < _FEWEST_CALLS:
            return
        # Medians, because some steps wait for data or compile for another size.
        figures = {kind: statistics.median(s) for kind, s in self._seconds.items()}
        if num_calls * sum(figures.values()) < _TRIAL_SECONDS:
            return
        compiling = self._first_program - figures[PROGRAM]
        figures["compile"] = max(compiling, figures[PROGRAM])
        choices.keep(self._key, figures)
        is_faster = _is_faster(figures[PROGRAM], figures[PARTS])
        self._choose(PROGRAM if is_faster else PARTS, figures, "now")

    def _choose(self, kind, figures, when):
        self.kind, self.is_over = kind, True
        parts, program = (1e3 * figures[name] for name in (PARTS, PROGRAM))
        choices.tell(
            f"{_WORDS[kind]}: measured {when}, {parts:.2f} ms for the small parts, "
            f"{program:.2f} ms for the program, which takes {figures['compile']:.1f} s "
            "to compile"
        )


def _is_faster(program: float, parts: float) -> bool:
    return program <= _MARGIN * parts
