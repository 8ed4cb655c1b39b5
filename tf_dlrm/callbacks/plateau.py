"""`ReduceLROnPlateau`: reductions of the learning rate that a resumed run repeats."""

import keras

from tf_dlrm.callbacks.monitor import Monitor
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Logs


class ReduceLROnPlateau(keras.callbacks.Callback):
    """Reduce the learning rate when a result stops improving.

    Unlike Keras' callback of the same name, it knows that the largest AUC is the best
    one, also counts the evaluations of `EvaluateWithinEpochs`, and can be resumed:
    `ResumableTraining.carry(plateau=callback)` saves its state, so that a resumed run
    reduces the rate when the uninterrupted run would have.

    The rates of the tables follow: those that follow the model's rate at once, and an
    optimizer's own float rate by the same factor.

    Args:
        monitor: Name of the monitored result. The largest value is best if the name
            ends in auc, accuracy, precision or recall, otherwise the smallest.
        factor: Factor of the new learning rate, below 1.
        patience: Number of evaluations in a row without improvement after which the
            rate is reduced. Two evaluations after the same step count as one.
        min_delta: An improvement must be larger than this.
        min_lr: Smallest learning rate of the model.
        verbose: 1 prints each reduction, 0 nothing.

    Attributes:
        num_reductions: Number of reductions so far.

    Raises:
        ValueError: If an argument is out of range, or the optimizer has a schedule.

    Example:

    >>> import numpy as np, tf_dlrm
    >>> spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable("a", 10, 4)])
    >>> model = tf_dlrm.DLRM(spec, (4,), (4, 1))
    >>> model.compile("adagrad", metrics=[tf_dlrm.metrics.ClickAUC()])
    >>> x = {"dense_features": np.ones((8, 1)), "sparse_features": np.ones((8, 1), int)}
    >>> y = np.arange(8) % 2
    >>> plateau = tf_dlrm.callbacks.ReduceLROnPlateau("val_auc")
    >>> history = model.fit(
    ...     x, y, epochs=2, validation_data=(x, y), callbacks=[plateau], verbose=0)
    val_auc has not improved on 0.50000: learning rate 0.001 -> 0.0001.

    Reference:
        The recipe of the published results on Criteo_x1 and Criteo_x4
        (github.com/reczoo/BARS): a tenth of the rate at the first epoch without gain.
    """

    def __init__(
        self,
        monitor: str = "val_auc",
        factor: float = 0.1,
        patience: int = 1,
        min_delta: float = 0.0,
        min_lr: float = 1e-6,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        if not 0 < factor < 1:
            raise UserError(
                f"`factor` must be above 0 and below 1. Received: {factor!r}"
            )
        if patience < 1:
            raise UserError(f"`patience` must be at least 1. Received: {patience!r}")
        if not min_lr >= 0:
            raise UserError(f"`min_lr` must be at least 0. Received: {min_lr!r}")
        self._monitor = Monitor(monitor, min_delta)
        self._factor, self._patience, self._min_lr = factor, patience, min_lr
        self._verbose, self._is_resumed = verbose, False
        self.num_reductions = 0

    @property
    def best(self) -> float | None:
        """The best value so far; `None` before the first finite one."""
        return self._monitor.best

    def get_state(self) -> dict:
        """Return the state that a resumed run continues from, JSON-safe."""
        return {**self._monitor.get_state(), "num_reductions": self.num_reductions}

    def set_state(self, state: dict) -> None:
        """Set the state that `get_state` returned, for the next `fit`."""
        self._monitor.set_state(state)
        self.num_reductions, self._is_resumed = state["num_reductions"], True

    def on_train_begin(self, logs: Logs = None) -> None:
        rate = self.model.optimizer.get_config()["learning_rate"]
        if isinstance(rate, dict):
            raise UserError(
                "`ReduceLROnPlateau` needs an optimizer with a float learning rate. "
                f"Received: a schedule, {rate.get('class_name')}"
            )
        if not self._is_resumed:
            self._monitor.reset()
            self.num_reductions = 0
        self._is_resumed = False

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self._monitor.check_results(logs or {})
        self.on_evaluation(logs or {})

    def on_evaluation(self, results: dict) -> None:
        """Check results, and reduce the learning rate on a plateau.

        Args:
            results: Values by name, such as `val_auc`.
        """
        monitor = self._monitor
        if monitor.name not in results:
            return
        step = int(self.model.optimizer.iterations.numpy())
        monitor.update(float(results[monitor.name]), step)
        if monitor.num_without >= self._patience:
            monitor.num_without = 0
            self._reduce()

    def _reduce(self) -> None:
        optimizer = self.model.optimizer
        before = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        after = max(before * self._factor, self._min_lr)
        if after >= before * (1 - 1e-6):  # the rate is a float32
            return
        optimizer.learning_rate = after
        self.num_reductions += 1
        if self._verbose:
            change = f"learning rate {before:g} -> {after:g}"
            print(f"{self._monitor.describe()}: {change}.", flush=True)
