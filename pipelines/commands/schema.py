"""`tf-dlrm schema`: a log of any columns -> its schema, guessed and explained."""

import dataclasses
import os

from pipelines.commands.shared import Files, check_output, describe_files
from pipelines.runtime import UserError


@dataclasses.dataclass
class GuessSchema:
    """Guess what the columns of a log mean, and write it as a file to correct.

    Prints a line a column: role, reason, distinct values, missing share, examples.
    """

    input: Files
    """Files of the log (text of any delimiter, plain or compressed, or Parquet). The
    first is read; of the others the names of the columns are compared."""
    out: str | None = None
    """File to write, such as clicks.json; None: only print."""
    label: str | None = None
    """The label's column, if it is not found; a position from 0 where columns have no
    names."""
    num_rows: int = 100_000
    """Most rows that are read."""
    overwrite: bool = False
    """Replace the file that --out names."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """Return what would happen, for --dry-run."""
        from pipelines.files import expand_paths

        paths = expand_paths(self.input)
        self._check(paths)
        lines = [
            f"read at most {self.num_rows:,} rows of the first of "
            f"{describe_files(paths)}"
        ]
        if self.out:
            lines.append(f"write {self.out}, a guess of the schema")
        return lines

    def run(self) -> None:
        """Guesses."""
        from pipelines.files import expand_paths
        from pipelines.schema import guess as guesses

        paths = expand_paths(self.input)
        self._check(paths)
        guess = guesses.guess(paths, self.num_rows, self.label)
        print(f"{guess.path}: {guess.num_rows:,} rows read\n")
        print(guess.table())
        print()
        if self.out is None:
            print("Next: add --out clicks.json to write this as a file to correct")
            return
        guess.schema.save(self.out)
        print(f"{self.out}: correct it where the guess is wrong")
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
