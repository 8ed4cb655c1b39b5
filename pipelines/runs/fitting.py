"""Call `model.fit` for a run, with progress, checkpoints, early stopping and logs."""

import math
import time
from collections.abc import Sequence
from typing import Any

import keras

import tf_dlrm
from pipelines.pipeline_errors import clear_errors
from pipelines.progress.fit import FitProgress
from pipelines.runs import saving, stopping
from pipelines.runs.convergence import LossCurve
from pipelines.runs.data import TrainingData
from pipelines.runs.folder import RunFolder
from pipelines.runs.run_log import RunLog
from pipelines.runs.watching import Watching
from pipelines.runtime import UserError
from tf_dlrm.callbacks import ResumableTraining

History = dict[str, list[float]]


class Fitting:
    """The training of a compiled model on the data of its run.

    Args:
        model: The model.
        data: The data, with a complete config.
        folder: The folder of the run.
        watching: The logs to write for TensorBoard.
        checkpoints: Arguments of `tf_dlrm.callbacks.ResumableTraining`.

    Attributes:
        model: The model.
        data: The data.
        checkpoint: The callback that writes checkpoints.

    Raises:
        ValueError: If the config needs validation rows and there are none.
    """

    def __init__(
        self,
        model: tf_dlrm.DLRM,
        data: TrainingData,
        folder: RunFolder,
        watching: Watching,
        checkpoints: dict[str, Any],
    ):
        config = data.config
        self.model, self.data = model, data
        self.checkpoint = _make_checkpoint(folder, data.monitor, checkpoints)
        self._progress = FitProgress(
            config.batch_size,
            data.rows_by_epoch,
            self._describe_saves,
            data.count_read,
        )
        self._valid_dataset = data.valid_dataset()
        stopping.check(config, self._valid_dataset is not None)
        self._loggers = watching.callbacks(folder.log_dir, config, data.vocabulary)
        self._log = RunLog(folder, self.checkpoint, self._measure)
        listeners = [*self._loggers[:1], self._log, self.checkpoint]
        self._stopping = stopping.Stopping(config, self._valid_dataset, listeners)
        self._curve = LossCurve(data.num_steps)
        self.checkpoint.carry(**self._stopping.states, loss_curve=self._curve)

    def restore(self) -> bool:
        """Restore the model from its newest checkpoint.

        Returns:
            True if there is a checkpoint.
        """
        self._start = time.perf_counter()
        dataset = self.data.train_dataset()
        self._train_dataset = self.checkpoint.resume(self.model, dataset)
        return bool(self.checkpoint.initial_epoch or self.checkpoint.initial_batch)

    def run(self, callbacks: Sequence[keras.callbacks.Callback] = ()) -> History:
        """Train from the restored checkpoint to the end of the run.

        Args:
            callbacks: Further Keras callbacks.

        Returns:
            The results of every epoch, including those before a resume.
        """
        data, first_epoch = self.data, self.checkpoint.initial_epoch
        self._progress.first_batch = self.checkpoint.initial_batch
        num_epochs = len(data.rows_by_epoch)
        if self._stopping.stop.reason is not None:  # it had ended before the interrupt
            num_epochs = first_epoch
        with self._progress, clear_errors(*data.quarantines):
            history = self.model.fit(
                self._train_dataset,
                validation_data=self._valid_dataset,
                validation_freq=data.validation_freq,
                initial_epoch=first_epoch,
                epochs=num_epochs,
                verbose=0,
                shuffle=False,
                callbacks=[
                    self._progress,
                    *data.callbacks,
                    *self._loggers,
                    self._log,
                    *self._stopping.callbacks,
                    self._curve,
                    *callbacks,
                    self.checkpoint,
                ],
            ).history
            if first_epoch >= num_epochs:  # an earlier process ran all epochs
                for _ in data.train_dataset():
                    pass
        return history

    def save(self, history: History, folder: RunFolder) -> dict[str, Any]:
        """Save the models of the run, and return its results.

        Args:
            history: The results that `run` returned.
            folder: The folder of the run.

        Raises:
            ValueError: If there were no valid rows or the loss is not finite; no model
                is saved then.
        """
        counts, config = self.data.count(history), self.data.config
        try:
            _check_trained(history, counts["num_rows"])
        except ValueError:
            self.checkpoint.clear(keep_best=False)
            raise
        results = {
            **counts,
            **self._describe_times(),
            **self._stopping.describe(),
            "num_skipped_batches": self.model.num_skipped_batches,
        }
        last, epoch = _last_results(history), len(history["loss"])
        results |= saving.save_models(
            self.model, folder, config, self.checkpoint, last, epoch
        )
        results["not_converged"] = self._judge_convergence(results)
        results["seconds"] = time.perf_counter() - self._start
        self._log.write_times()
        return results

    def _describe_saves(self):
        seconds = self.checkpoint.seconds
        if not seconds:
            return ""
        return f"{self.checkpoint.num_saved} saved, last in {seconds[-1]:.2f} s"

    def _measure(self):
        times = self._describe_times()
        return {
            "seconds": time.perf_counter() - self._start,
            "training_seconds": times["training_seconds"],
            "waiting_seconds": self._loggers[0].waiting_seconds,
            "validation_seconds": times["validation_seconds"],
            "num_rows": self._progress.num_trained,
        }

    def _describe_times(self):
        progress, within_epochs = self._progress, self._stopping.seconds
        seconds = progress.seconds - within_epochs
        speed = progress.num_trained / seconds if seconds > 0 else 0.0
        return {
            "training_seconds": seconds,
            "validation_seconds": progress.validation_seconds + within_epochs,
            "samples_per_second": speed,
            "checkpoint_seconds": self.checkpoint.seconds,
        }

    def _judge_convergence(self, results):
        """Return the loss curve if it had not converged and validation agrees."""
        best, config = results["best"], self.data.config
        if best is not None:
            is_last = best["step"] == results["last"]["step"]
            if not is_last or (config.target_auc or math.inf) <= best[config.monitor]:
                return None
        # Repeated rows have a lower loss.
        return self._curve.describe(best is not None or config.epochs == 1)


def _make_checkpoint(folder, monitor, arguments):
    options = {"monitor": monitor, "log_dir": folder.log_dir, "verbose": 0}
    options |= arguments
    advice = options.pop("how_to_resume", "call `train` again with `resume=True`.")
    checkpoint = ResumableTraining(folder.checkpoint_dir, **options)
    checkpoint.how_to_go_on = advice
    return checkpoint


def _last_results(history):
    return {
        name: values[-1]
        for name, values in history.items()
        if not name.removeprefix("val_").startswith("num_")
    }


def _check_trained(history, num_good):
    if not num_good:
        raise UserError("There are no valid rows to train on; no model was saved.")
    losses = history.get("loss", [])
    if not losses or not all(math.isfinite(loss) for loss in losses):
        raise UserError(
            "Training diverged: the loss is not finite; no model was saved. Try a "
            "smaller `learning_rate`."
        )
