"""`tf-dlrm schema`: guess the schema of a log and explain the guess."""

import dataclasses
import os

from pipelines.commands.shared import Files, check_output, describe_files
from pipelines.runtime import UserError


@dataclasses.dataclass
class GuessSchema:
    """Guess the meaning of the columns of a log; write a schema file to correct.

    Prints a line for each column: role, reason, number of distinct values, share of
    missing values, examples.
    """

    input: Files
    """Files of the log (text with any delimiter, plain or compressed, or Parquet). Rows
    are read from the first file; the others must have the same column names."""
    out: str | None = None
    """File to write, such as clicks.json; default: only print."""
    label: str | None = None
    """Column of the label, if the guess fails: its name, or its position from 0 in a
    file without column names."""
    num_rows: int = 100_000
    """Maximum number of rows to read."""
    overwrite: bool = False
    """Replace the file that --out names, if it exists."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        from pipelines.files import expand_paths

        paths = expand_paths(self.input)
        self._check(paths)
        lines = [
            f"read at most {self.num_rows:,} rows of the first file of "
            f"{describe_files(paths)}"
        ]
        if self.out:
            lines.append(f"write {self.out}: the guessed schema")
        return lines

    def run(self) -> None:
        """Guess the schema."""
        from pipelines.files import expand_paths
        from pipelines.schema import guess as guesses

        paths = expand_paths(self.input)
        self._check(paths)
        guess = guesses.guess(paths, self.num_rows, self.label)
        print(f"{guess.path}: {guess.num_rows:,} rows read\n")
        print(guess.table())
        print()
        if self.out is None:
            print("Next: add --out clicks.json to write the schema to a file")
            return
        guess.schema.save(self.out)
        print(f"{self.out}: edit this file where the guess is wrong")
        print(
            f"Next: tf-dlrm train --schema {self.out} --train {self.input[0]} "
            "--out runs/mine"
        )

    def _check(self, paths: list[str]) -> None:
        if self.out is None:
            return
        check_output(self.out, paths, option="--out")
        if os.path.exists(self.out) and not self.overwrite:
            raise UserError(
                f"--out {self.out} already exists. Name another file, or add "
                "--overwrite to replace it."
            )
