"""A report that compares runs: read, measure, write tables and charts."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from pipelines.evaluation import reliability_chart
from pipelines.pictures import LINES
from pipelines.reports import curves, measures, notes, steps, times
from pipelines.reports.run_table import BEST, Table
from pipelines.reports.runs import Run, read_runs
from pipelines.reports.times import Times
from pipelines.runtime import locks
from pipelines.whole_files import write_csv, write_text

TABLES = ("report.md", "report.csv", "report.json")
CURVES = "learning_curves.png"
CALIBRATION = "calibration.png"
STEPS = "step_breakdown.png"
PICTURES = (CURVES, CALIBRATION, STEPS)
MOST_DRAWN = len(LINES)


@dataclasses.dataclass(frozen=True)
class Report:
    """A comparison of runs.

    Attributes:
        runs: The runs.
        times: The `Times` of each run.
        values: The measures of each run, as `measures.measure` returns them.
        differing: Names of the options that differ between runs.
        best: Indices of the runs with the best value, by measure.
        profiles: Time of a step by operation, by number of the run.
        notes: Notes on missing data and on values that cannot be compared.
    """

    runs: list[Run]
    times: list[Times]
    values: list[dict[str, float | None]]
    differing: list[str]
    best: dict[str, list[int]]
    profiles: dict[int, dict[str, Any]]
    notes: list[str]

    @property
    def table(self) -> Table:
        """The table of the runs."""
        return Table(self.runs, self.differing, self.values, self.best)

    def drawn(self) -> list[int]:
        """Numbers of the runs in the charts: all, or those with the lowest loss."""
        numbers = range(len(self.runs))
        if len(self.runs) <= MOST_DRAWN:
            return list(numbers)

        def loss(i):
            value = self.values[i]["validation_log_loss"]
            return (value is None, value or 0.0, i)

        return sorted(sorted(numbers, key=loss)[:MOST_DRAWN])

    def write(self, output) -> list[str]:
        """Write `report.md`, `report.csv`, `report.json` and the charts.

        Args:
            output: Folder to write to; files of an earlier report are replaced.

        Returns:
            The names of the files.
        """
        output = pathlib.Path(output)
        with locks.locked(output):
            pictures = self._draw(output)
            for name in set(PICTURES) - set(pictures):
                (output / name).unlink(missing_ok=True)
            write_text(output / "report.md", self._markdown(pictures), "the report")
            write_csv(output / "report.csv", self.table.rows(), "the report")
            content = json.dumps(self._content(pictures), indent=2, allow_nan=False)
            write_text(output / "report.json", content + "\n", "the report")
        return [*TABLES, *pictures]

    def _draw(self, output):
        drawn = self.drawn()
        runs = [self.runs[i] for i in drawn]
        if len(drawn) < len(self.runs):
            names = ", ".join(run.label for run in runs)
            self.notes.append(
                f"The charts show {len(drawn)} of {len(self.runs)} runs, those with "
                f"the lowest validation log loss: {names}."
            )
        profiles = {
            place: self.profiles[i]
            for place, i in enumerate(drawn)
            if i in self.profiles
        }
        measured = [self.times[i] for i in drawn]
        wanted = {}
        if curves.has_curves(runs):
            wanted[CURVES] = lambda path: curves.draw(runs, path)
        if any(run.bins for run in runs):
            models = [
                (_describe(run), color, run.bins)
                for run, color in zip(runs, LINES)
                if run.bins
            ]
            wanted[CALIBRATION] = lambda path: reliability_chart.compare(models, path)
        if profiles or any(each.parts() for each in measured):
            wanted[STEPS] = lambda path: steps.draw(runs, measured, profiles, path)
        for name, draw in wanted.items():
            draw(output / name)
        return list(wanted)

    def _markdown(self, pictures):
        number = f"{len(self.runs)} runs" if len(self.runs) > 1 else "One run"
        parts = [f"# {number}", self.table.to_markdown()]
        if self.best:
            parts.append("Bold: the best value in a column.")
        if self.notes:
            parts.append("\n".join(f"- {note}" for note in self.notes))
        parts += [f"![{_title(name)}]({name})" for name in pictures]
        return "\n\n".join(parts) + "\n"

    def _content(self, pictures):
        runs = []
        for i, run in enumerate(self.runs):
            content = {
                "name": run.name,
                "folder": str(run.files.path),
                "finished": run.is_finished,
                "values": self.values[i],
                "seconds": self.times[i].parts(),
                "evaluation": run.evaluation,
                "config": run.options,
            }
            if i in self.profiles:
                content["ms_per_step"] = self.profiles[i]["ms_per_step"]
            runs.append(content)
        best = {
            name: [self.runs[i].name for i in numbers]
            for name, numbers in self.best.items()
        }
        return {
            "runs": runs,
            "differing": self.differing,
            "best": best,
            "notes": self.notes,
            "pictures": pictures,
        }

    def to_text(self, width: int) -> str:
        """Return the table and the notes as text for a terminal of this width."""
        parts = [self.table.to_text(width)]
        if self.best:
            parts.append(f"{BEST} best value in a column")
        parts += self.notes
        return "\n".join([parts[0], "", *parts[1:]]).rstrip()


def make_report(paths: Sequence) -> Report:
    """Read runs and compare them.

    Args:
        paths: Folders of the runs.

    Raises:
        ValueError: If a folder is not a run, is listed twice, or contains a damaged
            file.
    """
    runs = read_runs(paths)
    measured = [times.measure(run) for run in runs]
    values = [measures.measure(*run_times) for run_times in zip(runs, measured)]
    differing = measures.find_differing(runs)
    profiles, lines = {}, notes.of_runs(runs, measured, differing)
    for i, run in enumerate(runs):
        if run.trace is not None:
            try:
                profiles[i] = _read_profile(run)
            except ValueError as error:
                lines.append(f"{run.label}: its profile cannot be read. {error}")
    if not any(run.trace for run in runs):
        lines.append(notes.NO_PROFILE)
    best = measures.find_best(values, notes.incomparable(differing))
    return Report(runs, measured, values, differing, best, profiles, lines)


def _read_profile(run):
    from google.protobuf.message import DecodeError

    from pipelines.benchmark.breakdown import read_trace

    try:
        return read_trace(run.trace, run.options.get("steps_per_execution", 1))
    except DecodeError:
        raise ValueError("The trace is damaged.") from None


def _describe(run):
    """Return the label of a run with its calibration, for a legend."""
    value = (run.evaluation or {}).get("calibration")
    return run.label if value is None else f"{value:.3f}  {run.label}"


def _title(name):
    return name.removesuffix(".png").replace("_", " ").capitalize()
