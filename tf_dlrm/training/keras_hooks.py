"""The one adapter to what Keras keeps private. Checked against Keras 3.15.1."""

import contextlib
import functools
import inspect
import itertools
import threading
import types
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import keras
import tensorflow as tf
from keras.src.backend.common import global_state
from keras.src.losses import loss as losses

from tf_dlrm.runtime import accelerators

_thread = threading.local()
# What a layer may have been given that computes.
_PARTS = (types.FunctionType, keras.Regularizer, keras.constraints.Constraint)


def loss_tracker(model: keras.Model) -> keras.metrics.Mean:
    """Return the `Mean` metric behind the loss that `fit` reports.

    Keras' own `train_step` updates it; `Model.metrics` lists it, but cannot tell it
    from a user's metric.
    """
    return model._loss_tracker


def is_writing_legacy_h5() -> bool:
    """Return whether Keras asks for configs for a whole model in the `.h5` form."""
    return bool(global_state.get_global_attribute("use_legacy_config"))


def count_rows(model: keras.Model) -> float:
    """Return the rows behind the loss that `fit` or `evaluate` reports, or 0."""
    return float(keras.ops.convert_to_numpy(loss_tracker(model).count))


def compute_loss(
    model: keras.Model,
    x: Any,
    y: tf.Tensor,
    y_pred: tf.Tensor,
    sample_weight: tf.Tensor | None,
    training: bool = True,
) -> tf.Tensor:
    """Return the mean loss of this replica's rows, by the model's `compute_loss`.

    Under a strategy Keras' losses divide means by the number of replicas, and a
    `compute_loss` of the user's may or may not be made of them: here they do not. And
    of a batch that is seen to have no rows Keras returns no mean, but the empty values.
    """
    parameters = inspect.signature(model.compute_loss).parameters.values()
    names = {parameter.name for parameter in parameters}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    options = {"x": x, "y": y, "y_pred": y_pred, "sample_weight": sample_weight}
    if takes_any or "training" in names:
        options["training"] = training
    _thread.keeps_means = True
    try:
        if takes_any or names.issuperset(options):
            loss = model.compute_loss(**options)
        else:  # of other names: in Keras' order
            loss = model.compute_loss(*options.values())
    finally:
        _thread.keeps_means = False
    return tf.reduce_sum(loss) if loss.shape.rank else loss


def _unless_means_are_kept(scale):
    @functools.wraps(scale)
    def call(value):
        return value if getattr(_thread, "keeps_means", False) else scale(value)

    return call


for _name in ("scale_loss_for_distribution", "unscale_loss_for_distribution"):
    setattr(losses, _name, _unless_means_are_kept(getattr(losses, _name)))


