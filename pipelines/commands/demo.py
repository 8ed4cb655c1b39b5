"""`tf-dlrm demo` and `runs`: a first look."""

import dataclasses
from typing import ClassVar


@dataclasses.dataclass
class Demo:
    """The whole job on generated data, from rows to a served prediction."""

    parameters: ClassVar = {"num_rows": "rows"}

    out: str = "runs/demo"
    """Folder for everything it makes."""
    rows: int = 300_000
    """Training rows to generate."""
    seed: int = 0
    """Seed of the data and the model."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """Return what would happen, for --dry-run."""
        return [
            f"generate {self.rows:,} rows to train on, and as many as a tenth to "
            f"validate and to test, in {self.out}/data",
            f"train, evaluate in {self.out}/run",
            f"export to {self.out}/saved_model and predict one line",
        ]

    def run(self) -> None:
        """Run the demo."""
        from pipelines import demonstration

        demonstration.run(self.out, self.rows, self.seed)


@dataclasses.dataclass
class Runs:
    """List the named runs: what they are, how to run them, what came of it.

    Those with a config are for `tf-dlrm train --run NAME`.
    """

    def run(self) -> None:
        """Lists."""
        from pipelines.runs import EXPERIMENTS

        print("\n\n".join(run.describe() for run in EXPERIMENTS.values()))
