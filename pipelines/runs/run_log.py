"""`RunLog`: the metrics of a training by step, and how it spends its time."""

import json
import time
from collections.abc import Callable
from typing import Any

import keras

from pipelines.runs.run_files import RunFiles, read_whole_lines
from pipelines.runtime import disk
from pipelines.whole_files import write_text
from tf_dlrm.callbacks import ResumableTraining

_EVERY_STEPS = 50


class RunLog(keras.callbacks.Callback):
    """Write `steps.csv` and `times.jsonl`, which `tf-dlrm report` reads.

    List this callback before the checkpoint callback in `fit`. `steps.csv` has a row
    for every 50 steps, for the end of each epoch and for each validation. In a resumed
    run, rows of steps that run again are dropped. Each line of `times.jsonl` holds the
    seconds that one process has spent so far; the last line of each process counts.

    Args:
        files: The files of the run.
        checkpoint: The callback that writes the checkpoints of the run.
        measure: Function that returns the seconds that the process has spent so far.
    """

    def __init__(
        self,
        files: RunFiles,
        checkpoint: ResumableTraining,
        measure: Callable[[], dict[str, Any]],
    ):
        super().__init__()
        self._files, self._measure = files, measure
        self._checkpoint, self._began = checkpoint, time.time()
        self._saved_within, self._first_save = 0.0, None

    def on_train_begin(self, logs=None):
        step = self._step()
        self._head, *rows = read_whole_lines(self._files.steps_path) or [""]
        self._rows = [row for row in rows if int(row.partition(",")[0]) <= step]
        write_text(self._files.steps_path, "".join([self._head, *self._rows]))
        times = read_whole_lines(self._files.times_path)
        write_text(self._files.times_path, "".join(times))

    def on_epoch_begin(self, epoch, logs=None):
        self._first_save, self._batches = len(self._checkpoint.seconds), None

    def on_train_batch_begin(self, batch, logs=None):
        if self._batches is None:  # not 0 in a resumed epoch
            self._batches = batch

    def on_train_batch_end(self, batch, logs=None):
        before, self._batches = self._batches, batch + 1
        if self._batches // _EVERY_STEPS > before // _EVERY_STEPS:
            self._write("", logs)

    def on_test_end(self, logs=None):
        self._write("val_", logs)

    def on_epoch_end(self, epoch, logs=None):
        self._saved_within, self._first_save = self._count_saved_within(), None
        self._write("", {k: v for k, v in logs.items() if not k.startswith("val_")})

    def on_fit_exit(self):
        """Write the times; called at the end of `fit`, even if it fails."""
        self.write_times()

    def write_times(self) -> None:
        """Add a line to `times.jsonl`."""
        line = {
            "began": self._began,
            **self._measure(),
            "checkpoint_seconds": sum(self._checkpoint.seconds),
            "checkpoint_seconds_within_epochs": self._count_saved_within(),
        }
        _append(self._files.times_path, json.dumps(line) + "\n")

    def _write(self, prefix, logs):
        if not self._head:
            names = [*logs, *(f"val_{name}" for name in logs)]
            self._head = ",".join(["step", *names]) + "\n"
            _append(self._files.steps_path, self._head)
        values = {f"{prefix}{name}": float(value) for name, value in logs.items()}
        cells = [values.get(name, "") for name in self._head.strip().split(",")[1:]]
        row = ",".join(map(str, [self._step(), *cells])) + "\n"
        if row not in self._rows[-2:]:  # the end of an epoch may be such a step
            self._rows.append(row)
            _append(self._files.steps_path, row)
        self.write_times()

    def _step(self):
        return int(self.model.optimizer.iterations.numpy())

    def _count_saved_within(self):
        seconds = self._checkpoint.seconds
        first = len(seconds) if self._first_save is None else self._first_save
        return self._saved_within + sum(seconds[first:])


def _append(path, text):
    with disk.explaining("the log of the run", path):
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)
