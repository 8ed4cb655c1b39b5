"""Callbacks that move the model's learning rate move the tables' own rates with it."""

import warnings

import keras
import tensorflow as tf

from tf_dlrm.runtime.types import Logs


class TableRates(keras.callbacks.Callback):
    """Scales own learning rates of tables as callbacks scale that of the model.

    `ReduceLROnPlateau` and `LearningRateScheduler` assign
    `model.optimizer.learning_rate`. Tables that follow the model have that rate at
    once. A rate of their own keeps its ratio to it: for the rest of `fit` it is the
    rate at the begin of `fit`, times the model's rate now, over the model's rate then.
    A rate that is assigned to the tables' optimizer itself counts from there on.

    Args:
        model: The compiled model, before `fit` calls any callback.
    """

    def __init__(self, model: keras.Model) -> None:
        super().__init__()
        self._optimizers = [o for o in _table_optimizers(model) if _has_rate(o)]
        self._are_fixed = any(map(_has_schedule, _table_optimizers(model)))
        self._optimizer = model.optimizer
        # A schedule cannot be assigned to: nothing will move.
        self._moves = not isinstance(
            model.optimizer.get_config()["learning_rate"], dict
        )
        self._rate = self._read() if self.is_needed else None
        self._starts = [(o.learning_rate, self._rate) for o in self._optimizers]
        self._set = [o.learning_rate for o in self._optimizers]

    @property
    def is_needed(self) -> bool:
        """True if there are rates that a callback could leave behind."""
        return self._moves and bool(self._optimizers or self._are_fixed)

    def _read(self):
        return float(keras.ops.convert_to_numpy(self._optimizer.learning_rate))

    def _follow(self):
        rate = self._read()
        if rate == self._rate:
            return
        for i, optimizer in enumerate(self._optimizers):
            if optimizer.learning_rate != self._set[i]:  # by the user, before this
                self._starts[i] = optimizer.learning_rate, self._rate
            own, of_model = self._starts[i]
            if of_model:
                optimizer.learning_rate = own * rate / of_model
            self._set[i] = optimizer.learning_rate
        self._rate = rate
        if self._are_fixed:
            self._are_fixed = False
            warnings.warn(
                "A callback changed the model's learning rate. Tables whose optimizer "
                "has a schedule keep to that schedule: give them a float, or no "
                "learning rate, to have them follow.",
                stacklevel=2,
            )

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._follow()

    def on_train_batch_begin(self, batch: int, logs: Logs = None) -> None:
        self._follow()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self._follow()


def _table_optimizers(model):
    """Each optimizer of tables once."""
    found = getattr(model, "embedding_optimizer", None)
    found = found.values() if isinstance(found, dict) else tf.nest.flatten(found)
    return list({id(each): each for each in found if each is not None}.values())


def _has_rate(optimizer):
    return isinstance(optimizer.learning_rate, float)


def _has_schedule(optimizer):
    schedule = keras.optimizers.schedules.LearningRateSchedule
    return isinstance(optimizer.learning_rate, schedule)
