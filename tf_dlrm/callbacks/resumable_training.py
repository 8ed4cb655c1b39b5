"""`ResumableTraining`: checkpoints from which a killed run resumes exactly."""

import math
import pathlib
import time
from collections.abc import Callable
from typing import Any, NoReturn

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.callbacks import best_checkpoint
from tf_dlrm.callbacks import watcher as events
from tf_dlrm.callbacks.best_checkpoint import BestCheckpoint
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.place import ALONE, place_of
from tf_dlrm.runtime.types import Logs, PathLike
from tf_dlrm.training import keras_hooks
from tf_dlrm.training.checkpoints import positions
from tf_dlrm.training.checkpoints import state as training_state
from tf_dlrm.training.checkpoints.files import CheckpointFolder
from tf_dlrm.training.checkpoints.shared_folder import agree, folder_of
from tf_dlrm.training.checkpoints.termination import SIGTERM_EXIT_CODE, Termination
from tf_dlrm.version import __version__


class ResumableTraining(keras.callbacks.Callback):
    """Save checkpoints and resume an interrupted run as if it had never stopped.

    A checkpoint contains weights, tables and optimizer state (by logical table, for any
    number of devices), dropout seeds, running metrics, the results of past epochs and
    the position in the dataset. It is written completely or not at all. With op
    determinism (`tf.config.experimental.enable_op_determinism()`), the resumed run is
    bit-equal to an uninterrupted one.

    To resume in the middle of an epoch, you need a `DLRM` and a dataset exactly as
    `pipelines.records.read`, `read_npy` or `pipelines.criteo.read` returned it. With
    any other model or dataset, a run resumes at the start of an epoch, checkpoints are
    written only after epochs, and a printed line says so.

    On SIGTERM, a `DLRM` saves after the current step and exits with code 143.

    Args:
        directory: Folder of the checkpoints of one training run.
        every_steps: Steps between two checkpoints. Default: by time and epoch only.
        every_minutes: Minutes between two checkpoints; `None` to ignore the time.
        keep: Number of newest checkpoints to keep.
        monitor: Name of a validation result. The checkpoint with the best value is kept
            too. As a listener of `EvaluateWithinEpochs`, the callback also saves after
            the best evaluation so far within an epoch. The largest value is best if
            the name ends in auc, accuracy, precision or recall, otherwise the smallest.
            With `None`, no checkpoint counts as best.
        log_dir: Folder for TensorBoard, which shows `speed/checkpoint_seconds`, how
            long each save delayed training. Default: not logged.
        verbose: 1 prints a line for each save, 0 prints none.

    Attributes:
        initial_epoch: Epoch at which to resume; pass it to `fit`.
        initial_batch: Batch at which to resume in that epoch.
        num_saved: Number of checkpoints written.
        seconds: Seconds that each save delayed training.

    Raises:
        ValueError: If an argument is out of range, or `fit` does not get the model and
            dataset of `resume`.
        OSError: If a checkpoint cannot be written; existing ones are not changed.

    Example:

    >>> import tempfile, numpy as np, tf_dlrm
    >>> spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable("a", 10, 4)])
    >>> model = tf_dlrm.DLRM(spec, (4,), (4, 1))
    >>> model.compile("adagrad")
    >>> x = {"dense_features": np.ones((8, 1)), "sparse_features": np.ones((8, 1), int)}
    >>> train = tf.data.Dataset.from_tensor_slices((x, np.ones(8))).batch(4)
    >>> checkpoint = tf_dlrm.callbacks.ResumableTraining(tempfile.mkdtemp(), verbose=0)
    >>> history = model.fit(
    ...     checkpoint.resume(model, train), initial_epoch=checkpoint.initial_epoch,
    ...     epochs=2, callbacks=[checkpoint], verbose=0)
    This dataset cannot start in the middle of an epoch: ...
    >>> checkpoint.num_saved
    2
    """

    def __init__(
        self,
        directory: PathLike,
        every_steps: int | None = None,
        every_minutes: float | None = 10.0,
        keep: int = 2,
        monitor: str | None = "val_loss",
        log_dir: PathLike | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        for name, value in (("every_steps", every_steps), ("keep", keep)):
            if value is not None and (not hasattr(value, "__index__") or value < 1):
                raise UserError(f"`{name}` must be at least 1. Received: {value!r}")
        if every_minutes is not None and not every_minutes > 0:
            rule = "`every_minutes` must be positive."
            raise UserError(f"{rule} Received: {every_minutes!r}")
        self._folder = CheckpointFolder(directory)
        self._place = ALONE
        self._every_steps, self._every_minutes = every_steps, every_minutes
        self._keep, self._monitor, self._verbose = keep, monitor, verbose
        self._log_dir, self._resumed, self._is_within_step = log_dir, None, False
        self._termination = Termination()
        self._writer: tf.summary.SummaryWriter | None = None
        self._position: positions.Position | None = None
        self._carried: dict[str, Any] = {}
        self._evaluation: dict[str, float] | None = None
        self.initial_epoch = self.initial_batch = 0
        self.how_to_go_on = "call `resume` and `fit` again, as before."
        self.num_saved = 0
        self.seconds: list[float] = []

    @property
    def best(self) -> pathlib.Path | None:
        """Folder of the checkpoint with the best value of `monitor`, or `None`.

        `model.load_weights` reads its `model.weights.h5`.
        """
        best = self.find_best()
        return None if best is None else best.path

    def find_best(self) -> BestCheckpoint | None:
        """Return the best checkpoint with its step and results, or `None`."""
        return best_checkpoint.find(self._folder, self._monitor)

    def carry(self, **callbacks: Any) -> None:
        """Save and restore the state of other callbacks too; call it before `resume`.

        Args:
            **callbacks: Objects by name, such as an `EarlyStopping`, with the methods
                `get_state()`, which returns JSON-safe values, and `set_state(state)`.
        """
        self._carried.update(callbacks)

    def resume(self, model: keras.Model, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Restore a model from the newest checkpoint, if there is one.

        Args:
            model: The model, compiled as in the interrupted run.
            dataset: The training data, as in the interrupted run.

        Returns:
            The dataset to pass to `fit` together with `initial_epoch`. It begins where
            the run was interrupted.

        Raises:
            ValueError: If the checkpoint belongs to another model, optimizer or
                dataset.
            OSError: If no checkpoint can be written.
        """
        self._place = place_of(model.distribute_strategy)
        self._folder = folder_of(self._folder.path, self._place)
        self._folder.check_writable(training_state.count_bytes(model))
        newest = self._folder.find_newest(say)
        facts = {} if newest is None else newest[1]
        resumable = positions.resumable_input(dataset)
        if not isinstance(model, keras_hooks.KerasModelAdapter):
            resumable = None
        self._description = None if resumable is None else resumable.describe()
        if facts:
            positions.check_same(
                self._folder.path, facts.get("input"), self._description
            )
        self.initial_epoch, self.initial_batch = facts.get("epoch", 0), 0
        self._history = facts.get("history", {"epoch": [], "logs": []})
        self._steps_per_epoch = facts.get("steps_per_epoch")
        self._state = self._seed = self._position = None
        if resumable is not None:
            self.initial_batch = facts.get("batch", 0)
            self._seed = facts.get("seed", resumable.seed)
            dataset, self._position = resumable.begin(self._seed)
        else:
            say(
                "This dataset cannot start in the middle of an epoch: checkpoints are "
                "written after epochs, and an interrupted epoch is trained again."
            )
        for name, state in facts.get("carried", {}).items():
            if name in self._carried:
                self._carried[name].set_state(state)
        if newest is not None:
            self._state = training_state.restore(model, self._folder.path / newest[0])
            say(
                f"Resuming from {self._folder.path / newest[0]}: epoch "
                f"{self.initial_epoch + 1}, batch {self.initial_batch:,}."
            )
        self._resumed = model
        return dataset

    # Methods that Keras calls

    def on_train_begin(self, logs: Logs = None) -> None:
        if self._resumed is not self.model:
            raise UserError(
                "Pass the dataset that `ResumableTraining.resume(model, dataset)` "
                "returns to `fit` of the same model."
            )
        if self._position is not None:
            if not self._position.is_followed:
                raise UserError("Pass the dataset that `resume` returned to `fit`.")
            steps = self._position.steps_per_epoch
            if self._state is not None and steps != self._steps_per_epoch:
                raise UserError(
                    "`steps_per_epoch` must be the same as before the interruption. "
                    f"Received: {steps}, before: {self._steps_per_epoch}"
                )
        self._is_first = True
        self._last_save = time.monotonic()
        self._metrics_before_test: dict[str, np.ndarray] | None = None
        if isinstance(self.model, keras_hooks.KerasModelAdapter):
            self._termination.begin()  # only a DLRM calls `on_fit_exit` after errors

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        if self._is_first and epoch != self.initial_epoch:
            raise UserError(
                "Pass initial_epoch=checkpoint.initial_epoch to `fit`, which is "
                f"{self.initial_epoch}. Received: initial_epoch={epoch}"
            )
        self._epoch, self._batch = epoch, 0
        if self._is_first and self.initial_batch:
            self._batch = self.initial_batch
            keras_hooks.build_metrics(self.model)
            training_state.set_metrics(self.model, self._state or {})
        if self._position is not None:
            self._position.epoch, self._position.batch = epoch, self._batch
        self._is_first, self._state = False, None

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self._is_within_step, self._evaluation = True, None

    def on_evaluation(self, results: dict) -> None:
        """Receive the results of `EvaluateWithinEpochs`, before the end of the step.

        Args:
            results: Values by name, such as `val_auc`.
        """
        self._evaluation = results

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        before, self._batch, self._is_within_step = self._batch, batch + 1, False
        must_stop, is_time = self._agree(batch)
        if must_stop:
            self._stop(logs, training_state.get_metrics)
        elif self._position is not None and (
            is_time or self._is_due(before) or self._is_best()
        ):
            metrics = training_state.get_metrics(self.model)
            self._save(self._epoch, self._batch, metrics, logs)

    def _agree(self, batch: int | None) -> tuple[bool, bool]:
        """Return whether SIGTERM was received, and whether a save is due by time.

        Args:
            batch: Number of the batch; `None` at the end of an epoch.
        """
        since = time.monotonic() - self._last_save
        is_time = self._every_minutes is not None and since > 60 * self._every_minutes
        stop, due = agree(self._place, batch, self._termination.requested, is_time)
        return stop, due

    def _is_due(self, before: int) -> bool:
        if not self._every_steps:
            return False
        return self._batch // self._every_steps > before // self._every_steps

    def _is_best(self) -> bool:
        if self._monitor is None or self._evaluation is None:
            return False
        value = self._evaluation.get(self._monitor)
        return best_checkpoint.is_better(value, self.find_best(), self._monitor)

    def on_test_begin(self, logs: Logs = None) -> None:
        # Keras resets the metrics, and SIGTERM may interrupt a validation (but not one
        # within a step, because that step is not counted yet).
        if not self._is_within_step:
            self._metrics_before_test = training_state.get_metrics(self.model)

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        if not self._is_within_step and self._agree(batch)[0]:
            self._stop(None, lambda model: self._metrics_before_test)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self._history["epoch"].append(epoch)
        values = {name: float(value) for name, value in (logs or {}).items()}
        self._history["logs"].append(values)
        self._save(epoch + 1, 0, {}, logs)
        if self._agree(None)[0]:
            self._exit()

    def on_train_end(self, logs: Logs = None) -> None:
        _put_before(self.model.history, self._history)
        self.on_fit_exit()
        if self._writer is not None:
            self._writer.flush()
            self._writer = None  # the writer closes when no callback uses it

    def on_fit_exit(self) -> None:
        """Release folder and signal handler; called after `fit`, even if it fails."""
        self._termination.end()
        self._folder.release()
        self._resumed = None
        if self._position is not None:
            self._position.epoch = self._position.batch = 0

    def exit_if_requested(self) -> None:
        """Exit with code 143 if SIGTERM came; call it when everything is saved."""
        if self._termination.requested:
            self._exit()

    def clear(self, keep_best: bool = True) -> None:
        """Remove the checkpoints of a finished run.

        Args:
            keep_best: Whether to keep the best checkpoint if a later one was worse.
        """
        names, best = self._folder.names(), self.best if keep_best else None
        self._folder.clear(best.name if best and best.name != names[-1] else None)

    # Saving

    def _stop(self, logs: Logs, get_metrics: Callable[[keras.Model], Any]) -> NoReturn:
        if self._position is not None:
            self._save(self._epoch, self._batch, get_metrics(self.model), logs)
        self._exit()

    def _exit(self) -> NoReturn:
        names = self._folder.names()
        where = f"saved in {self._folder.path / names[-1]}" if names else "not saved"
        if self._position is None:
            where += " (after the last complete epoch)"
        say(f"SIGTERM: training is {where}. To resume, {self.how_to_go_on}")
        raise SystemExit(SIGTERM_EXIT_CODE)

    def _save(
        self, epoch: int, batch: int, metrics: dict[str, np.ndarray], logs: Logs
    ) -> None:
        is_finite = math.isfinite((logs or {}).get("loss", 0.0))
        skipped = training_state.has_just_skipped(self.model)
        if not is_finite or (skipped and not self._is_best()):
            return  # the weights may be unusable
        start = time.perf_counter()
        step = int(self.model.optimizer.iterations.numpy())
        results = {**(logs or {}), **(self._evaluation or {})}
        facts = {
            "tf_dlrm": __version__,
            "epoch": epoch,
            "batch": batch,
            "history": self._history,
            **best_checkpoint.facts(results, self._monitor),
            "input": self._description,
            "seed": self._seed,
            "steps_per_epoch": self._position and self._position.steps_per_epoch,
            "carried": {name: c.get_state() for name, c in self._carried.items()},
        }
        path = self._folder.write(
            step,
            facts,
            lambda folder: training_state.write(self.model, metrics, folder),
            training_state.count_bytes(self.model),
        )
        best = self.best
        self._folder.prune(self._keep, None if best is None else best.name)
        self._last_save = time.monotonic()
        self.seconds.append(time.perf_counter() - start)
        self.num_saved += 1
        self._show(path, step, self.seconds[-1])

    def _show(self, path: pathlib.Path, step: int, seconds: float) -> None:
        if self._verbose:
            size = sum(file.stat().st_size for file in path.iterdir()) / 1e6
            say(f"Checkpoint {path}: {size:.1f} MB in {seconds:.2f} s")
        if self._log_dir is not None:
            if self._writer is None:
                folder = pathlib.Path(self._log_dir) / events.TRAIN
                self._writer = events.writer_of(folder)
            with self._writer.as_default(step=step):
                tf.summary.scalar("speed/checkpoint_seconds", seconds)


def say(line: str) -> None:
    """Print a line immediately."""
    print(line, flush=True)


def _put_before(history: keras.callbacks.History, earlier: dict[str, list]) -> None:
    """Add the epochs from before the interruption to Keras' `History`."""
    missing = [
        (epoch, logs)
        for epoch, logs in zip(earlier["epoch"], earlier["logs"], strict=True)
        if epoch not in history.epoch
    ]
    history.epoch[:0] = [epoch for epoch, _ in missing]
    for name in {name: None for _, logs in missing for name in logs}:
        values = [logs[name] for _, logs in missing if name in logs]
        history.history[name] = values + history.history.get(name, [])
