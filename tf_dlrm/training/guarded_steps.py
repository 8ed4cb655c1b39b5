"""What a model does with a batch that is not applied, and `fit` with many of them."""

import contextlib
import inspect
import types

import tensorflow as tf

from tf_dlrm.runtime import replicas
from tf_dlrm.training import keras_hooks
from tf_dlrm.training.checkpoints.positions import weigh_classes
from tf_dlrm.training.guard import (
    GuardCallback,
    NotFiniteError,
    Restorable,
    StepGuard,
)
from tf_dlrm.training.table_rates import TableRates

# What comes in an order of its own.
_IN_ORDER = (
    tf.data.Dataset,
    tf.distribute.DistributedDataset,
    types.GeneratorType,
)


def check_limit(max_skipped_batches) -> None:
    """Refuses what cannot be a number of batches."""
    if max_skipped_batches is not None and max_skipped_batches < 1:
        raise ValueError(
            "`max_skipped_batches` must be at least 1, or None. Received: "
            f"max_skipped_batches={max_skipped_batches!r}"
        )


class GuardedSteps:
    """Mix-in for `RowSparseTraining`: its steps may be left out.

    The model has `dense_variables`, `_apply(dense_gradients)` and `_track_loss(loss,
    y)`; `applies` is everywhere the bool tensor of `StepGuard.admit`, or `None` without
    a guard.
    """

    _guard: StepGuard | None = None
    _max_skipped_batches: int | None = None
    _num_in_a_row = 0  # of `train_on_batch`

    def _make_guard(self, max_skipped_batches):
        self._max_skipped_batches, self._guard = max_skipped_batches, None
        if max_skipped_batches is not None:
            with self.distribute_strategy.scope():
                self._guard = StepGuard(replicas.device_names()[0])

    @property
    def num_skipped_batches(self) -> int:
        """Batches that were not applied since `compile`, see there."""
        return 0 if self._guard is None else self._guard.num_skipped

    @property
    def _statistics(self):
        """What the forward pass of a step changes of the model's state."""
        tables = {id(variable) for variable in self.embedding.variables}
        return [v for v in self.non_trainable_weights if id(v) not in tables]

    def _apply_where(self, applies, dense_gradients):
        """Updates the dense variables, if `applies` (a bool tensor, or `None`)."""
        if applies is None:
            self._apply(dense_gradients)
        elif tf.distribute.has_strategy():  # whose sums cannot be in a branch
            state = Restorable([*self.dense_variables, *self.optimizer.variables])
            self._apply(dense_gradients)
            state.restore_unless(applies)
        else:

            def apply():
                self._apply(dense_gradients)
                return True

            tf.cond(applies, apply, lambda: False)

    def _update_metrics(self, x, y, y_pred, sample_weight, loss, applies):
        """Loss and metrics so far; they see no row of a batch that is not applied."""

        def update(*rows):
            features, label, predicted, weight = rows or (x, y, y_pred, sample_weight)
            self._track_loss(loss, label)
            return self.compute_metrics(
                features, label, predicted, sample_weight=weight
            )

        if applies is None:
            return update()
        if not self._has_own_metrics() and not tf.distribute.has_strategy():
            keras_hooks.build_metrics(self)  # not in a branch
            return tf.cond(applies, update, self.get_metrics_result)
        # Sums over replicas, and what a user wrote, cannot be in a branch.
        loss = tf.where(applies, loss, tf.zeros_like(loss))
        num_rows = tf.where(applies, tf.shape(y)[0], 0)
        return update(
            *tf.nest.map_structure(
                lambda each: None if each is None else each[:num_rows],
                (x, y, y_pred, sample_weight),
            )
        )

    def train_on_batch(self, *args, **kwargs):
        """As `keras.Model.train_on_batch`; the loss of a batch that is not applied is
        not a number.

        Raises:
            tf_dlrm.training.NotFiniteError: After `max_skipped_batches` of `compile`
                in a row.
        """
        before = self.num_skipped_batches
        result = super().train_on_batch(*args, **kwargs)
        if self.num_skipped_batches == before:
            self._num_in_a_row = 0
            return result
        self._num_in_a_row += 1
        if self._num_in_a_row >= self._max_skipped_batches:
            raise NotFiniteError(
                f"{self._num_in_a_row:,} batches in a row had a loss or gradients that "
                f"are not finite (not finite in the last: {self._guard.describe()}). "
                "None of them was applied. Try a smaller learning rate, or look at the "
                "data."
            )
        return result

    def fit(self, x=None, y=None, *args, **kwargs):
        """As `keras.Model.fit`, with the guard before the callbacks, and own learning
        rates of tables that follow the callbacks."""
        call = inspect.signature(super().fit).bind(x, y, *args, **kwargs)
        if isinstance(x, _IN_ORDER):
            call.arguments.setdefault("shuffle", False)  # Keras warns of its default
        callbacks = call.arguments.get("callbacks") or ()
        class_weight = call.arguments.get("class_weight")
        if class_weight is not None and hasattr(x, "position"):
            call.arguments["x"] = weigh_classes(x, class_weight)
            call.arguments["class_weight"] = None
        with contextlib.ExitStack() as stack:
            rates = TableRates(self)
            if callbacks and rates.is_needed:
                callbacks = keras_hooks.with_each(callbacks, rates, stack)
                call.arguments["callbacks"] = callbacks
            if self._guard is not None:
                guard = GuardCallback(self._guard, self._max_skipped_batches)
                call.arguments["callbacks"] = keras_hooks.with_callback(
                    callbacks, guard, stack
                )
            # Keras calls no callback when something fails.
            for each in tf.nest.flatten(getattr(callbacks, "callbacks", callbacks)):
                stack.callback(getattr(each, "on_fit_exit", lambda: None))
            history = super().fit(*call.args, **call.kwargs)
        if self._guard is not None:
            guard.report()
        return history
