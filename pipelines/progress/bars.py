"""Progress as a bar with rate and remaining time, or as plain lines in a log."""

import contextlib
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress
from rich.table import Column

_SECONDS_BETWEEN_LINES = 10.0


class _Lines:
    """Progress for output that is not a terminal: some lines, and a final one."""

    def __init__(self, console, label, total, unit, first, note):
        self._console, self._label, self._total = console, label, total
        self._unit, self._start = unit, time.perf_counter()
        self._printed, self._first, self._done = self._start, first, first
        self._begun: tuple[float, int] | None = None  # when, and how many were done
        if note:
            self._write(f"{label}: {note}")

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        self._done, self._total = done, total or self._total
        now = time.perf_counter()
        self._begun = self._begun or (now, done)
        if now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            self._print(done, note, now - self._start)

    def finish(self, note: str) -> None:
        self._print(self._done, note, time.perf_counter() - self._start, last=True)

    def stop(self) -> None:
        pass

    def _print(self, done, note, seconds, last=False):
        rate = (done - self._first) / max(seconds, 1e-9)
        text = f"{self._label}: {done:,}"
        if self._total and not last:
            text += f" of {self._total:,}"
        text += f" {self._unit}, {rate:,.0f} {self._unit}/s"
        if last:
            text += f", {seconds:.1f} s"
        elif self._total and done > self._begun[1]:
            # Excludes the time until the first units, for compiling and opening files.
            since, before = self._begun
            pace = (time.perf_counter() - since) / (done - before)
            text += f", {max(self._total - done, 0) * pace:.0f} s left"
        text = f"{text}  {note}".rstrip()
        self._write(text)

    def _write(self, text):
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Note(rich.progress.TextColumn):
    """A text that is shortened if there is no room for it, and never wraps."""

    def render(self, task):
        text = super().render(task)
        text.no_wrap = True
        return text


class _Bar:
    """Progress for a terminal."""

    def __init__(self, console, label, total, unit, first, note):
        # The bar takes the remaining width.
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(None, table_column=Column(ratio=1)),
            rich.progress.TaskProgressColumn(),
            rich.progress.TextColumn("{task.fields[rate]}"),
            rich.progress.TimeRemainingColumn(True, elapsed_when_finished=True),
            _Note("{task.fields[note]}", table_column=Column()),
            console=console,
            expand=True,
        )
        self._start = time.perf_counter()
        self._task = self._progress.add_task(
            label, total=total, completed=first, rate="", note=note
        )
        self._first, self._done, self._total = first, first, total
        self._progress.start()

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        self._done = done
        seconds = time.perf_counter() - self._start
        rate = (done - self._first) / max(seconds, 1e-9)
        known = self._total or 0
        if total is not None and abs(total - known) > known / 100:
            self._total = total  # rarely, as it resets the estimate of remaining time
        self._progress.update(
            self._task,
            total=self._total,
            completed=done,
            rate=f"{rate:,.0f}/s",
            note=note,
        )

    def finish(self, note: str) -> None:
        self.update(self._done, note)
        self._progress.update(self._task, total=self._done or 1)
        self._progress.stop()

    def stop(self) -> None:
        self._progress.stop()


@contextlib.contextmanager
def bar(
    label: str,
    total: int | None = None,
    unit: str = "rows",
    first: int = 0,
    note: str = "",
) -> Iterator[Callable]:
    """Show the progress of a piece of work.

    Args:
        label: Description of the work, such as `"Counting values"`.
        total: Total number of units; `None` if it is not known.
        unit: Name of the units.
        first: Number of units that were done before, which do not count for the rate.
        note: What the first units wait for, such as `"compiling"`.

    Returns:
        A context manager that returns `update(done, note="", total=None)`, where `done`
        is the number of units done so far and `total` a better estimate of the total.
    """
    console = rich.console.Console()
    shown = (_Bar if console.is_terminal else _Lines)(
        console, label, total, unit, first, note
    )
    last = [""]

    def update(done, note="", total=None):
        last[0] = note
        shown.update(done, note, total)

    try:
        yield update
    except BaseException:
        shown.stop()
        raise
    shown.finish(last[0])
