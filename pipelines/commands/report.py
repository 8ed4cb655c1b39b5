"""`tf-dlrm report`: runs side by side."""

import dataclasses
import pathlib
import shutil
from typing import Annotated

import tyro

from pipelines.runtime import UserError


@dataclasses.dataclass
class Report:
    """Compare runs in a table and in pictures, from their folders alone.

    Learning curves, calibration, and where the time went. A run that is not finished
    is shown as far as it got.
    """

    runs: Annotated[
        tyro.conf.Positional[list[str]], tyro.conf.arg(metavar="RUN [RUN ...]")
    ]
    """Folders of runs."""
    output: str = "runs/report"
    """Folder for report.md, .csv and .json, and the pictures, which are replaced."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """Return what would happen, for --dry-run."""
        from pipelines.reports.comparison import PICTURES, TABLES

        self._check()
        return [
            f"read {', '.join(self.runs)}",
            f"write {self.output}/: {', '.join(TABLES)}; and where runs have "
            f"what they show, {', '.join(PICTURES)}",
        ]

    def run(self) -> None:
        """Compares."""
        from pipelines.reports.comparison import make_report

        self._check()
        report = make_report(self.runs)
        names = report.write(self.output)
        print(report.to_text(shutil.get_terminal_size((120, 24)).columns))
        print(f"{self.output}: {', '.join(names)}")

    def _check(self):
        from pipelines.reports.runs import find_run

        if not self.runs:
            raise UserError("name the folder of a run, or of several.")
        for run in self.runs:
            find_run(run)
        output = pathlib.Path(self.output)
        if output.exists() and not output.is_dir():
            raise UserError(f"--output {output} is a file; name a folder.")
