"""`tf-dlrm demo` and `tf-dlrm runs`: a first look."""

import dataclasses
from typing import ClassVar


@dataclasses.dataclass
class Demo:
    """Run every step on generated data: train, evaluate, export and predict."""

    parameters: ClassVar = {"num_rows": "rows"}

    out: str = "runs/demo"
    """Folder for everything that the demo writes."""
    rows: int = 300_000
    """Number of training rows to generate."""
    seed: int = 0
    """Random seed of the data and the model."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        return [
            f"generate {self.rows:,} training rows, and a tenth as many each for "
            f"validation and test, in {self.out}/data",
            f"train and evaluate a model in {self.out}/run",
            f"export it to {self.out}/saved_model and predict one line",
        ]

    def run(self) -> None:
        """Run the demo."""
        from pipelines import demonstration

        demonstration.run(self.out, self.rows, self.seed)


@dataclasses.dataclass
class Runs:
    """List the named runs, with their commands and sources.

    Start those that have a config with `tf-dlrm train --run NAME`.
    """

    def run(self) -> None:
        """Print the list."""
        from pipelines.runs import EXPERIMENTS

        print("\n\n".join(run.describe() for run in EXPERIMENTS.values()))
