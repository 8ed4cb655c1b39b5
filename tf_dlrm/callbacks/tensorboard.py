"""`TensorBoardLogger`: loss, metrics, learning rate, speed, waiting for input."""

import time

import keras

from tf_dlrm.callbacks.watcher import TRAIN, VALIDATION, Watcher
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.training.probes import InputClock


class TensorBoardLogger(Watcher):
    """Writes loss, metrics, learning rate, samples/s and the wait for input.

    `<log_dir>/train` has the running values of the epoch every `every_steps` steps
    and at its end; `<log_dir>/validation` those of each validation, under the same
    names, so that both are drawn in one chart. The x axis is the optimizer's steps.

    Of a `DLRM`, `speed/input_wait_share` is the share of the time since the last entry
    for which steps stood without a batch: from the call of a step until its batch was
    there, on the host. A dataset that prefetches works beside the steps, so that this
    is what it holds the training up for, and not what it takes; some tenths of a
    millisecond of each step, the call itself, are always in it. (Left out are steps
    that were traced, and all of them where `steps_per_execution` is above 1: then
    TensorFlow fetches in a loop of its own, beside the steps.)

    Args:
        log_dir: Folder of the run's logs.
        batch_size: Rows in a batch, for samples/s.
        every_steps: Steps between two entries.

    Raises:
        ValueError: If `every_steps` is not positive.
    """

    def __init__(self, log_dir, batch_size: int, every_steps: int = 50):
        super().__init__(log_dir)
        self._epoch_start = self._last_time = self._written_time = 0.0
        if every_steps < 1:
            raise UserError(
                f"`every_steps` must be at least 1. Received: {every_steps}"
            )
        self._batch_size, self._every_steps = batch_size, every_steps

    def set_model(self, model):
        is_probed = hasattr(model, "use_probe") and model.steps_per_execution == 1
        self.probe = InputClock if is_probed else None
        super().set_model(model)

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_start = self._last_time = time.perf_counter()
        self._num_batches, self._written_batch = 0, None
        self._written_time = self._epoch_start
        self._waited = self._written_waited = 0.0

    def on_train_batch_begin(self, batch, logs=None):
        if self._written_batch is None:  # not 0 in an epoch that is resumed
            self._first_batch, self._written_batch = batch, batch - 1
        if self.probe is not None:
            self._called, self._num_traces = time.time(), self._probe.num_traces

    def on_train_batch_end(self, batch, logs=None):
        if self.probe is not None and self._probe.num_traces == self._num_traces:
            self._waited += self._probe.seconds_since(self._called)
        self._num_batches = batch + 1 - self._first_batch
        self._last_time, every = time.perf_counter(), self._every_steps
        if (batch + 1) // every == (self._written_batch + 1) // every:
            return
        steps = batch - self._written_batch
        seconds = self._last_time - self._written_time
        waited = self._waited - self._written_waited
        self._written_batch, self._written_time = batch, self._last_time
        self._written_waited = self._waited
        self._write_training(logs, steps, seconds, waited)

    def _write_training(self, logs, steps, seconds, waited):
        # Not float(): under a strategy it is a mirrored variable.
        learning_rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        values = _metrics(logs) | self._speed(steps, seconds)
        values["optimizer/learning_rate"] = learning_rate
        if self.probe is not None:
            values["speed/input_wait_share"] = waited / max(seconds, 1e-9)
        self._write(TRAIN, values)

    def _speed(self, steps, seconds):
        rate = steps * self._batch_size / max(seconds, 1e-9)
        return {"speed/samples_per_second": rate}

    def on_test_begin(self, logs=None):
        self._test_since, self._test_batches = time.perf_counter(), 0

    def on_test_batch_end(self, batch, logs=None):
        self._test_batches = batch + 1

    def on_test_end(self, logs=None):
        seconds = time.perf_counter() - self._test_since
        values = _metrics(logs) | self._speed(self._test_batches, seconds)
        self._write(VALIDATION, values)
        # It may be one within an epoch, which is no time of training.
        self._epoch_start += seconds
        self._last_time += seconds
        self._written_time += seconds

    def on_epoch_end(self, epoch, logs=None):
        train = {k: v for k, v in (logs or {}).items() if not k.startswith("val_")}
        seconds = self._last_time - self._epoch_start
        self._write_training(train, self._num_batches, seconds, self._waited)


def _metrics(logs):
    return {f"metrics/{name}": value for name, value in (logs or {}).items()}
