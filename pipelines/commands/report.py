"""`tf-dlrm report`: a comparison of runs."""

import dataclasses
import pathlib
import shutil
from typing import Annotated

import tyro

from pipelines.runtime import UserError


@dataclasses.dataclass
class Report:
    """Compare runs in tables and charts, from their folders alone.

    Shows learning curves, calibration and how the time was spent. An unfinished run is
    shown up to its latest step.
    """

    runs: Annotated[
        tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="RUN [RUN ...]")
    ]
    """Folders of runs."""
    output: str = "runs/report"
    """Folder for report.md, report.csv, report.json and charts; existing ones are
    replaced."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        from pipelines.reports.comparison import PICTURES, TABLES

        self._check()
        return [
            f"read {', '.join(self.runs)}",
            f"write {self.output}/: {', '.join(TABLES)}; and if the runs have the "
            f"data, {', '.join(PICTURES)}",
        ]

    def run(self) -> None:
        """Compare the runs."""
        from pipelines.reports.comparison import make_report

        self._check()
        report = make_report(self.runs)
        names = report.write(self.output)
        print(report.to_text(shutil.get_terminal_size((120, 24)).columns))
        print(f"{self.output}: {', '.join(names)}")

    def _check(self):
        from pipelines.reports.runs import find_run

        if not self.runs:
            raise UserError("no run to compare: name at least one folder of a run.")
        for run in self.runs:
            find_run(run)
        output = pathlib.Path(self.output)
        if output.exists() and not output.is_dir():
            raise UserError(f"--output {output} is a file; name a folder.")
