"""`tf-dlrm train`: from files to a run."""

import contextlib
import dataclasses
import io
from typing import Annotated, ClassVar, Literal

import tyro

from pipelines.commands.following import Following
from pipelines.commands.shared import (
    Files,
    describe_files,
    describe_input,
    load_schema,
)
from pipelines.runs.config import RunConfig
from pipelines.runs.printing import describe_stalls, print_training
from pipelines.runs.watching import Watching
from pipelines.runtime import UserError


@dataclasses.dataclass
class Train:
    """Train a DLRM on click logs; write the model, metrics and logs to a folder."""

    parameters: ClassVar = {
        "train_paths": "train",
        "valid_paths": "valid",
        "num_devices": "devices",
        "every_steps": "checkpoint_every_steps",
        "every_minutes": "checkpoint_every_minutes",
        "keep": "keep_checkpoints",
    }
    common: ClassVar = {
        "data": ("train", "valid", "schema", "vocabulary", "min_count", "hash_buckets"),
        "run": (
            "out",
            "run_name",
            "resume",
            "warm_start",
            "devices",
            "dry_run",
        ),
        "model": (
            "embedding_dim",
            "bottom_mlp_dims",
            "top_mlp_dims",
            "interaction",
            "dropout",
        ),
        "training": (
            "epochs",
            "batch_size",
            "optimizer",
            "learning_rate",
            "embedding_learning_rate",
            "learning_rate_decay",
            "l2",
            "negative_sampling_rate",
            "patience",
            "seed",
        ),
    }
    """Options that --help lists, by group; --help-all lists all."""

    train: Files
    """Labelled files to train on, or the folder that `tf-dlrm prepare` wrote."""
    out: str
    """Folder to write the run to."""
    valid: Annotated[list[str], tyro.conf.arg(metavar="FILE [FILE ...]")] = (
        dataclasses.field(default_factory=list)
    )
    """Labelled files for validation after each epoch."""
    schema: str | None = None
    """JSON file that describes the columns of the files, as `tf-dlrm schema` writes it,
    or the name of a built-in layout, such as avazu; default: the schema of the
    vocabulary or of prepared records, otherwise criteo."""
    progressive: bool = False
    """Treat each file of --train as a day: evaluate on each new day before training on
    it. Days follow the schema's time column if it has one, otherwise the order of the
    files."""
    warm_start: str | None = None
    """Folder of a finished run to start from, with another vocabulary. Values in both
    vocabularies keep their rows and optimizer state; options default to those of that
    run."""
    vocabulary: str | None = None
    """vocabulary.tsv that `tf-dlrm prepare` wrote; default: build one from the training
    files."""
    run_name: Annotated[str | None, tyro.conf.arg(name="run")] = None
    """Named run that sets the defaults of the options below (`tf-dlrm runs` lists
    them); default: the demo's model, with values that suit the optimizer and the number
    of rows."""
    config_file: Annotated[str | None, tyro.conf.arg(name="config")] = None
    """JSON file that sets the defaults of the options below, instead of a named run:
    best.json of `tf-dlrm tune`, or config.json of a run."""
    devices: int = 1
    """Number of devices to train on: GPUs, or parts of the CPU if there are no GPUs;
    each of several devices holds a part of the tables."""
    placement: Annotated[
        Literal["auto", "table_wise", "row_wise", "column_wise", "data_parallel"],
        tyro.conf.arg(name="plan"),
    ] = "auto"
    """Strategy for sharding the tables over several devices."""
    resume: bool = False
    """Resume the interrupted run in OUT with its own options; --train and the other
    options can be left out."""
    checkpoint_every_steps: int | None = None
    """Steps between two checkpoints; default: by time and at the end of each epoch."""
    checkpoint_every_minutes: float | None = 10.0
    """Minutes between two checkpoints; None: by steps and at the end of each epoch."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep; the best one is kept, too, if there are
    validation rows. They are removed when the run is finished."""
    dry_run: bool = False
    """Print what the command would do, without doing it."""
    config: tyro.conf.OmitArgPrefixes[RunConfig] = dataclasses.field(
        default_factory=RunConfig
    )
    watching: tyro.conf.OmitArgPrefixes[Watching] = dataclasses.field(
        default_factory=Watching
    )
    following: tyro.conf.OmitArgPrefixes[Following] = dataclasses.field(
        default_factory=Following
    )

    def plan(self) -> list[str]:
        """Return what the command would do, one line each."""
        from pipelines.files import expand_paths

        self._check()
        if self.following.follow is not None:
            return [*self.following.describe(), f"config: {self.config.to_json()}"]
        vocabulary = self.vocabulary or (
            f"hashing into {self.config.hash_buckets:,} rows "
            + ("of one table" if self.config.shared_table else "per table")
            if self.config.hash_buckets
            else f"values seen at least {self.config.min_count} times in these files"
        )
        if self.progressive and not (self.vocabulary or self.config.hash_buckets):
            vocabulary = f"{vocabulary.removesuffix('these files')}the first of them"
        lines = [
            f"train on {describe_input(self.train)}",
            f"vocabulary: {vocabulary}",
            f"write {self.out}/: config.json, vocabulary.tsv, model.keras (and "
            "model_last.keras or model_best.keras, if they differ), metrics.json, "
            "metrics.csv, steps.csv, times.jsonl, logs/, and bad_rows*.tsv if there "
            "are any",
            f"config: {self.config.to_json()}",
        ]
        if self.devices > 1:
            sharding = f"shard tables over {self.devices} devices: {self.placement}"
            lines.insert(2, sharding)
        if self.config.negative_sampling_rate < 1:
            lines.insert(
                1,
                f"train on a share of {self.config.negative_sampling_rate:.3g} of the "
                "rows without a click, and correct the predictions for it",
            )
        if self.progressive:
            line = "evaluate on each file except the first before training on it"
            lines.insert(1, line)
        if self.warm_start:
            lines.insert(1, f"start from the weights of {self.warm_start}")
        if self.resume:
            lines.insert(0, f"resume the run in {self.out}, if there is one")
        if self.valid:
            lines.insert(1, f"validate on {describe_files(expand_paths(self.valid))}")
        if self.schema:
            lines.insert(0, f"read the columns that {self.schema} describes")
        return lines

    def _check(self):
        """Refuse options that would have no effect."""
        from pipelines.log_data import find_records
        from pipelines.records import Manifest
        from pipelines.runs import get
        from pipelines.runs.data import check_sampled_once

        self.following.check(self)
        records = find_records(self.train)
        schema = load_schema(self.schema)
        if not (self.vocabulary or self.resume or self.warm_start or records):
            # Otherwise a vocabulary defines the tables, which is checked with the data.
            self.watching.check_tables(schema or load_schema("criteo"))
        if records is not None:
            check_sampled_once(self.config, records, Manifest.load(records))
        from pipelines.runs.devices import count_workers

        if self.devices < 1:
            raise UserError(f"--devices must be at least 1. Received: {self.devices}")
        if count_workers() == self.devices == 1 and self.placement != "auto":
            raise UserError(
                f"--plan {self.placement} has no effect on one device: leave it out, "
                "or set --devices to 2 or more."
            )
        if self.progressive:
            from pipelines.runs.progressive import check

            check(self.config, self.train, self.valid)
        start = get(self.run_name)
        if self.config_file:
            start = RunConfig.load(self.config_file)
        if self.warm_start:
            from pipelines.runs.previous_run import check

            start = check(self.warm_start, self.config).read_config()
        for name in (
            "hash_buckets",
            "shared_table",
            "min_count",
            "max_vocabulary_size",
        ):
            value = getattr(self.config, name)
            if self.vocabulary and value != getattr(start, name):
                option = name.replace("_", "-")
                raise UserError(
                    f"--{option} {value} has no effect with --vocabulary "
                    f"{self.vocabulary}: leave one of them out."
                )

    def _schema(self):
        """Return the schema of the files; in a warm start, that of the previous run."""
        from pipelines.log_data import find_records
        from pipelines.runs.folder import RunFolder

        schema = load_schema(self.schema)
        is_free = schema is None and not (self.vocabulary or self.resume)
        if self.warm_start and is_free and find_records(self.train) is None:
            return RunFolder(self.warm_start).read_schema()
        return schema

    def run(self) -> None:
        """Train the model."""
        from pipelines.runs import workers
        from pipelines.runs.devices import make_strategy
        from pipelines.runs.folder import RunFolder

        self._check()
        is_following = self.following.follow is not None
        if (self.resume or is_following) and RunFolder(self.out).is_finished:
            print(f"{self.out}: this run is already finished; nothing to resume.")
            return
        strategy = make_strategy(self.devices)
        place = workers.place_of(strategy)
        if is_following and place.num_workers > 1:
            raise UserError("--follow trains in one process. Remove TF_CONFIG.")
        if place.num_workers > 1:  # their measurements could differ
            self.config = dataclasses.replace(self.config, compare_models=False)
        if not place.is_chief:
            with contextlib.redirect_stdout(io.StringIO()):  # the chief prints
                self._train_and_print(strategy)
        else:
            self._train_and_print(strategy)

    def _train_and_print(self, strategy) -> None:
        from pipelines import vocabulary as vocabularies
        from pipelines.runs import saving

        vocabulary = vocabularies.load(self.vocabulary) if self.vocabulary else None
        if self.following.follow is not None:
            self.following.run(self, strategy, vocabulary, self._schema())
            return
        folder, results = self._train(strategy, vocabulary)
        print_training(results["metrics"])
        if self.progressive:
            from pipelines.runs.progressive import print_report

            print_report(results["days"])
        if results["num_skipped_batches"]:
            print(
                f"Skipped {results['num_skipped_batches']:,} batches whose loss or "
                "gradients were not finite."
            )
        if self.config.negative_sampling_rate < 1:
            print(
                f"Left out {results['num_negatives_left_out']:,} rows without a click. "
                "Training metrics are those of the sample; all other metrics are "
                "corrected for it."
            )
        if results["not_converged"]:
            print(_advise(results["not_converged"], folder.read_config()))
        print(saving.describe(results))
        print(
            f"{folder.path}: {results['num_rows']:,} rows at "
            f"{results['samples_per_second']:,.0f} rows/s, "
            f"{results['num_bad_rows']:,} bad rows; "
            f"{describe_stalls(results['checkpoint_seconds'])}.\n"
            f"View the logs: tensorboard --logdir {folder.log_dir}\n"
            f"Next: tf-dlrm evaluate --model {folder.path} --input NEW_ROWS, or "
            f"tf-dlrm export --model {folder.path} --output SAVED_MODELS"
        )

    def _train(self, strategy, vocabulary):
        from pipelines import runs

        return runs.train(
            self.config,
            self.train,
            self.valid,
            self.out,
            vocabulary,
            origin={
                "run": self.run_name,
                "vocabulary": self.vocabulary,
                "devices": self.devices,
            },
            strategy=strategy,
            placement=self.placement,
            resume=self.resume,
            progressive=self.progressive,
            warm_start=self.warm_start,
            schema=self._schema(),
            checkpoints={
                "every_steps": self.checkpoint_every_steps,
                "every_minutes": self.checkpoint_every_minutes,
                "keep": self.keep_checkpoints,
                "how_to_resume": "run the same command with --resume.",
            },
            watching=self.watching,
        )


def _advise(losses, config) -> str:
    """Return a warning that the model has not converged, with options to change."""
    return (
        f"Warning: the model has not converged. Its training loss was "
        f"{losses['before']:.4f} in the third quarter and {losses['after']:.4f} in the "
        f"last quarter of {losses['num_steps']:,} steps. To improve it, try a smaller "
        f"--batch-size (now {config.batch_size:,}), more --epochs (now "
        f"{config.epochs}) or a larger --learning-rate (now {config.learning_rate:g})."
    )
