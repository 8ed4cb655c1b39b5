"""Callbacks: what a training run tells TensorBoard."""

import pathlib
import time

import keras
import tensorflow as tf


class TensorBoardLogger(keras.callbacks.Callback):
    """Writes loss, metrics, learning rate and samples/s for TensorBoard.

    `<log_dir>/train` has the running values of the epoch every `every_steps` steps
    and at its end; `<log_dir>/validation` those of each validation, under the same
    names, so that both are drawn in one chart. The x axis is the optimizer's steps.

    Args:
        log_dir: Folder of the run's logs.
        batch_size: Rows in a batch, for samples/s.
        every_steps: Steps between two entries.

    Raises:
        ValueError: If `every_steps` is not positive.
    """

    def __init__(self, log_dir, batch_size: int, every_steps: int = 50):
        super().__init__()
        if every_steps < 1:
            raise ValueError(
                f"`every_steps` must be at least 1. Received: {every_steps}"
            )
        self._log_dir = pathlib.Path(log_dir)
        self._batch_size, self._every_steps = batch_size, every_steps
        self._writers = {}

    def _write(self, part, values):
        if part not in self._writers:
            path = str(self._log_dir / part)
            self._writers[part] = tf.summary.create_file_writer(path)
        step = int(self.model.optimizer.iterations.numpy())
        with self._writers[part].as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, float(value))

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_start = self._last_time = time.perf_counter()
        self._num_batches, self._written_batch = 0, None
        self._written_time = self._epoch_start

    def on_train_batch_begin(self, batch, logs=None):
        if self._written_batch is None:  # not 0 in an epoch that is resumed
            self._first_batch, self._written_batch = batch, batch - 1

    def on_train_batch_end(self, batch, logs=None):
        self._num_batches = batch + 1 - self._first_batch
        self._last_time, every = time.perf_counter(), self._every_steps
        if (batch + 1) // every == (self._written_batch + 1) // every:
            return
        steps = batch - self._written_batch
        rate = self._rate(steps, self._last_time - self._written_time)
        self._written_batch, self._written_time = batch, self._last_time
        self._write("train", {**(logs or {}), **self._state(rate)})

    def _rate(self, steps, seconds):
        return steps * self._batch_size / max(seconds, 1e-9)

    def _state(self, rate):
        # Not float(): under a strategy it is a mirrored variable.
        learning_rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        return {"learning_rate": learning_rate, "samples_per_second": rate}

    def on_test_begin(self, logs=None):
        self._test_since, self._test_batches = time.perf_counter(), 0

    def on_test_batch_end(self, batch, logs=None):
        self._test_batches = batch + 1

    def on_test_end(self, logs=None):
        rate = self._rate(self._test_batches, time.perf_counter() - self._test_since)
        self._write("validation", {**(logs or {}), "samples_per_second": rate})

    def on_epoch_end(self, epoch, logs=None):
        train = {k: v for k, v in (logs or {}).items() if not k.startswith("val_")}
        rate = self._rate(self._num_batches, self._last_time - self._epoch_start)
        self._write("train", {**train, **self._state(rate)})

    def on_train_end(self, logs=None):
        for writer in self._writers.values():
            writer.close()
        self._writers = {}
