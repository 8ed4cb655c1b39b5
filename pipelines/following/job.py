"""`follow`: train without end on a growing folder, and publish what changed."""

import contextlib
import csv
import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from pipelines.following.growing_folder import Arrival, Arrivals, GrowingFolder
from pipelines.following.stream import Finish, Stream, event_time
from pipelines.formats.parser import Parser
from pipelines.log_data import build_vocabulary, count_rows
from pipelines.pipeline_errors import clear_errors
from pipelines.quarantine import Quarantine
from pipelines.runs import build_model, defaults, resuming
from pipelines.runs.config import RunConfig
from pipelines.runs.folder import RunFolder
from pipelines.runs.watching import Watching
from pipelines.runtime import UserError, disk, locks
from pipelines.schema import Schema
from pipelines.vocabulary.hashing import hash_vocabulary
from pipelines.vocabulary.schema_part import schema_of
from tf_dlrm.callbacks import PublishDeltas, ResumableTraining

_COLUMNS = (
    "file", "rows", "bad_rows", "late", "val_auc", "val_log_loss",
    "val_normalized_entropy", "val_calibration", "loss", "step", "seconds", "refused",
)  # fmt: skip
_ENDLESS = 1_000_000_000  # epochs, and steps, of a run that nobody ends


def follow(
    folder: str | os.PathLike,
    out: str | os.PathLike,
    config: RunConfig | None = None,
    arrivals: Arrivals | None = None,
    vocabulary: Any = None,
    schema: Schema | None = None,
    publish: Mapping[str, Any] | None = None,
    *,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    strategy: tf.distribute.Strategy | None = None,
    placement: str = "auto",
    watching: Watching | None = None,
    checkpoints: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Train on each file of a growing folder once, as it is finished.

    Each file but the first is evaluated before the model is trained on it; the results
    are in `files.csv`. A checkpoint after each file, and in between by time, holds the
    position in the stream too. On SIGTERM, the run saves after the current step and
    exits with code 143; the same call resumes it, at the same batch of the same file.

    A file that cannot be read, or has too many bad rows, trains nothing: it is recorded
    as refused, and the run goes on with the next one.

    Args:
        folder: The folder.
        out: Folder of the run. If it contains an unfinished one, that run resumes.
        config: Config of the run. `learning_rate_decay` must be `"none"`, since the
            number of steps is unknown.
        arrivals: The order of files, and when they are finished; default: `Arrivals()`.
        vocabulary: The vocabulary. Default: hashing, if the config has `hash_buckets`;
            otherwise it is built from the first file, and values that occur later share
            row 0.
        schema: The columns; default: the schema of the vocabulary, or
            `Schema.criteo()`.
        publish: Arguments of `tf_dlrm.callbacks.PublishDeltas`, such as `{"base_dir":
            "saved_models/ctr", "every_seconds": 10}`. Default: nothing is published.
        callbacks: Further Keras callbacks.
        strategy: A `tf.distribute.MirroredStrategy`, or `None`.
        placement: Strategy for sharding the tables.
        watching: Logs to write for TensorBoard; default: `Watching()`.
        checkpoints: Arguments of `tf_dlrm.callbacks.ResumableTraining`.
        origin: Further facts to record in the run's `config.json`.

    Returns:
        The folder and the results of a run that ended because no file came in time.

    Raises:
        SystemExit: With code 143 after SIGTERM, when everything is saved.
        ValueError: If options do not fit, or differ from those of the run to resume.
    """
    config = _check(config or RunConfig())
    return _Job(
        pathlib.Path(folder),
        RunFolder(out),
        config,
        arrivals or Arrivals(),
        vocabulary,
        schema,
        dict(publish or {}),
        tuple(callbacks),
        strategy,
        placement,
        watching or Watching(),
        dict(checkpoints or {}),
        dict(origin or {}),
    ).run()


def _check(config: RunConfig) -> RunConfig:
    """Refuse options that need the end of the run, or the same rows twice."""
    unknown = {
        "`learning_rate_decay`": config.learning_rate_decay != "none",
        "`target_auc`": config.target_auc is not None,
        "`patience`": config.patience is not None,
        "`evaluate_every_steps`": config.evaluate_every_steps is not None,
        "`max_minutes`": config.max_minutes is not None,
        "`negative_sampling_rate`": config.negative_sampling_rate < 1,
    }
    for option, is_set in unknown.items():
        if is_set:
            raise UserError(
                f"{option} does not go with `follow`, which trains without end and "
                "evaluates on different rows each time. Leave it out."
            )
    if (config.epochs or 1) > 1:
        raise UserError(
            "`follow` trains on each file once. Leave `epochs` out. Received: "
            f"epochs={config.epochs}"
        )
    return dataclasses.replace(config, epochs=1, saved_model="last")


@dataclasses.dataclass(frozen=True)
class _Job:
    folder: pathlib.Path
    out: RunFolder
    config: RunConfig
    arrivals: Arrivals
    vocabulary: Any
    schema: Schema | None
    publish: dict[str, Any]
    callbacks: tuple[keras.callbacks.Callback, ...]
    strategy: tf.distribute.Strategy | None
    placement: str
    watching: Watching
    checkpoints: dict[str, Any]
    origin: dict[str, Any]

    def run(self) -> tuple[RunFolder, dict[str, Any]]:
        """Train until no file comes in time, and return the folder and results."""
        kept = "Existing checkpoints are unchanged."
        with (
            disk.advising(kept, "start the run again to resume it"),
            locks.locked(self.out.path),
            disk.explaining_logs(),
        ):
            if self.config.deterministic:
                tf.config.experimental.enable_op_determinism()
            return self._run()

    def _run(self):
        vocabulary, config, source, first = self._begin()
        parser = Parser(vocabulary)
        model = self._build(config, parser)
        checkpoint = self._make_checkpoint()
        publisher = self._make_publisher(parser)

        def while_waiting():
            if publisher is not None:
                publisher.publish_if_due()
            checkpoint.exit_if_requested()

        stream = Stream(source, parser, config, self._record, while_waiting)
        saved = {"stream": stream}
        if publisher is not None:
            saved["publish"] = publisher
        checkpoint.carry(**saved)
        stream.current = first
        dataset = checkpoint.resume(model, stream.dataset())
        is_trained = bool(checkpoint.initial_epoch or checkpoint.initial_batch)
        if is_trained and not checkpoint.initial_batch:
            stream.current = None
        self._forget_later_files(source, stream)
        if stream.begin(model if is_trained else None):
            with clear_errors(stream.quarantine):
                model.fit(
                    dataset,
                    initial_epoch=checkpoint.initial_epoch,
                    epochs=_ENDLESS,
                    verbose=0,
                    shuffle=False,
                    callbacks=[
                        Finish(stream),
                        *([publisher] if publisher is not None else []),
                        *self._loggers(config, vocabulary),
                        *self.callbacks,
                        checkpoint,
                        stream,
                    ],
                )
        return self.out, self._finish(model, config, checkpoint)

    def _begin(self):
        """Return vocabulary, complete config, folder and the first file of a run."""
        resumes = self.out.is_described and not self.out.is_finished
        if not resumes:
            self.out.start()
        else:
            data = self.out.read_data()
            resuming.check_same(self.out, self.config, data, self.vocabulary)
            if data.get("follow") != os.path.abspath(self.folder):
                raise UserError(
                    f"{self.out.path} follows {data.get('follow')}. Choose another "
                    f"`out`. Received: {self.folder}"
                )
        vocabulary = self.out.read_vocabulary() if resumes else self.vocabulary
        schema = schema_of(self.schema, vocabulary)
        has_time = schema.time is not None

        def time_of(path: str) -> float:
            return event_time(path, schema)

        source = GrowingFolder(
            self.folder, self.arrivals, time_of if has_time else None
        )
        # The first file defines the shapes of batches, and perhaps the vocabulary.
        first = Stream(source, None, self.config, print)._wait()
        if first is None:
            raise UserError(f"{self.folder} has no finished file to train on.")
        if resumes:
            return vocabulary, self.out.read_config(), source, first
        vocabulary = vocabulary or self._make_vocabulary(first, schema)
        num_rows = count_rows([first.path], schema)
        config = defaults.complete(self.config, num_rows)
        line = defaults.describe(self.config, config, num_rows)
        if line:
            print(line, flush=True)
        facts = {"follow": os.path.abspath(self.folder), **self.origin}
        self.out.describe(config, facts, vocabulary)
        return vocabulary, config, source, first

    def _make_vocabulary(self, first: Arrival, schema: Schema):
        config = self.config
        if config.hash_buckets is not None:
            return hash_vocabulary(config.hash_buckets, config.shared_table, schema)
        print(
            f"The vocabulary is built from the first file, {first.name}: values that "
            "first occur later share row 0. With hashing they have their own rows.",
            flush=True,
        )
        quarantine = Quarantine(max_bad_share=config.max_bad_share)
        limits = config.min_count, config.max_vocabulary_size
        return build_vocabulary([first.path], *limits, quarantine, schema)

    def _build(self, config: RunConfig, parser: Parser):
        keras.utils.set_random_seed(config.seed)
        strategy = self.strategy
        with contextlib.nullcontext() if strategy is None else strategy.scope():
            model = build_model.make_model(
                config, parser.spec(config.embedding_dim), self.placement
            )
            build_model.compile_model(
                model, config, _ENDLESS, schema=parser.vocabulary.schema
            )
        return model

    def _make_checkpoint(self) -> ResumableTraining:
        options = {"monitor": None, "verbose": 0, **self.checkpoints}
        advice = options.pop("how_to_resume", "call `follow` again, as before.")
        checkpoint = ResumableTraining(self.out.checkpoint_dir, **options)
        checkpoint.how_to_go_on = advice
        return checkpoint

    def _loggers(self, config: RunConfig, vocabulary):
        self.watching.check_tables(vocabulary.schema)
        return self.watching.callbacks(self.out.log_dir, config, vocabulary)

    def _make_publisher(self, parser: Parser) -> PublishDeltas | None:
        if not self.publish:
            return None
        options = dict(self.publish)
        export = {"preprocessor": parser, **options.pop("export", {})}
        return PublishDeltas(options.pop("base_dir"), export=export, **options)

    # The record of files

    @property
    def _files_path(self) -> pathlib.Path:
        return self.out.path / "files.csv"

    def _record(self, facts: dict[str, Any]) -> None:
        """Add a line to `files.csv`, and print it."""
        is_new = not self._files_path.exists()
        with disk.explaining("the record of files", self._files_path):
            with open(self._files_path, "a", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, _COLUMNS)
                if is_new:
                    writer.writeheader()
                writer.writerow(facts)
        if "refused" in facts:
            print(f"Refused {facts['file']}: {facts['refused']}", flush=True)
            return
        late = " (late)" if facts["late"] else ""
        words = f"{facts['file']}{late}: {facts['rows']:,} rows in {facts['seconds']} s"
        if "val_log_loss" in facts:
            words += (
                f"; before training on it: AUC {facts['val_auc']:.4f}, log loss "
                f"{facts['val_log_loss']:.4f}"
            )
        print(words, flush=True)

    def _forget_later_files(self, source: GrowingFolder, stream: Stream) -> None:
        """Remove lines of files that were trained on after the checkpoint."""
        if not self._files_path.exists():
            return
        taken = source.get_state()["taken"]
        gone = {name for name, _ in source._list()}
        with open(self._files_path, encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        lines = [
            line for line in lines if line["file"] in taken or line["file"] not in gone
        ]
        with disk.replacing_file("the record of files", self._files_path) as path:
            with open(path, "w", encoding="utf-8", newline="") as file:
                writer = csv.DictWriter(file, _COLUMNS)
                writer.writeheader()
                writer.writerows(lines)

    def _finish(self, model, config: RunConfig, checkpoint) -> dict[str, Any]:
        """Save the model of a run that ended, and return its results."""
        with open(self._files_path, encoding="utf-8", newline="") as file:
            files = [line for line in csv.DictReader(file) if not line["refused"]]
        self.out.save_model(model)
        step = int(model.optimizer.iterations.numpy())
        last = files[-1] if files else {}
        metrics = {
            name: float(last[name])
            for name in _COLUMNS
            if name.startswith("val_") and last.get(name)
        }
        results = {
            "saved_model": "last",
            "best": None,
            "last": {"epoch": len(files), "step": step, config.monitor: None},
            "metrics": metrics,
            "num_files": len(files),
            "num_rows": sum(int(line["rows"]) for line in files),
            "num_skipped_batches": model.num_skipped_batches,
        }
        history = {name: [line[name] for line in files] for name in ("loss", "step")}
        self.out.write_results(history, results)
        checkpoint.clear(keep_best=False)
        return results
