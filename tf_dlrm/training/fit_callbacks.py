"""Callbacks that `fit` of a `RowSparseModel` adds to those of the user."""

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from tf_dlrm.runtime import accelerators, deferred_checks
from tf_dlrm.runtime.types import Logs
from tf_dlrm.training import keras_hooks
from tf_dlrm.training.full_tables import FullTables, grows
from tf_dlrm.training.guard import GuardCallback
from tf_dlrm.training.table_rates import TableRates

if TYPE_CHECKING:
    from tf_dlrm.training.row_sparse_model import RowSparseModel


class DeferredReader(keras.callbacks.Callback):
    """Callback that raises the errors of deferred checks during `fit`."""

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self._batches_read = 0

    def on_train_batch_end(self, batch: int, logs: Logs = None) -> None:
        if batch + 1 - self._batches_read >= deferred_checks.READ_EVERY:
            self._batches_read = batch + 1
            self.model.raise_deferred()

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        self.model.raise_deferred()


def add(
    model: "RowSparseModel",
    callbacks: Any,
    guard: GuardCallback | None,
    stack: ExitStack,
) -> Any:
    """Return the callbacks of `fit`, including those that the model needs.

    Tables' own learning rates are updated after each of the user's callbacks. The guard
    and the reader of deferred checks run before all of them.

    Args:
        model: The model.
        callbacks: A list, one callback, Keras' `CallbackList`, or `None`.
        guard: The guard's callback, or `None`.
        stack: Stack that, when it closes, restores a `CallbackList` and calls
            `on_fit_exit` of the user's callbacks. (Keras calls no callback after an
            error.)
    """
    callbacks = callbacks or ()
    for callback in tf.nest.flatten(getattr(callbacks, "callbacks", callbacks)):
        stack.callback(getattr(callback, "on_fit_exit", lambda: None))
    rates = TableRates(model)
    if callbacks and rates.is_needed:
        callbacks = keras_hooks.with_each(callbacks, rates, stack)
    if guard is not None:
        callbacks = keras_hooks.with_callback(callbacks, guard, stack)
    if grows(model):
        full = FullTables()
        callbacks = keras_hooks.with_callback(callbacks, full, stack)
    if accelerators.are_visible():
        callbacks = keras_hooks.with_callback(callbacks, DeferredReader(), stack)
    return callbacks
