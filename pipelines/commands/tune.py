"""`tf-dlrm tune`: a search for good options of `train`."""

import dataclasses
import importlib.util
import shlex
from typing import Annotated, ClassVar, Literal

import tyro

from pipelines.commands.shared import Files, describe_input, load_schema
from pipelines.runs.config import RunConfig
from pipelines.runtime import UserError


@dataclasses.dataclass
class Tune:
    """Search for the options with which `train` gives the best model.

    Trains one trial after the other on the training rows; Optuna chooses their options.
    A trial that is behind others after a ninth or a third of its rows stops there. The
    same command continues an interrupted search. Writes best.json for train --config,
    trials.csv, the chart trials.png and a folder for each trial.
    """

    parameters: ClassVar = {
        "train_paths": "train",
        "valid_paths": "valid",
        "num_trials": "trials",
    }
    common: ClassVar = {
        "data": ("train", "valid", "schema", "vocabulary"),
        "search": ("out", "trials", "space", "run_name", "config_file", "dry_run"),
        "options": ("epochs", "optimizer", "monitor", "seed"),
    }
    """Options that --help lists, by group; --help-all lists all."""

    train: Files
    """Labelled files to train on, or the folder that `tf-dlrm prepare` wrote."""
    out: str
    """Folder to write the search to; if it contains the same search, that continues."""
    valid: Annotated[list[str], tyro.conf.arg(metavar="FILE [FILE ...]")] = (
        dataclasses.field(default_factory=list)
    )
    """Labelled files for validation."""
    trials: int = 30
    """Number of trials, including those of the search to continue."""
    space: Literal["recipe", "optimizer", "network", "tables", "all"] = "recipe"
    """Options to vary, unless they are set here (recipe, optimizer, network, tables or
    all). recipe: learning rates and their decay, L2 penalty, dropout; optimizer:
    optimizer, its learning rates, batch size; network: interaction, embedding dim,
    MLPs, dropout; tables: min count, embedding dim, learning rate and L2 penalty of
    the tables."""
    schema: str | None = None
    """JSON file that describes the columns of the files, or the name of a built-in
    layout; default: as for `tf-dlrm train`."""
    vocabulary: str | None = None
    """vocabulary.tsv that `tf-dlrm prepare` wrote; default: build one from the training
    files."""
    run_name: Annotated[str | None, tyro.conf.arg(name="run")] = None
    """Named run that sets the defaults of the options below; default: as for `tf-dlrm
    train`."""
    config_file: Annotated[str | None, tyro.conf.arg(name="config")] = None
    """JSON file that sets the defaults of the options below, instead of a named run:
    best.json of another search, or config.json of a run."""
    fixed: tyro.conf.Suppress[tyro.conf.Fixed[tuple[str, ...]]] = ()
    """Options that were typed, which do not vary."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""
    config: tyro.conf.OmitArgPrefixes[RunConfig] = dataclasses.field(
        default_factory=RunConfig
    )

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        from pipelines.tuning.space import SPACES

        self._check()
        fixed = self._find_fixed()
        names = [name for name in SPACES[self.space] if name not in fixed]
        return [
            f"train up to {self.trials:,} models on {describe_input(self.train)}",
            f"vary {', '.join(names)}",
            f"compare their validation {self.config.monitor} after 1/9, 1/3 and all of "
            "the rows",
            f"write {self.out}/: best.json, trials.csv, trials.png, search.json, "
            "study.db, and trials/ with a folder for each",
            f"config: {self.config.to_json()}",
        ]

    def _check(self):
        if self.trials < 1:
            raise UserError(f"--trials must be at least 1. Received: {self.trials}")
        if importlib.util.find_spec("optuna") is None:
            raise UserError(
                "tune needs Optuna, which is not installed: pip install optuna"
            )

    def _find_fixed(self):
        """Return the options that do not vary: those that were typed or cannot."""
        from pipelines.log_data import find_records

        has_vocabulary = self.vocabulary or find_records(self.train)
        if has_vocabulary or self.config.hash_buckets:
            return (*self.fixed, "min_count")
        return self.fixed

    def run(self) -> None:
        """Run the search."""
        self._check()
        from pipelines import vocabulary as vocabularies
        from pipelines.tuning.search import Search, SharedInputs

        vocabulary = vocabularies.load(self.vocabulary) if self.vocabulary else None
        inputs = SharedInputs(
            self.train,
            self.valid,
            vocabulary,
            schema=load_schema(self.schema),
        )
        search = Search(self.space, self.config, self._find_fixed(), inputs, self.out)
        command = self._train_command()
        files = search.run(self.trials, command)
        best = files.best
        print("", *files.table(), sep="\n")
        print(
            f"Best: trial {best.number + 1}, {self.config.monitor} {best.value:.5f}; "
            f"model: {self.out}/trials/{best.number + 1:03d}. To train it again:\n"
            f"{command}\n"
            f"All trials: {self.out}/trials.csv and trials.png; "
            f"tensorboard --logdir {self.out}/trials"
        )

    def _train_command(self):
        """Return the command that trains the best config on the same files."""
        words = ["tf-dlrm", "train", "--train", *self.train]
        if self.valid:
            words += ["--valid", *self.valid]
        for option in ("schema", "vocabulary"):
            value = getattr(self, option)
            if value is not None:
                words += [f"--{option}", value]
        words += ["--config", f"{self.out}/best.json", "--out", f"{self.out}/best"]
        return shlex.join(words)
