"""`tf-dlrm train`, `export` and `verify`: what one does with a model."""

import dataclasses
import json
import pathlib
from typing import Annotated, ClassVar, Literal

import tyro

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
from pipelines.text_tables import align


@dataclasses.dataclass
class Train:
    """Train a DLRM on click logs into a folder of its own."""

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
        "run": ("out", "run_name", "resume", "warm_start", "devices", "dry_run"),
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
            "negative_sampling_rate",
            "patience",
            "seed",
        ),
    }
    """Options that --help shows, by group; --help-all shows all."""

    train: Files
    """Labelled files to train on, or the folder that `prepare` wrote."""
    out: str
    """Folder of the run."""
    valid: Annotated[list[str], tyro.conf.arg(metavar="FILE [FILE ...]")] = (
        dataclasses.field(default_factory=list)
    )
    """Labelled files for validation after each epoch."""
    schema: str | None = None
    """JSON file that describes the columns of the files, as `tf-dlrm schema` writes it,
    or the name of a layout that ships, such as avazu. None: that of the vocabulary or
    of prepared records, else Criteo's."""
    progressive: bool = False
    """Take each file of --train for a day: train on it, and evaluate on the next day
    before it is trained on."""
    warm_start: str | None = None
    """Folder of a finished run to start from, with another vocabulary: rows of values
    in both are kept, with their state. Options start from those of that run."""
    vocabulary: str | None = None
    """vocabulary.tsv that `prepare` wrote; None: build one of the training files."""
    run_name: Annotated[str | None, tyro.conf.arg(name="run")] = None
    """Named run whose values the options below start from (tf-dlrm runs lists them);
    None: the demo's model, and what suits the optimizer and the number of rows."""
    devices: int = 1
    """Devices to train on: GPUs, or without any, parts of the CPU. With several, each
    holds a part of the tables."""
    placement: Annotated[
        Literal["auto", "table_wise", "row_wise", "column_wise", "data_parallel"],
        tyro.conf.arg(name="plan"),
    ] = "auto"
    """Strategy for spreading tables over several devices."""
    resume: bool = False
    """Resume the interrupted run in OUT with its own options; --train and others can
    be left out."""
    checkpoint_every_steps: int | None = None
    """Steps between two checkpoints; None: by time, and at the ends of epochs."""
    checkpoint_every_minutes: float | None = 10.0
    """Minutes between two checkpoints; None: by steps, and at the ends of epochs."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints to keep, and the best with --valid. When the
    run is done they are removed."""
    dry_run: bool = False
    """Only print what would happen."""
    config: tyro.conf.OmitArgPrefixes[RunConfig] = dataclasses.field(
        default_factory=RunConfig
    )
    watching: tyro.conf.OmitArgPrefixes[Watching] = dataclasses.field(
        default_factory=Watching
    )

    def plan(self) -> list[str]:
        """Return what would happen, for --dry-run."""
        from pipelines.files import expand_paths

        self._check()
        vocabulary = self.vocabulary or (
            f"hashing into {self.config.hash_buckets:,} rows "
            + ("of one table" if self.config.shared_table else "a table")
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
            spread = f"tables spread over {self.devices} devices: {self.placement}"
            lines.insert(2, spread)
        if self.config.negative_sampling_rate < 1:
            lines.insert(
                1,
                f"train on {self.config.negative_sampling_rate:.3g} of the rows "
                "without a click, and correct predictions for it",
            )
        if self.progressive:
            line = "evaluate on each file but the first, before it is trained on"
            lines.insert(1, line)
        if self.warm_start:
            lines.insert(1, f"start with what {self.warm_start} has learned")
        if self.resume:
            lines.insert(0, f"resume the run in {self.out}, if there is one")
        if self.valid:
            lines.insert(1, f"validate on {describe_files(expand_paths(self.valid))}")
        if self.schema:
            lines.insert(0, f"read the columns that {self.schema} describes")
        return lines

    def _check(self):
        """Options that would be ignored are mistakes."""
        from pipelines.log_data import find_records
        from pipelines.records import Manifest
        from pipelines.runs import get
        from pipelines.runs.data import check_sampled_once

        records = find_records(self.train)
        schema = load_schema(self.schema)
        if not (self.vocabulary or self.resume or self.warm_start or records):
            # Otherwise the tables are those of a vocabulary, checked with the data.
            self.watching.check_tables(schema or load_schema("criteo"))
        if records is not None:
            check_sampled_once(self.config, records, Manifest.load(records))
        if self.devices < 1:
            raise UserError(f"--devices must be positive. Received: {self.devices}")
        if self.devices == 1 and self.placement != "auto":
            raise UserError(
                f"--plan {self.placement} has no effect on one device: name several "
                "with --devices."
            )
        if self.progressive:
            from pipelines.runs.progressive import check

            check(self.config, self.train, self.valid)
        start = get(self.run_name)
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
        """The schema of the files; of a warm start, that of the run before."""
        from pipelines.log_data import find_records
        from pipelines.runs.folder import RunFolder

        schema = load_schema(self.schema)
        is_free = schema is None and not (self.vocabulary or self.resume)
        if self.warm_start and is_free and find_records(self.train) is None:
            return RunFolder(self.warm_start).read_schema()
        return schema

    def run(self) -> None:
        """Trains."""
        from pipelines import vocabulary as vocabularies
        from pipelines.runs import saving
        from pipelines.runs.devices import make_strategy
        from pipelines.runs.folder import RunFolder

        self._check()
        if self.resume and RunFolder(self.out).is_finished:
            print(f"{self.out}: this run is finished; there is nothing to resume.")
            return
        strategy = make_strategy(self.devices)
        vocabulary = vocabularies.load(self.vocabulary) if self.vocabulary else None
        folder, results = self._train(strategy, vocabulary)
        print_training(results["metrics"])
        if self.progressive:
            from pipelines.runs.progressive import print_report

            print_report(results["days"])
        if results["num_skipped_batches"]:
            print(
                f"{results['num_skipped_batches']:,} batches were not applied: their "
                "loss or gradients are not finite."
            )
        if self.config.negative_sampling_rate < 1:
            print(
                f"Left out {results['num_negatives_left_out']:,} rows without a click; "
                "metrics of the training are those of the sample, all others are "
                "corrected for it."
            )
        if results["not_converged"]:
            print(_advise(results["not_converged"], folder.read_config()))
        print(saving.describe(results))
        print(
            f"{folder.path}: {results['num_rows']:,} rows at "
            f"{results['samples_per_second']:,.0f} samples/s, "
            f"{results['num_bad_rows']:,} bad rows; "
            f"{describe_stalls(results['checkpoint_seconds'])}.\n"
            f"Look: tensorboard --logdir {folder.log_dir}"
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
                "how_to_resume": "give the same command with --resume.",
            },
            watching=self.watching,
        )