def is_compilable(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether XLA can compile the update of an optimizer.

    Of Keras' own it can; a user's optimizer or schedule may print, call NumPy or use
    strings.
    """
    schedule = getattr(optimizer, "_learning_rate", None)
    parts = [optimizer]
    if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
        parts.append(schedule)
    elif callable(schedule) and not isinstance(schedule, keras.Variable):
        return False
    modules = {type(part).__module__.partition(".")[0] for part in parts}
    return modules <= {"keras", "tf_dlrm"}


def is_equal_under_xla(model: keras.Model) -> bool:
    """Return whether XLA can compile a model and its loss, with equal results.

    Of Keras' layers and losses it can; a user's may print, call NumPy or use strings.
    And TensorFlow draws other random numbers under XLA, for dropout.
    """
    layers = list(model._flatten_layers(include_self=False))
    parts = [*layers, *tf.nest.flatten(model.loss)]
    for layer in layers:
        parts += [value for value in vars(layer).values() if isinstance(value, _PARTS)]
    known = ("keras", "tensorflow", "tf_dlrm")
    if any(getattr(part, "_seed_generators", None) for part in layers):
        return False
    return all(
        isinstance(part, str)
        or (getattr(part, "__module__", None) or "").partition(".")[0] in known
        for part in parts
    )


def build_metrics(model: keras.Model) -> None:
    """Create the variables of compiled metrics and losses, for outputs `(B, 1)`."""
    label = tf.zeros((1, 1))
    with model.distribute_strategy.scope():
        for compiled in (model._compile_metrics, model._compile_loss):
            if compiled is not None and not compiled.built:
                compiled.build(label, label)


def expect_end_of_data(epoch_iterator: Any) -> None:
    """Keep Keras from warning at the end of a dataset of unknown length.

    The warning says that the dataset is too short; with `steps_per_epoch` it may be.
    """
    if not epoch_iterator.steps_per_epoch:
        epoch_iterator._interrupted_warning = lambda: None


@contextlib.contextmanager
def without_end_of_data_warnings(steps: int | None) -> Iterator[None]:
    """Keep Keras quiet at the end of a dataset of unknown length.

    Args:
        steps: The number of steps that was asked for; with one Keras is right.
    """
    with warnings.catch_warnings():
        if steps is None:
            warnings.filterwarnings("ignore", "Your input ran out of data")
        yield


def begin_at_position(epoch_iterator: Any) -> None:
    """Make the epochs of a dataset with a `position` begin at its batch.

    `fit` numbers the batches of each epoch from 0. Here those that were trained on
    before a resume count as seen: callbacks get the numbers they would have had.

    Raises:
        ValueError: If `steps_per_epoch` cuts a dataset that ends.
    """
    adapter = epoch_iterator.data_adapter
    position = getattr(getattr(adapter, "_dataset", None), "position", None)
    if position is None:
        return
    size = epoch_iterator.steps_per_execution
    position.follow(epoch_iterator.steps_per_epoch, size)
    from_zero = epoch_iterator._enumerate_iterator

    def enumerate_iterator():
        if position.epochs_differ:  # what Keras learned of the epoch before
            epoch_iterator._num_batches = None
        if not position.batch:
            yield from from_zero()
            return
        adapter.on_epoch_begin()
        num_steps = epoch_iterator.steps_per_epoch or epoch_iterator._num_batches
        epoch_iterator._current_iterator = iter(epoch_iterator._get_iterator())
        epoch_iterator._steps_seen = first = position.batch
        for step in itertools.count(first, size):
            if num_steps and step >= num_steps:
                break
            epoch_iterator._steps_seen = step + size
            yield step, step + size - 1, epoch_iterator._current_iterator
        adapter.on_epoch_end()

    epoch_iterator._enumerate_iterator = enumerate_iterator


def prefetch_to_device(epoch_iterator: Any, device: str) -> None:
    """Copy the batches of a dataset to a device while it computes with others.

    Left as they are: a dataset that a strategy distributes, which the strategy
    prefetches; strings, which a device cannot hold; and ragged tensors, which would
    come back to the host to be taken apart.
    """
    dataset = epoch_iterator._distributed_dataset
    if not isinstance(dataset, tf.data.Dataset):
        return
    # Keras keeps the iterator of a validation for the next one.
    if getattr(epoch_iterator, "_is_prefetched", False):
        return
    epoch_iterator._is_prefetched = True
    specs = tf.nest.flatten(dataset.element_spec)
    if all(isinstance(s, tf.TensorSpec) and s.dtype != tf.string for s in specs):
        prefetch = tf.data.experimental.prefetch_to_device(device, buffer_size=2)
        epoch_iterator._distributed_dataset = dataset.apply(prefetch)


def with_callback(
    callbacks: Any, own: keras.callbacks.Callback, stack: ExitStack
) -> Any:
    """Return what `fit` takes to call `own` before the user's callbacks.

    Args:
        callbacks: A list, one callback, or Keras' `CallbackList`.
        own: The callback.
        stack: Puts a `CallbackList` back as it was.
    """
    listed = getattr(callbacks, "callbacks", None)
    if listed is None:
        return [own, *tf.nest.flatten(callbacks)]
    listed.insert(0, own)
    stack.callback(listed.remove, own)
    own.set_model(callbacks._model)
    return callbacks


def with_each(callbacks: Any, own: keras.callbacks.Callback, stack: ExitStack) -> Any:
    """Return what `fit` takes to call `own` after each of the user's callbacks.

    Args:
        callbacks: A list, one callback, or Keras' `CallbackList`.
        own: The callback.
        stack: Puts a `CallbackList` back as it was.
    """
    listed = getattr(callbacks, "callbacks", None)
    if listed is None:
        callbacks = tf.nest.flatten(callbacks)
        return [each for callback in callbacks for each in (callback, own)]
    listed.append(own)
    stack.callback(listed.remove, own)
    own.set_model(callbacks._model)
    return callbacks


def forget_validation_size(model: keras.Model) -> None:
    """Let the next validation of `fit` have another number of batches than the last.

    Keras keeps the iterator of the first one, and ends where that ended.
    """
    model._eval_epoch_iterator = None


class KerasModelAdapter(keras.Model):
    """A `keras.Model` that is built, of one output `(B, 1)`, for `fit` as it is.

    Under a strategy `fit` builds model, metrics and loss from a first batch, which it
    averages over the replicas. That fails for ragged tensors, and for a first batch
    that is uneven. There is nothing to build here that needs data.

    And the loop that Keras makes of `steps_per_execution` cannot be compiled with
    several replicas, whatever the model: here it is a loop in Python.
    """

    train_function: Any
    test_function: Any
    steps_per_execution: int

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None:
            expect_end_of_data(iterator)
            begin_at_position(iterator)
            device = accelerators.first()
            if device is not None:
                prefetch_to_device(iterator, device)
        if self._distribute_strategy is not None:
            build_metrics(self)

    def _get_metrics_result_or_logs(self, logs):
        # No step may be left of an epoch that was resumed: its results are there.
        if not logs and self._loss_tracker.count > 0:
            return self.get_metrics_result()
        return super()._get_metrics_result_or_logs(logs)

    def make_train_function(self, force: bool = False) -> None:
        """Make what `fit` calls for `steps_per_execution` steps, as Keras does."""
        before = self.train_function
        super().make_train_function(force)
        if self.train_function is not before:
            self.train_function = self._one_by_one(self.train_function)

    def make_test_function(self, force: bool = False) -> None:
        """Make what `evaluate` calls, as Keras does."""
        before = self.test_function
        super().make_test_function(force)
        if self.test_function is not before:
            self.test_function = self._one_by_one(self.test_function)

    def function_of(self, step: Any) -> Any:
        """Return what `fit` would call if `step` were the model's `train_step`."""
        return self._make_function(step)

    def _one_by_one(self, function):
        if self.steps_per_execution == 1 or self.run_eagerly:
            return function
        if self.distribute_strategy.num_replicas_in_sync == 1:
            return function

        def run(iterator):
            num_steps, outputs = self.steps_per_execution, None
            self.steps_per_execution = 1
            try:
                for _ in range(num_steps):
                    outputs = function(iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                if outputs is None:  # else the next call says so
                    raise
            finally:
                self.steps_per_execution = num_steps
            return outputs

        return run
