"""Callbacks that evaluate within an epoch and stop training early."""

import time
from collections.abc import Iterable

import keras
import tensorflow as tf

from tf_dlrm.callbacks.monitor import Monitor
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Logs
from tf_dlrm.training.checkpoints import state as training_state


class EarlyStopping(keras.callbacks.Callback):
    """Stop training at a target, when it stops improving, or after some time.

    It monitors the results of each epoch and those of `EvaluateWithinEpochs`, with
    which `fit` needs no `validation_data`. The model keeps its final weights;
    `ResumableTraining` also keeps the best ones.

    Args:
        monitor: Name of the monitored result. The largest value is best if the name
            ends in auc, accuracy, precision or recall, otherwise the smallest.
        target: Value at which training stops, as MLPerf's runs do at an AUC. Default:
            no target.
        patience: Number of evaluations in a row without improvement after which
            training stops. Two evaluations after the same step count as one. Default:
            no limit.
        min_delta: An improvement must be larger than this.
        max_minutes: Minutes of training after which it stops, including evaluations
            and the time before a resume. Default: no limit.
        verbose: 1 prints the reason, 0 nothing.

    Attributes:
        reason: Reason why training stopped, as text; `None` if it did not stop early.
        minutes: Minutes of training so far.

    Raises:
        ValueError: If an argument is out of range, or `monitor` is not among the
            results of an epoch.

    Example:

    >>> import numpy as np, tf_dlrm
    >>> spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable("a", 10, 4)])
    >>> model = tf_dlrm.DLRM(spec, (4,), (4, 1))
    >>> model.compile("adagrad", metrics=[tf_dlrm.metrics.ClickAUC()])
    >>> x = {"dense_features": np.ones((8, 1)), "sparse_features": np.ones((8, 1), int)}
    >>> y = np.arange(8) % 2
    >>> stop = tf_dlrm.callbacks.EarlyStopping("val_auc", target=0.5)
    >>> history = model.fit(
    ...     x, y, epochs=5, validation_data=(x, y), callbacks=[stop], verbose=0)
    Training stops: val_auc 0.50000 reached 0.5.
    >>> len(history.epoch)
    1

    Reference:
        Mattson et al. 2020, arXiv 1910.01500: time to a quality target.
    """

    def __init__(
        self,
        monitor: str = "val_auc",
        target: float | None = None,
        patience: int | None = None,
        min_delta: float = 0.0,
        max_minutes: float | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        if patience is not None and patience < 1:
            raise UserError(f"`patience` must be at least 1. Received: {patience!r}")
        if max_minutes is not None and not max_minutes > 0:
            raise UserError(
                f"`max_minutes` must be positive. Received: {max_minutes!r}"
            )
        self._monitor = Monitor(monitor, min_delta)
        self._target, self._patience = target, patience
        self._max_minutes, self._verbose = max_minutes, verbose
        self._begin()

    def _begin(self) -> None:
        self._monitor.reset()
        self.reason: str | None = None
        self._minutes_before, self._is_resumed = 0.0, False
        self._start: float | None = None

    @property
    def best(self) -> float | None:
        """The best value so far; `None` before the first finite one."""
        return self._monitor.best

    @property
    def minutes(self) -> float:
        """Minutes of training so far."""
        since = 0.0 if self._start is None else time.monotonic() - self._start
        return self._minutes_before + since / 60

    def get_state(self) -> dict:
        """Return the state that a resumed run continues from, JSON-safe."""
        return {
            **self._monitor.get_state(),
            "minutes": self.minutes,
            "reason": self.reason,
        }

    def set_state(self, state: dict) -> None:
        """Set the state that `get_state` returned, for the next `fit`."""
        self._begin()
        self._monitor.set_state(state)
        self._minutes_before, self._is_resumed = state["minutes"], True
        self.reason = state["reason"]

    def on_train_begin(self, logs: Logs = None) -> None:
        if not self._is_resumed:
            self._begin()
        self._is_resumed, self._start = False, time.monotonic()

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if self._max_minutes is not None and self.minutes >= self._max_minutes:
            self._stop(f"{self._max_minutes:g} minutes have passed")

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if self._target is not None or self._patience is not None:
            self._monitor.check_results(logs or {})
        self.on_evaluation(logs or {})

    def on_evaluation(self, results: dict) -> None:
        """Check results against target and patience.

        Args:
            results: Values by name, such as `val_auc`.
        """
        monitor = self._monitor
        if monitor.name not in results:
            return
        value = float(results[monitor.name])
        monitor.update(value, int(self.model.optimizer.iterations.numpy()))
        num_without = monitor.num_without
        if self._target is not None and monitor.sign * (value - self._target) >= 0:
            self._stop(f"{monitor.name} {value:.5f} reached {self._target:g}")
        elif self._patience is not None and num_without >= self._patience:
            self._stop(f"{monitor.describe()} in {num_without} evaluations")

    def _stop(self, reason: str) -> None:
        if self.reason is None:
            self.reason, self.model.stop_training = reason, True
            if self._verbose:
                print(f"Training stops: {reason}.", flush=True)

    def on_train_end(self, logs: Logs = None) -> None:
        self.on_fit_exit()

    def on_fit_exit(self) -> None:
        """Stop the clock; called at the end of `fit`, even if it fails."""
        self._minutes_before, self._start = self.minutes, None


class EvaluateWithinEpochs(keras.callbacks.Callback):
    """Evaluate a model every few steps, for runs with one long epoch.

    The evaluations do not affect the training metrics of the epoch.

    Args:
        validation_data: Dataset of `(features, label)`.
        every_steps: Number of steps of an epoch between two evaluations.
        listeners: Callbacks that are passed to each evaluation. Those with a method
            `on_evaluation`, such as `EarlyStopping` and `ResumableTraining`, receive
            its results by name, such as `val_auc`.

    Attributes:
        results: A dict for each evaluation, with `epoch` (from 0), `batch` (the number
            of batches trained in that epoch), and the values.
        seconds: Seconds that all evaluations took.

    Raises:
        ValueError: If `every_steps` is not positive.
    """

    def __init__(
        self,
        validation_data: tf.data.Dataset,
        every_steps: int,
        listeners: Iterable[keras.callbacks.Callback] = (),
    ) -> None:
        super().__init__()
        if every_steps < 1:
            raise UserError(
                f"`every_steps` must be at least 1. Received: {every_steps!r}"
            )
        self._validation_data, self._every_steps = validation_data, every_steps
        self._listeners, self.seconds = tuple(listeners), 0.0
        self.results: list[dict[str, float]] = []

    def get_state(self) -> dict:
        """Return the state that a resumed run continues from, JSON-safe."""
        return {"results": self.results}

    def set_state(self, state: dict) -> None:
        """Set the state that `get_state` returned."""
        self.results = list(state["results"])

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self._first = batch

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if (batch + 1) // self._every_steps != self._first // self._every_steps:
            self.evaluate(batch + 1)

    def evaluate(self, num_batches: int) -> None:
        """Evaluate the model now, and pass the results to the listeners.

        Args:
            num_batches: Number of batches of the epoch that the model was trained on.
        """
        start = time.perf_counter()
        metrics = training_state.get_metrics(self.model)
        results = self.model.evaluate(
            self._validation_data,
            verbose=0,
            return_dict=True,
            callbacks=list(self._listeners),
        )
        training_state.set_metrics(self.model, metrics)
        values = {f"val_{name}": float(value) for name, value in results.items()}
        self.results.append({"epoch": self._epoch, "batch": num_batches, **values})
        for listener in self._listeners:
            getattr(listener, "on_evaluation", lambda results: None)(values)
        self.seconds += time.perf_counter() - start
