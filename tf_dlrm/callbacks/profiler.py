"""`StepProfiler`: what the machine does in some steps, call by call."""

import warnings

import tensorflow as tf

from tf_dlrm.callbacks.watcher import TRAIN, Watcher
from tf_dlrm.runtime.errors import UserError

_MOST_STEPS = 1000


class StepProfiler(Watcher):
    """Writes a trace of some steps for TensorBoard's profiler.

    To look at it: `pip install 'tf-dlrm[profile]'`, then TensorBoard's page Profile.
    Take steps after the first ones, which are traced and compiled, and few: a trace
    has some megabytes for each ten steps, and a traced step is slower.

    Args:
        log_dir: Folder of the run's logs.
        first: First step, counted from 1 as on the x axis of the charts. With
            `steps_per_execution` above 1 the execution that it is in begins the trace.
        last: Last step.

    Raises:
        ValueError: If this is no range of at most 1,000 steps.
    """

    def __init__(self, log_dir, first: int, last: int):
        super().__init__(log_dir)
        if not 1 <= first <= last < first + _MOST_STEPS:
            raise UserError(
                "The steps to profile must be a range that begins at 1 or later, of "
                f"at most {_MOST_STEPS:,} steps. Received: {first} to {last}"
            )
        self._first, self._last = first, last
        self._is_running = self._is_done = False

    def on_train_begin(self, logs=None):
        self._num_steps = self._step()

    def on_train_batch_begin(self, batch, logs=None):
        size = self.model.steps_per_execution
        is_due = self._first <= self._num_steps + size
        if is_due and not self._is_done and not self._is_running:
            if self._num_steps >= self._last:  # resumed after them
                return
            tf.profiler.experimental.start(str(self.log_dir / TRAIN))
            self._is_running = True
        if self._is_running:
            self._trace = tf.profiler.experimental.Trace(
                "train", step_num=self._num_steps + 1, _r=1
            )
            self._trace.__enter__()

    def on_train_batch_end(self, batch, logs=None):
        self._num_steps += self.model.steps_per_execution
        if self._is_running:
            self._trace.__exit__(None, None, None)
            if self._num_steps >= self._last:
                self._stop()

    def _stop(self):
        self._is_running, self._is_done = False, True
        tf.profiler.experimental.stop()

    def on_train_end(self, logs=None):
        if not self._is_done and not self._is_running:
            warnings.warn(
                f"Steps {self._first} to {self._last} were not profiled: the training "
                f"ended at step {self._num_steps}, or went on after them.",
                stacklevel=2,
            )
        self.on_fit_exit()

    def on_fit_exit(self):
        """Called at the end of a DLRM's `fit`, also where it fails."""
        if self._is_running:
            self._stop()
        super().on_fit_exit()
