"""`tf-dlrm predict`: from files of raw lines to a CSV file of click probabilities."""

import dataclasses
import re
from typing import Annotated, ClassVar, Literal

import tyro

from pipelines.commands.shared import Files, check_output, describe_files
from pipelines.runtime import UserError


@dataclasses.dataclass
class Predict:
    """Write the click probability of each row of click logs.

    It needs only a SavedModel that was exported with its parser. Memory does not grow
    with the input. After an interruption, run it again with the same options to resume
    where it stopped. For example:

    tf-dlrm predict --model saved_models/ctr --input day_23.gz --output scores.csv
    """

    parameters: ClassVar = {"paths": "input"}

    model: str
    """Folder of a run, of one version of an exported model, or of all its versions (the
    newest is used)."""
    input: Files
    """Files with or without labels (text, plain or compressed, or Parquet), or quoted
    patterns such as 'day_*.gz'."""
    output: str
    """CSV file to write: file, line, label and probability of each row, in order;
    compressed if its name ends in .gz."""
    keep: Annotated[list[str], tyro.conf.arg(metavar="COLUMN [COLUMN ...]")] = (
        dataclasses.field(default_factory=list)
    )
    """Columns of the input, such as the id of a user, to write after the
    probability."""
    which: Literal["saved", "best", "last"] = "saved"
    """Model of a run to use: the one that it saved as its model, its best or its
    last."""
    batch_size: int = 4096
    """Rows to score at a time."""
    max_bad_share: float = 1e-4
    """Largest share of bad rows; with more, the command stops."""
    part: str = "1/1"
    """Part of the rows to score, such as 3/16: the third of 16 parts, for a job on
    several machines. The outputs of all parts, one after another, equal that of one
    command; only the first has a header."""
    overwrite: bool = False
    """Replace an existing output, and discard unfinished output of a command with other
    options."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        source, paths, done = self._check()
        lines = [
            f"score {describe_files(paths)} with {source.path}",
            f"write {self.output}",
        ]
        if done:
            lines.append(f"resume after {done:,} rows that are already scored")
        return lines

    def _part(self) -> tuple[int, int]:
        """Return the number of the part to score, from 1, and the number of parts."""
        match = re.fullmatch(r"(\d+)/(\d+)", self.part)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise UserError(
                "--part must be the number of a part and the number of parts, such as "
                f"3/16. Received: {self.part}"
            )
        return int(match[1]), int(match[2])

    def _check(self):
        """Return the files of the model, the input files and the rows scored so far."""
        from pipelines import scoring
        from pipelines.files import expand_paths
        from pipelines.runs.folder import RunFolder

        paths = expand_paths(self.input)
        check_output(self.output, paths)
        check_output(f"{self.output}.bad_rows.tsv", paths)
        folder = RunFolder(self.model)
        if folder.config_path.exists():
            model_path = folder.find_model(self.which)
            used = (folder.config_path, folder.vocabulary_path, model_path)
            source = scoring.Source.of(folder.path, (path.name for path in used))
        else:
            source = scoring.find(self.model)
            if self.which != "saved":
                raise UserError(
                    f"--which {self.which} needs the folder of a run, but "
                    f"{self.model} is an exported model: leave --which out."
                )
        done = scoring.check(
            source,
            paths,
            self.output,
            self.batch_size,
            self.overwrite,
            self.keep,
            self._part(),
        )
        return source, paths, done

    def run(self) -> None:
        """Score the input."""
        from pipelines import scoring
        from pipelines.log_data import are_worth_compiling_for
        from pipelines.runs.folder import RunFolder

        source, paths, _ = self._check()
        folder = RunFolder(source.path)
        if folder.config_path.exists():
            parser = folder.load_parser()
            model = folder.load_model(parser, self.which)
            model.use_xla(are_worth_compiling_for(paths))
            model = scoring.of_keras(model, parser, source)
        else:
            model = scoring.load(source.path)
        counts = scoring.score_files(
            model,
            paths,
            self.output,
            self.max_bad_share,
            self.batch_size,
            self.overwrite,
            self.keep,
            self._part(),
        )
        print(
            f"{self.output}: {counts['num_rows']:,} rows, {counts['num_bad_rows']:,} "
            "of them bad"
        )
