"""Keras callbacks that show `fit` and `evaluate` in one tidy line."""

import time

import keras

from pipelines.progress.bars import bar


class FitProgress(keras.callbacks.Callback):
    """Progress of `fit` in samples/s and time left, with loss and AUC.

    Args:
        batch_size: Rows in a batch.
        num_rows: Rows in an epoch; `None` if not known.
    """

    def __init__(self, batch_size: int, num_rows: int | None = None):
        super().__init__()
        self._batch_size, self._num_rows = batch_size, num_rows
        self._context, self._update, self._done = None, None, 0

    def on_epoch_begin(self, epoch, logs=None):
        epochs = self.params.get("epochs") or 1
        label = "Training" if epochs == 1 else f"Epoch {epoch + 1}/{epochs}"
        self._context = bar(label, self._num_rows, "samples")
        self._update, self._done = self._context.__enter__(), 0
        self._shown = 0.0

    def on_train_batch_end(self, batch, logs=None):
        rows = (batch + 1) * self._batch_size
        if self._num_rows:
            rows = min(rows, self._num_rows)
        self._done = rows
        now = time.perf_counter()
        if now - self._shown > 0.2:  # reading the metrics costs a little
            self._shown = now
            self._update(rows, _note(logs))

    def on_test_begin(self, logs=None):
        self._close()

    def on_epoch_end(self, epoch, logs=None):
        self._close(logs)

    def on_train_end(self, logs=None):
        self._close()

    def _close(self, logs=None):
        if self._context is not None:
            self._update(self._done, _note(logs or self.model.get_metrics_result()))
            self._context.__exit__(None, None, None)
            self._context = None


class EvaluateProgress(keras.callbacks.Callback):
    """Progress of `evaluate` in samples/s.

    Args:
        batch_size: Rows in a batch.
        num_rows: About how many rows there are; `None` if not known.
        count: Function that tells at the end how many there were.
    """

    def __init__(self, batch_size: int, num_rows: int | None, count):
        super().__init__()
        self._batch_size, self._count = batch_size, count
        self._context = bar("Evaluating", num_rows, "samples")

    def on_test_begin(self, logs=None):
        self._update = self._context.__enter__()

    def on_test_batch_end(self, batch, logs=None):
        self._update((batch + 1) * self._batch_size)

    def on_test_end(self, logs=None):
        self._update(self._count())
        self._context.__exit__(None, None, None)


def _note(logs) -> str:
    shown = [name for name in ("loss", "auc") if name in (logs or {})]
    return "  ".join(f"{name} {float(logs[name]):.4f}" for name in shown)