def _advise(losses, config) -> str:
    """A warning that a training ended too early, and what to change."""
    return (
        f"Warning: the model is not converged. Its training loss was "
        f"{losses['before']:.4f} in the third quarter and {losses['after']:.4f} in the "
        f"last of {losses['num_steps']:,} steps. To learn more, try a smaller "
        f"--batch-size (now {config.batch_size:,}), more --epochs (now "
        f"{config.epochs}) or a larger --learning-rate (now {config.learning_rate:g})."
    )


@dataclasses.dataclass
class Export:
    """Export a trained run as a SavedModel for TensorFlow Serving."""

    parameters: ClassVar = {"base_dir": "output"}

    model: str
    """Folder of the run."""
    output: str = "saved_models/ctr"
    """Folder of the exported model; its versions are numbered in it."""
    which: Literal["saved", "best", "last"] = "saved"
    """Model to export: the one that the run saved as its own, its best or its last."""
    version: int | None = None
    """Number of the version; None: the next one."""
    max_hotness: int = 1
    """Length of the padded bags of serving_default."""
    candidate_features: tuple[str, ...] = ()
    """Features in which the items of serving_candidates differ, such as C3 C7; none: no
    such signature."""
    table_dtype: Literal["float32", "float16", "bfloat16", "int8", "int4"] = "float32"
    """Type of the stored tables: int8 and int4 with a scale and offset for each row."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """Return what would happen, for --dry-run."""
        from pipelines.runs.folder import RunFolder
        from tf_dlrm.serving import choose_version

        RunFolder(self.model).find_model(self.which)
        version = choose_version(self.output, self.version)
        return [f"export {self.model} to {self.output}/{version}"]

    def run(self) -> None:
        """Exports."""
        from pipelines import runs
        from pipelines.runs.folder import RunFolder

        path = runs.export(
            RunFolder(self.model),
            self.output,
            self.version,
            self.max_hotness,
            self.candidate_features,
            self.table_dtype,
            self.which,
        )
        text = (pathlib.Path(path) / "assets.extra" / "tf_dlrm.json").read_text("utf-8")
        described = json.loads(text)
        megabytes = described["table_bytes"] / 1e6
        print(
            f"{path}: signatures {', '.join(described['signatures'])}; "
            f"{megabytes:.1f} MB of {described['table_dtype']} tables"
        )


@dataclasses.dataclass
class Verify:
    """Replay an export's recorded requests with TensorFlow's C library, without Python.

    What runs is what a server runs; the answers must be those of the model.
    """

    saved_model: tyro.conf.Positional[str]
    """A version's folder, or the folder of versions, for the newest."""
    library: str | None = None
    """Folder of another TensorFlow's libtensorflow_cc.so.2; None: the installed one."""
    dry_run: bool = False
    """Only print what would happen."""

    def plan(self) -> list[str]:
        """Return what would happen, for --dry-run."""
        return [f"load {self.saved_model} and replay its recorded requests"]

    def run(self) -> None:
        """Verifies."""
        import tf_dlrm

        results = tf_dlrm.serving.verify_saved_model(self.saved_model, self.library)
        largest = results["largest_difference"].items()
        rows = [[name, f"{difference:.1e}"] for name, difference in largest]
        print(*align([["signature", "largest difference"], *rows]), sep="\n")
        print(
            f"{self.saved_model}: TensorFlow {results['library']} loaded it in "
            f"{results['seconds_to_load']:.1f} s and gave the recorded answers."
        )
