"""`Search`: train one trial after the other, each with options that Optuna chooses.

Every trial is a run of `TrainingJob` in a folder of its own. Everything that the next
trial depends on is in the study's file, so a killed search continues from there.
"""

import dataclasses
import functools
import json
import math
import pathlib
import shutil
import sqlite3
import time
import warnings
import zlib
from typing import Any

import keras
import optuna
import tensorflow as tf
from sqlalchemy.exc import SQLAlchemyError

import tf_dlrm
from pipelines.runs import resuming
from pipelines.runs.config import RunConfig
from pipelines.runs.data import TrainingData
from pipelines.runs.folder import RunFolder, write_json
from pipelines.runs.run_inputs import RunInputs
from pipelines.runs.training_job import TrainingJob
from pipelines.runs.watching import Watching
from pipelines.runtime import UserError, disk, locks
from pipelines.tuning.results import SearchFiles
from pipelines.tuning.space import Space
from tf_dlrm.callbacks import EvaluateWithinEpochs

NINTHS = (1, 3, 9)  # of a trial's rows, after which it is compared with others
_STUDY = "tune"
_OF_VOCABULARY = ("min_count", "max_vocabulary_size", "hash_buckets", "shared_table")
_State = optuna.trial.TrialState
_ENDED = (_State.COMPLETE, _State.PRUNED, _State.FAIL)


@dataclasses.dataclass(frozen=True)
class SharedInputs(RunInputs):
    """Inputs of several runs, which build each vocabulary and count the rows once."""

    opened: dict[Any, TrainingData] = dataclasses.field(default_factory=dict)

    def open(self, folder: RunFolder, run) -> TrainingData:
        """Open the data of a run; `opened["last"]` is the result."""
        key = tuple(getattr(run.config, name) for name in _OF_VOCABULARY)
        known = self.opened.get(key)
        if known is not None and "records" not in known.origin:
            run.vocabulary, run.rows_by_epoch = known.vocabulary, [known.num_rows]
        data = super().open(folder, run)
        self.opened[key] = self.opened["last"] = data
        return data


@dataclasses.dataclass(frozen=True)
class _TrialLogs(Watching):
    """The logs of a trial, with evaluations after a share of its rows."""

    gradient_norms: bool = False
    touched_rows: bool = False
    shown: tuple[str, ...] = ()
    inputs: SharedInputs | None = None
    trial: optuna.Trial | None = None

    def callbacks(self, log_dir, config, vocabulary, shown=()) -> list:
        loggers = super().callbacks(log_dir, config, vocabulary, self.shown[:5])
        data = self.inputs.opened["last"]
        return [*loggers, _Rungs(data, self.trial, loggers[:1])]


class _Rungs(EvaluateWithinEpochs):
    """Evaluate a trial after a ninth and a third of its rows, and prune it there.

    Raises:
        optuna.TrialPruned: If the trial is behind others.
    """

    def __init__(self, data: TrainingData, trial, listeners):
        super().__init__(data.valid_dataset(), data.num_steps, listeners)
        self._trial, self._monitor = trial, data.monitor
        self._last_batch = math.ceil(data.num_rows / data.config.batch_size)
        steps = ((n, math.ceil(data.num_steps * n / 9)) for n in NINTHS[:-1])
        self._due = list(steps)

    def on_train_batch_end(self, batch, logs=None):
        if self._is_due() and batch + 1 < self._last_batch:
            self.evaluate(batch + 1)
            self._report(self.results[-1])

    def on_epoch_end(self, epoch, logs=None):
        if self._is_due():
            self._report(logs)

    def _is_due(self):
        step = int(self.model.optimizer.iterations.numpy())
        return self._due and step >= self._due[0][1]

    def _report(self, results):
        value, step = _read(results, self._monitor), self._due.pop(0)[0]
        with warnings.catch_warnings():
            # A trial that is trained again has reported the same value before.
            warnings.filterwarnings("ignore", "The reported value is ignored")
            self._trial.report(value, step)
        if self._trial.should_prune():
            raise optuna.TrialPruned


