"""Keras callbacks that show the progress of `fit` and `evaluate` in one line."""

import contextlib
import time
from collections.abc import Sequence

import keras

from pipelines.progress.bars import bar


class _Progress(keras.callbacks.Callback):
    """A progress bar that callbacks open and close.

    Keras calls no callback after an error: use the object as a context manager around
    `fit`, which then stops the bar at its last position.
    """

    def __init__(self):
        super().__init__()
        self._stack, self._update = contextlib.ExitStack(), None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return self._stack.__exit__(*error)

    def _open(self, label, total, first=0, note=""):
        self._update = self._stack.enter_context(
            bar(label, total, first=first, note=note)
        )

    def _close(self):
        self._update = None
        self._stack.close()


class FitProgress(_Progress):
    """Progress of `fit` in rows/s and remaining time, with loss and AUC.

    Args:
        batch_size: Rows in a batch.
        num_rows: Number of rows in an epoch, or a list of them for each epoch; `None`
            if not known.
        note: Function that returns additional text to show.
        count: Function that returns an upper bound of the rows of the epoch read so
            far. It is exact at the end of the data, where a batch may be partial and
            bad rows are left out. `None`: `num_rows` is exact.

    Attributes:
        first_batch: Number of the first batch of a resumed epoch.
        seconds: Seconds of training so far, without validation.
        num_trained: Number of rows trained on so far.
        validation_seconds: Seconds of validation so far.
    """

    def __init__(
        self,
        batch_size: int,
        num_rows: int | Sequence[int] | None = None,
        note=str,
        count=None,
    ):
        super().__init__()
        self._count = count
        self._batch_size, self._rows, self._num_rows = batch_size, num_rows, None
        self._extra = note
        self.first_batch = 0
        self.seconds = self.validation_seconds = 0.0
        self.num_trained = 0

    def on_epoch_begin(self, epoch, logs=None):
        epochs = self.params.get("epochs") or 1
        label = "Training" if epochs == 1 else f"Epoch {epoch + 1}/{epochs}"
        is_one = self._rows is None or hasattr(self._rows, "__index__")
        self._num_rows = self._rows if is_one else self._rows[epoch]
        self._done = self.first_batch * self._batch_size
        note = "" if self.num_trained else "preparing the first step"
        self._open(label, self._num_rows, self._done, note)
        self._start, self._shown, self.first_batch = time.perf_counter(), 0.0, 0

    def on_train_batch_end(self, batch, logs=None):
        counts = [(batch + 1) * self._batch_size]
        if self._num_rows:
            counts.append(self._num_rows)
        if self._count is not None:
            counts.append(self._count())
        done, now = min(counts), time.perf_counter()
        self.num_trained += done - self._done
        self.seconds += now - self._start
        self._done, self._start = done, now
        if now - self._shown > 0.2:  # reading the metrics costs a little
            self._shown = now
            self._update(self._done, f"{_note(logs)}  {self._extra()}".strip())

    def on_test_begin(self, logs=None):
        self._end()
        self._start = time.perf_counter()

    def on_test_end(self, logs=None):
        self.validation_seconds += time.perf_counter() - self._start

    def on_epoch_end(self, epoch, logs=None):
        self._end(logs)

    def _end(self, logs=None):
        if self._update is not None:
            self.seconds += time.perf_counter() - self._start
            known = logs or (self.model.get_metrics_result() if self._done else {})
            self._update(self._done, _note(known))
            self._close()


class EvaluateProgress(_Progress):
    """Progress of `evaluate` in rows/s.

    Args:
        batch_size: Rows in a batch.
        num_rows: Approximate number of rows; `None` if not known.
        count: Function that returns an upper bound of the rows read so far, which is
            exact at the end.
    """

    def __init__(self, batch_size: int, num_rows: int | None, count):
        super().__init__()
        self._batch_size, self._num_rows, self._count = batch_size, num_rows, count

    def on_test_begin(self, logs=None):
        self._open("Evaluating", self._num_rows)

    def on_test_batch_end(self, batch, logs=None):
        self._update(min((batch + 1) * self._batch_size, self._count()))

    def on_test_end(self, logs=None):
        self._update(self._count())
        self._close()


def _note(logs) -> str:
    shown = [name for name in ("loss", "auc") if name in (logs or {})]
    return "  ".join(f"{name} {float(logs[name]):.4f}" for name in shown)
