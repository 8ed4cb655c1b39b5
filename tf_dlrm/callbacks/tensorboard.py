"""`TensorBoardLogger`: loss, metrics, learning rate, speed and the wait for input."""

import time

import keras

from tf_dlrm.callbacks.watcher import TRAIN, VALIDATION, Watcher
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Logs, PathLike
from tf_dlrm.training import keras_hooks
from tf_dlrm.training.probes import InputClock


class TensorBoardLogger(Watcher):
    """Write loss, metrics, learning rate, rows/s and the wait for input.

    `<log_dir>/train` gets the running values of the epoch every `every_steps` steps and
    after the epoch. `<log_dir>/validation` gets the values of each validation under the
    same names, so that one chart shows both. The x axis is the optimizer's steps.

    For a `DLRM`, `speed/input_wait_share` is the share of the time since the last entry
    that steps spent waiting for their batch on the host. A dataset that prefetches
    works in parallel, so this is the delay that it causes, not the time that it takes.
    The measurement adds a few tenths of a millisecond per step. It excludes steps that
    TensorFlow traced. With `steps_per_execution` above 1 it excludes all steps, because
    TensorFlow then fetches batches in its own loop.

    Args:
        log_dir: Folder of the run's logs.
        batch_size: Number of rows in a batch. It is only used to compute rows/s for
            models with their own train step, which may not count rows.
        every_steps: Number of steps between two entries.

    Attributes:
        waiting_seconds: Seconds that steps have spent waiting for their batch so far;
            `None` if unknown.

    Raises:
        ValueError: If `every_steps` is not positive.
    """

    def __init__(
        self, log_dir: PathLike, batch_size: int, every_steps: int = 50
    ) -> None:
        super().__init__(log_dir)
        self._epoch_start = self._last_time = self._written_time = 0.0
        if every_steps < 1:
            raise UserError(
                f"`every_steps` must be at least 1. Received: {every_steps}"
            )
        self._batch_size, self._every_steps = batch_size, every_steps
        self.waiting_seconds: float | None = None

    def set_model(self, model: keras.Model) -> None:
        is_probed = hasattr(model, "use_probe") and model.steps_per_execution == 1
        self.probe = InputClock if is_probed else None
        super().set_model(model)

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._epoch_start = self._last_time = time.perf_counter()
        self._num_batches, self._is_first_batch = 0, True
        self._trained_rows: float | None = None
        self._first_rows = self._written_rows = 0.0
        self._written_time = self._epoch_start
        self._waited = self._written_waited = 0.0

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        if self._is_first_batch:  # not 0 in a resumed epoch
            self._first_batch, self._written_batch = batch, batch - 1
            self._is_first_batch = False
            self._first_rows = self._written_rows = keras_hooks.count_rows(self.model)
        if self.probe is not None:
            self._called, self._num_traces = time.time(), self._probe.num_traces

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if self.probe is not None and self._probe.num_traces == self._num_traces:
            waited = self._probe.seconds_since(self._called)
            self._waited += waited
            self.waiting_seconds = (self.waiting_seconds or 0.0) + waited
        self._num_batches = batch + 1 - self._first_batch
        self._trained_rows = None
        self._last_time, every = time.perf_counter(), self._every_steps
        if (batch + 1) // every == (self._written_batch + 1) // every:
            return
        steps = batch - self._written_batch
        seconds = self._last_time - self._written_time
        waited = self._waited - self._written_waited
        num_rows = keras_hooks.count_rows(self.model)
        speed = self._speed(steps, num_rows - self._written_rows, seconds)
        self._written_rows = num_rows
        self._written_batch, self._written_time = batch, self._last_time
        self._written_waited = self._waited
        self._write_training(logs, speed, seconds, waited)

    def _write_training(
        self, logs: Logs, speed: dict[str, float], seconds: float, waited: float
    ) -> None:
        # Not float(): under a strategy, it is a mirrored variable.
        learning_rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        values = _metrics(logs) | speed
        values["optimizer/learning_rate"] = learning_rate
        if self.probe is not None:
            values["speed/input_wait_share"] = waited / max(seconds, 1e-9)
        self._write(TRAIN, values)

    def _speed(self, steps: int, num_rows: float, seconds: float) -> dict[str, float]:
        rate = (num_rows or steps * self._batch_size) / max(seconds, 1e-9)
        return {"speed/samples_per_second": rate}

    def on_test_begin(self, logs: Logs = None) -> None:
        # Save the rows of the epoch, because the validation resets the count.
        self._trained_rows = keras_hooks.count_rows(self.model)
        self._test_since, self._test_batches = time.perf_counter(), 0

    def on_test_batch_end(self, batch: int, logs: Logs = None) -> None:
        self._test_batches = batch + 1

    def on_test_end(self, logs: Logs = None) -> None:
        seconds = time.perf_counter() - self._test_since
        num_rows = keras_hooks.count_rows(self.model)
        speed = self._speed(self._test_batches, num_rows, seconds)
        values = _metrics(logs) | speed
        self._write(VALIDATION, values)
        # Exclude the time of a validation within an epoch from the training time.
        self._epoch_start += seconds
        self._last_time += seconds
        self._written_time += seconds

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        train = {k: v for k, v in (logs or {}).items() if not k.startswith("val_")}
        seconds = self._last_time - self._epoch_start
        num_rows = self._trained_rows
        if num_rows is None:
            num_rows = keras_hooks.count_rows(self.model)
        num_rows -= self._first_rows
        speed = self._speed(self._num_batches, num_rows, seconds)
        self._write_training(train, speed, seconds, self._waited)


def _metrics(logs: Logs) -> dict[str, float]:
    return {f"metrics/{name}": value for name, value in (logs or {}).items()}
