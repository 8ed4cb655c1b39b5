"""`StepProfiler`: a trace of all operations of some steps."""

import warnings

import tensorflow as tf

from tf_dlrm.callbacks.watcher import TRAIN, Watcher
from tf_dlrm.runtime import disk
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Logs, PathLike

_MOST_STEPS = 1000


class StepProfiler(Watcher):
    """Write a trace of some steps for TensorBoard's profiler.

    To view it, run `pip install xprof` and open TensorBoard's Profile page. Choose a
    few steps, but not the first ones, in which TensorFlow traces and compiles. Profiled
    steps are slower, and a trace of ten steps has several megabytes.

    Args:
        log_dir: Folder of the run's logs.
        first: First step to profile, counted from 1 as on the x axis of the charts.
            With `steps_per_execution` above 1, the trace begins with the execution that
            contains this step.
        last: Last step to profile.

    Raises:
        ValueError: If this is not a range of at most 1,000 steps.
    """

    def __init__(self, log_dir: PathLike, first: int, last: int) -> None:
        super().__init__(log_dir)
        if not 1 <= first <= last < first + _MOST_STEPS:
            raise UserError(
                f"The steps to profile must be a range of at most {_MOST_STEPS:,} "
                f"steps that begins at 1 or later. Received: {first} to {last}"
            )
        self._first, self._last = first, last
        self._is_running = self._is_done = False

    def on_train_begin(self, logs: Logs = None) -> None:
        self._num_steps = self._step()

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        size = self.model.steps_per_execution
        is_due = self._first <= self._num_steps + size
        if is_due and not self._is_done and not self._is_running:
            if self._num_steps >= self._last:  # the run was resumed after these steps
                return
            tf.profiler.experimental.start(str(self.log_dir / TRAIN))
            self._is_running = True
        if self._is_running:
            self._trace = tf.profiler.experimental.Trace(
                "train", step_num=self._num_steps + 1, _r=1
            )
            self._trace.__enter__()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        self._num_steps += self.model.steps_per_execution
        if self._is_running:
            self._trace.__exit__(None, None, None)
            if self._num_steps >= self._last:
                self._stop()

    def _stop(self) -> None:
        self._is_running, self._is_done = False, True
        also = (tf.errors.OpError,)
        with disk.explaining("the profile", self.log_dir / TRAIN, also=also):
            tf.profiler.experimental.stop()

    def on_train_end(self, logs: Logs = None) -> None:
        if not self._is_done and not self._is_running:
            warnings.warn(
                f"Steps {self._first} to {self._last} were not profiled: training "
                f"ended at step {self._num_steps}, or was resumed after these steps.",
                stacklevel=2,
            )
        self.on_fit_exit()

    def on_fit_exit(self) -> None:
        """Stop the profiler; called at the end of `fit`, even if it fails."""
        if self._is_running:
            self._stop()
        super().on_fit_exit()
