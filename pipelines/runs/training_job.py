"""A training run, from files to a trained model: open data, build, fit, finish."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

import tf_dlrm
from pipelines.files import Paths
from pipelines.formats.parser import Parser
from pipelines.runs import (
    build_model,
    model_choice,
    previous_run,
    resuming,
    stopping,
    workers,
)
from pipelines.runs.config import RunConfig
from pipelines.runs.data import TrainingData
from pipelines.runs.fitting import Fitting, History
from pipelines.runs.folder import RunFolder
from pipelines.runs.previous_run import ColdStart, PreviousRun
from pipelines.runs.resuming import NewRun
from pipelines.runs.run_inputs import RunInputs
from pipelines.runs.watching import Watching
from pipelines.runtime import disk, locks
from pipelines.schema import Schema
from pipelines.text_tables import align
from pipelines.whole_files import write_text


def train(
    config: RunConfig,
    train_paths: Paths,
    valid_paths: Paths | None,
    out,
    vocabulary=None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    origin: dict[str, Any] | None = None,
    strategy: tf.distribute.Strategy | None = None,
    placement: str = "auto",
    resume: bool = False,
    checkpoints: dict[str, Any] | None = None,
    watching: Watching | None = None,
    progressive: bool = False,
    warm_start=None,
    schema: Schema | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Train a run on the files of a click log, and write it to a folder.

    The folder is locked against other processes during the run; see
    `tf_dlrm.runtime.locks.locked` for the file systems on which that is safe.

    Args:
        config: Config of the run.
        train_paths: Labelled files to train on, or one folder of records that
            `prepare` wrote, with its vocabulary and validation rows.
        valid_paths: Labelled files for validation after each epoch, or `None`.
        out: Folder of the run; it must not contain a finished run.
        vocabulary: `Vocabulary` or `HashVocabulary`; default: build one from the
            training files with the options of the config.
        callbacks: Further Keras callbacks.
        origin: Further facts to record in the run's `config.json`.
        strategy: A `tf.distribute.MirroredStrategy` or `MultiWorkerMirroredStrategy` to
            train under, or `None`. With a strategy, tables are sharded over its devices
            and the plan is printed. Of several workers, the first writes the folder.
        placement: Strategy for sharding, as `strategy` of `tf_dlrm.sharding.plan`.
        resume: Whether to resume an interrupted run. If `out` contains none, a new run
            starts.
        checkpoints: Arguments of `tf_dlrm.callbacks.ResumableTraining`, such as
            `{"every_steps": 1000}`, and `"how_to_resume"`, the advice to print after
            SIGTERM. Checkpoints are removed when the run is finished.
        watching: Logs to write for TensorBoard; default: `Watching()`.
        progressive: Whether each of `train_paths` is a day, on which the model is
            evaluated before it is trained on it.
        warm_start: Folder of a finished run whose model this run starts from. The rows
            of values that are in both vocabularies are kept.
        schema: The columns of the files; default: the schema of the vocabulary, or
            `Schema.criteo()`.

    Returns:
        The folder and the results: metrics of the saved model, best and last model,
        rows, seconds.

    Raises:
        FileExistsError: If `out` contains a run that is finished or can be resumed.
        OSError: If a checkpoint cannot be written.
        SystemExit: With code 143 after SIGTERM, when a checkpoint is written.
        ValueError: If options or data differ from those of the run to resume, there
            are no valid rows, training diverged (no model is saved then), or another
            process is writing to `out`.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    return TrainingJob(
        config,
        RunInputs(train_paths, valid_paths, vocabulary, progressive, schema),
        RunFolder(out),
        resume=resume,
        warm_start=warm_start,
        strategy=strategy,
        placement=placement,
        watching=watching or Watching(),
        checkpoints=checkpoints or {},
        callbacks=callbacks,
        origin=origin or {},
    ).run()


@dataclasses.dataclass(frozen=True)
class TrainingJob:
    """The stages of `train`.

    Each choice is an object: `RunInputs.open` returns files, records or days,
    `resuming.begin` a new or a resumed run, `previous_run.find` a cold or a warm start.
    """

    config: RunConfig
    inputs: RunInputs
    folder: RunFolder
    resume: bool = False
    warm_start: str | None = None
    strategy: tf.distribute.Strategy | None = None
    placement: str = "auto"
    watching: Watching = dataclasses.field(default_factory=Watching)
    checkpoints: dict[str, Any] = dataclasses.field(default_factory=dict)
    callbacks: Sequence[keras.callbacks.Callback] = ()
    origin: dict[str, Any] = dataclasses.field(default_factory=dict)

    def run(self) -> tuple[RunFolder, dict[str, Any]]:
        """Train, and return the folder and the results."""
        place = workers.place_of(self.strategy)
        with workers.folder_of(self.folder, place) as folder:
            job = self
            if folder is not self.folder:
                job = dataclasses.replace(self, folder=folder)
            return self.folder, job._run()

    def _run(self) -> dict[str, Any]:
        kept = "Existing checkpoints are unchanged."
        with (
            workers.explaining_lost(self.strategy),
            disk.advising(kept, "resume the run"),
            locks.locked(self.folder.path),
            disk.explaining_logs(),
        ):
            if self.config.deterministic:
                tf.config.experimental.enable_op_determinism()
            run, start = self._begin()
            data = self._open_data(run, start)
            model = self._build(data, start.first_step)
            fitting = Fitting(model, data, self.folder, self.watching, self.checkpoints)
            history = self._fit(fitting, run, start)
            return self._finish(fitting, history)

    def _begin(self) -> tuple[NewRun, ColdStart | PreviousRun]:
        """Return the new or resumed run, and its cold or warm start."""
        stopping.check(self.config, self.inputs.has_validation)
        run = resuming.begin(
            self.folder, self.config, self.inputs, self.warm_start, self.resume
        )
        start = previous_run.find(self.warm_start, run.config, run.first_step)
        run.config = start.complete(run.config)
        run.open_folder()
        return run, start

    def _open_data(self, run: NewRun, start) -> TrainingData:
        data = self.inputs.open(self.folder, run)
        self.watching.check_tables(data.vocabulary.schema)
        data.complete_config(model_choice.choose)
        run.check_start(start, data.vocabulary)
        return data

    def _build(self, data: TrainingData, first_step: int) -> tf_dlrm.DLRM:
        config = data.config
        keras.utils.set_random_seed(config.seed)
        parser = Parser(data.vocabulary, expander=data.expander)
        strategy = self.strategy
        with contextlib.nullcontext() if strategy is None else strategy.scope():
            model = build_model.make_model(
                config,
                parser.spec(config.embedding_dim),
                self.placement,
                data.negative_sampling_rate,
            )
            build_model.compile_model(
                model, config, data.num_steps, first_step, data.vocabulary.schema
            )
        plan = getattr(model.embedding, "plan", None)
        if plan is not None:
            print(plan, flush=True)
            write_text(self.folder.plan_path, plan.to_json() + "\n")
        return model

    def _fit(self, fitting: Fitting, run: NewRun, start) -> History:
        warm_started = {}
        if not fitting.restore():
            warm_started = start.warm_up(fitting.model, fitting.data.vocabulary)
        origin = dict(self.origin)
        if fitting.data.config.deterministic:  # bit-equality depends on it
            origin["xla"] = fitting.model.xla_choice
        run.describe(fitting.data, origin, warm_started)
        return fitting.run(self.callbacks)

    def _finish(self, fitting: Fitting, history: History) -> dict[str, Any]:
        results = fitting.save(history, self.folder)
        results |= fitting.data.describe_days(history)
        results |= _describe_growing(fitting.model)
        if workers.place_of(self.strategy).is_chief:
            self.folder.write_results(history, results)
        fitting.checkpoint.clear(keep_best=False)
        return results


def _describe_growing(model: tf_dlrm.DLRM) -> dict[str, Any]:
    """Print how full the growing tables are, and return it for the results."""
    tables = [table.name for table in model.spec.tables if table.growing is not None]
    if not tables:
        return {}
    seen = [model.embedding.occupancy(name) for name in tables]
    header = ["growing table", "ids", "slots", "load", "claims", "evictions", "shared"]
    lines = [
        [
            own.table,
            f"{own.num_ids:,}",
            f"{own.num_slots:,}",
            f"{own.load:.1%}",
            f"{own.claims:,}",
            f"{own.evictions:,}",
            f"{own.fallback_share:.2%}",
        ]
        for own in seen
    ]
    print(*align([header, *lines]), sep="\n", flush=True)
    facts = ("num_ids", "num_slots", "load", "claims", "evictions", "not_admitted")
    facts += ("fallback_share", "mean_probes")
    return {"growing": {o.table: {f: getattr(o, f) for f in facts} for o in seen}}
