"""Scaling of tables' own learning rates when callbacks change the model's."""

import warnings

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.runtime.types import Logs


class TableRates(keras.callbacks.Callback):
    """Callback that scales tables' own learning rates along with the model's.

    `ReduceLROnPlateau` and `LearningRateScheduler` assign
    `model.optimizer.learning_rate`. Tables that follow the model use that rate
    immediately. A table optimizer's own float rate keeps its ratio to it: it is the
    rate at the start of `fit`, times the model's current rate, divided by the model's
    rate at the start. If you assign a rate to the tables' optimizer itself, the ratio
    is that at the time of the assignment.

    Args:
        model: The compiled model, before `fit` calls any callback.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self._optimizers = [o for o in _table_optimizers(model) if _has_rate(o)]
        self._are_fixed = any(map(_has_schedule, _table_optimizers(model)))
        self._optimizer = model.optimizer
        # Nothing can assign to a schedule, so the rate never moves.
        self._moves = not isinstance(
            model.optimizer.get_config()["learning_rate"], dict
        )
        self._rate = self._read() if self.is_needed else None
        self._starts = [(o.learning_rate, self._rate) for o in self._optimizers]
        self._set = [o.learning_rate for o in self._optimizers]

    @property
    def is_needed(self) -> bool:
        """True if there are rates that must follow when a callback sets the model's."""
        return self._moves and bool(self._optimizers or self._are_fixed)

    def _read(self):
        return float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))

    def _follow(self):
        rate = self._read()
        if rate == self._rate:
            return
        for i, optimizer in enumerate(self._optimizers):
            if optimizer.learning_rate != self._set[i]:  # the user changed it
                self._starts[i] = optimizer.learning_rate, self._rate
            own_start, model_start = self._starts[i]
            if model_start:
                optimizer.learning_rate = own_start * rate / model_start
            self._set[i] = optimizer.learning_rate
        self._rate = rate
        if self._are_fixed:
            self._are_fixed = False
            warnings.warn(
                "A callback changed the model's learning rate. Tables whose optimizer "
                "has a schedule do not follow it. To make them follow, give their "
                "optimizer a float or no learning rate.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._follow()

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self._follow()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self._follow()


def get_rates(model: keras.Model) -> np.ndarray:
    """Return the tables' own float learning rates, float64, for a checkpoint."""
    optimizers = [o for o in _table_optimizers(model) if _has_rate(o)]
    return np.array([optimizer.learning_rate for optimizer in optimizers], np.float64)


def set_rates(model: keras.Model, rates: np.ndarray) -> None:
    """Set the rates that `get_rates` returned; other numbers of rates are ignored."""
    optimizers = [o for o in _table_optimizers(model) if _has_rate(o)]
    if len(optimizers) == len(rates):
        for optimizer, rate in zip(optimizers, rates):
            optimizer.learning_rate = float(rate)


def _table_optimizers(model):
    """Return the optimizers of the tables, without repetitions."""
    own = getattr(model, "embedding_optimizer", None)
    optimizers = own.values() if isinstance(own, dict) else tf.nest.flatten(own)
    return list({id(o): o for o in optimizers if o is not None}.values())


def _has_rate(optimizer):
    return isinstance(optimizer.learning_rate, float)


def _has_schedule(optimizer):
    schedule = keras.optimizers.schedules.LearningRateSchedule
    return isinstance(optimizer.learning_rate, schedule)