class Search:
    """A search in a folder, new or to continue.

    Args:
        space_name: One of `pipelines.tuning.space.SPACES`.
        config: The config of the options that do not vary, and of the first trial.
        fixed: Options that do not vary.
        inputs: The data of all trials.
        out: Folder of the search.
    """

    def __init__(
        self,
        space_name: str,
        config: RunConfig,
        fixed: tuple[str, ...],
        inputs: SharedInputs,
        out,
    ):
        self._config, self._inputs = config, inputs
        self._space_name, self._fixed = space_name, fixed
        self.path, self._out = pathlib.Path(out), RunFolder(out)
        self._study_path = self.path / "study.db"
        self._facts_path = self.path / "search.json"

    def run(self, num_trials: int, command: str) -> SearchFiles:
        """Train trials until there are `num_trials`, and write the files.

        Args:
            num_trials: Number of trials, with those of an interrupted search.
            command: Command that trains the config in `best.json`.

        Raises:
            ValueError: If the folder contains another search or a run, the data do not
                fit, another process is writing to the folder, or all trials failed.
        """
        with locks.locked(self.path):
            self._check_folder()
            self._check_validation(self._inputs.has_validation)
            run = resuming.begin(self._out, self._config, self._inputs)
            data = self._inputs.open(self._out, run)
            data.complete_config()
            self._check_validation(data.valid_dataset() is not None)
            space = Space.make(self._space_name, data.config, self._fixed)
            self._describe()
            files = SearchFiles(self.path, space, command, data.origin)
            with disk.explaining(
                "the list of trials",
                self._study_path,
                "Finished trials are kept.",
                "run it again to continue the search",
                also=(SQLAlchemyError, optuna.exceptions.StorageInternalError),
            ):
                self._open_and_run(space, files, num_trials)
        return files

    def _open_and_run(self, space, files, num_trials):
        storage = optuna.storages.RDBStorage(
            "sqlite:///",  # a path may contain characters that are special in it
            engine_kwargs={"creator": lambda: sqlite3.connect(self._study_path)},
        )
        try:
            self._run(storage, space, files, num_trials)
        finally:
            storage.engine.dispose()

    def _check_validation(self, has_validation):
        if not has_validation:
            raise UserError(
                "A search needs validation rows: name their files in `valid_paths`, or "
                "prepare records with a validation split."
            )

    @functools.cached_property
    def _facts(self):
        """The facts that must be the same when the search continues."""
        schema, vocabulary = self._inputs.schema, self._inputs.vocabulary
        return {
            "space": self._space_name,
            "fixed": sorted(self._fixed),
            "schema": None if schema is None else schema.digest,
            "vocabulary": None if vocabulary is None else vocabulary.digest,
            "data": self._inputs.describe(),
            "config": json.loads(self._config.to_json()),
        }

    def _describe(self):
        if not self._facts_path.exists():
            self._study_path.unlink(missing_ok=True)
            write_json(self._facts_path, {"tf_dlrm": tf_dlrm.__version__} | self._facts)

    def _check_folder(self):
        """Check that the folder contains this search, or none."""
        if self._out.is_described:
            raise UserError(f"{self.path} contains a run. Choose another `out`.")
        if not self._facts_path.exists():
            return
        stored, facts = disk.read_json(self._facts_path), self._facts
        differing = [
            f"`{name}` was {stored.get(name)}, now {facts[name]}"
            for name in ("space", "schema", "vocabulary")
            if stored.get(name) != facts[name]
        ]
        before, data = RunConfig.load(self._facts_path), stored.get("data") or {}
        differing += resuming.list_differences(
            before, data, self._config, facts["data"]
        )
        if not differing and stored.get("fixed") != facts["fixed"]:
            words = (" ".join(f.get("fixed") or ["none"]) for f in (stored, facts))
            differing.append("options that do not vary were {}, now {}".format(*words))
        if differing:
            raise UserError(
                f"{self.path} contains a search with different options: "
                f"{'; '.join(differing)}. Repeat its command, or choose another `out`."
            )
        resuming.check_content(self.path, data, facts["data"])

    def _run(self, storage, space, files, num_trials):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        monitor = space.base.monitor
        study = optuna.create_study(
            storage=storage,
            study_name=_STUDY,
            load_if_exists=True,
            direction="maximize" if monitor == "auc" else "minimize",
            sampler=_make_sampler(0),  # suggestions replace it
            pruner=optuna.pruners.SuccessiveHalvingPruner(1, reduction_factor=3),
        )
        if not study.get_trials():
            study.enqueue_trial(space.start())
        while len(study.get_trials(states=_ENDED)) < num_trials:
            trial = self._next_trial(study, storage)
            self._run_trial(study, trial, space, num_trials)
            files.write(study.get_trials())
        files.write(study.get_trials())
        if files.best is None:
            reasons = (t.user_attrs.get("reason") for t in files.trials)
            raise UserError(
                f"All {len(files.trials)} trials failed. The first: {next(reasons)}"
            )
        files.draw()

    def _next_trial(self, study, storage):
        """Return the trial that an interrupt stopped, or a new one."""
        for stopped in study.get_trials(states=(_State.RUNNING,)):
            study_id = storage.get_study_id_from_name(_STUDY)
            return optuna.Trial(
                study,
                storage.get_trial_id_from_study_id_trial_number(
                    study_id, stopped.number
                ),
            )
        return study.ask()

    def _run_trial(self, study, trial, space, num_trials):
        start, state, value = time.perf_counter(), _State.FAIL, None
        label = f"Trial {trial.number + 1} of {num_trials}"
        try:
            config = space.choose(self._make_suggest(study, trial))
            trial.set_user_attr("config", dataclasses.asdict(config))
            values = [f"{k} {v}" for k, v in space.describe(config).items()]
            print(f"\n{label}: {', '.join(values)}", flush=True)
            value, state = self._train(trial, config, space), _State.COMPLETE
            text = f"{config.monitor} {value:.5f}"
        except optuna.TrialPruned:
            state, text = _State.PRUNED, "stopped, as it is behind other trials"
        except (UserError, tf.errors.ResourceExhaustedError) as error:
            reason = " ".join((getattr(error, "one_line", "") or str(error)).split())
            trial.set_user_attr("reason", reason[:500])
            text = f"failed: {reason}"
        trial.set_user_attr("seconds", time.perf_counter() - start)
        study.tell(trial, value, state)
        print(f"{label}: {text}", flush=True)

    def _make_suggest(self, study, trial):
        """Return the function that chooses a parameter.

        The random numbers depend on seed, trial and parameter only, not on what the
        process did before.
        """

        def suggest(name, choices=None, low=None, high=None):
            text = f"{self._config.seed} {trial.number} {name}"
            study.sampler = _make_sampler(zlib.crc32(text.encode()))
            if choices is None:
                return trial.suggest_float(name, low, high, log=True)
            return trial.suggest_categorical(name, choices)

        return suggest

    def _train(self, trial, config, space):
        folder = RunFolder(self.path / "trials" / f"{trial.number + 1:03d}")
        shutil.rmtree(folder.path, ignore_errors=True)
        keras.utils.clear_session()
        job = TrainingJob(
            config,
            self._inputs,
            folder,
            watching=_TrialLogs(shown=space.names, inputs=self._inputs, trial=trial),
            checkpoints={
                "every_minutes": None,
                "how_to_resume": "run the same command again.",
            },
        )
        _, results = job.run()
        value = _read(results["metrics"], f"val_{config.monitor}")
        trial.report(value, NINTHS[-1])
        return value


def _read(results, monitor):
    """Return the monitored value; without a finite loss, an AUC means nothing."""
    for name in ("val_loss", monitor):
        value = results.get(name)
        if value is not None and math.isfinite(value):
            continue
        if name == "val_auc":
            raise UserError(
                "The validation rows have no AUC: it takes rows with and without a "
                "click."
            )
        raise UserError(f"Training diverged: {name} is not finite.")
    return float(value)


def _make_sampler(seed):
    # Parameters are sampled one by one, because which there are depends on others.
    return optuna.samplers.TPESampler(seed=seed, multivariate=False)
