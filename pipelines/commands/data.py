"""`tf-dlrm generate` and `prepare`: from nothing, or from logs, to checked data."""

import dataclasses
import pathlib

from pipelines.commands.shared import Files, check_output, describe_files


@dataclasses.dataclass
class Generate:
    """Write generated click logs in Criteo's format, with known click probabilities.

    Beside the file, OUTPUT.json says what the best possible scores on it are.
    """

    output: str
    """File to write; compressed if it ends in .gz."""
    rows: int = 100_000
    """Rows to write."""
    first_row: int = 0
    """Number of the first row: other rows of the same seed make a test set."""
    seed: int = 0
    """Seed of truth and rows."""
    click_rate: float = 0.25
    """Mean click probability."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """What would happen, for --dry-run."""
        check_output(self.output)
        last = self.first_row + self.rows
        return [
            f"write rows {self.first_row:,} to {last:,} of seed {self.seed} to "
            f"{self.output}, and the best possible scores to {self.output}.json"
        ]

    def run(self) -> None:
        """Generates."""
        from pipelines.progress import bar
        from pipelines.synthetic import Planted

        check_output(self.output)
        pathlib.Path(self.output).parent.mkdir(parents=True, exist_ok=True)
        planted = Planted(seed=self.seed, click_rate=self.click_rate)
        with bar("Generating", self.rows) as update:
            report = planted.write(
                self.output,
                self.rows,
                self.first_row,
                progress=lambda done, total: update(done),
            )
        pathlib.Path(f"{self.output}.json").write_text(report.to_json() + "\n")
        auc = "unknown" if report.best_auc is None else f"{report.best_auc:.4f}"
        print(
            f"{self.output}: {report.num_rows:,} rows, {report.click_rate:.1%} clicks; "
            f"best possible AUC {auc}, log loss {report.best_log_loss:.4f}"
        )


@dataclasses.dataclass
class Prepare:
    """Check click logs and build the vocabulary of their values."""

    input: Files
    """Labelled files (plain or .gz) or quoted patterns such as 'day_*.gz'."""
    out: str
    """Folder for vocabulary.tsv, prepare.json and bad_rows.tsv."""
    min_count: int = 10
    """Times a value must occur to have a row of its own."""
    max_vocabulary_size: int | None = None
    """Largest number of rows of a table; None: no limit."""
    max_bad_share: float = 1e-4
    """Largest share of rows that may be bad before the run stops."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """What would happen, for --dry-run."""
        from pipelines.files import expand_paths

        paths = expand_paths(self.input)
        return [
            f"read {describe_files(paths)}",
            f"write {self.out}/vocabulary.tsv: values seen at least {self.min_count} "
            "times",
            f"write {self.out}/prepare.json: rows, bad rows, sizes",
        ]

    def run(self) -> None:
        """Prepares."""
        from pipelines.files import expand_paths
        from pipelines.quarantine import Quarantine
        from pipelines.runs import job
        from pipelines.runs.folder import write_json

        paths = expand_paths(self.input)
        out = pathlib.Path(self.out)
        out.mkdir(parents=True, exist_ok=True)
        quarantine = Quarantine(out / "bad_rows.tsv", self.max_bad_share)
        vocabulary = job.build_vocabulary(
            paths, self.min_count, self.max_vocabulary_size, quarantine
        )
        vocabulary.save(out / "vocabulary.tsv")
        content = {
            "input": paths,
            "num_rows": vocabulary.num_rows,
            "num_bad_rows": vocabulary.num_bad_rows,
            "min_count": self.min_count,
            "vocabulary_sizes": vocabulary.sizes,
            "vocabulary_digest": vocabulary.digest,
        }
        write_json(out / "prepare.json", content)
        bad = quarantine.num_bad
        print(
            f"{out}/vocabulary.tsv: {sum(vocabulary.sizes):,} ids of 26 features from "
            f"{vocabulary.num_rows:,} rows"
            + (f"; {quarantine.num_bad:,} bad rows in {quarantine.path}" * bool(bad))
        )
