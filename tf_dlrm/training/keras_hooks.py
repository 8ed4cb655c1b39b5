"""The only adapter to private parts of Keras, checked against Keras 3.15.1."""

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
from keras.src.backend.tensorflow import trainer
from keras.src.losses import loss as losses

from tf_dlrm.embedding import EmbeddingLayer
from tf_dlrm.embedding.recording import recorded_losses
from tf_dlrm.runtime import accelerators, replicas
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.training.epoch_sizes import agree_on_size

_thread = threading.local()
# Types of constructor arguments of layers that take part in the computation.
_PARTS = (types.FunctionType, keras.Regularizer, keras.constraints.Constraint)


def loss_tracker(model: keras.Model) -> keras.metrics.Mean:
    """Return the `Mean` metric of the loss that `fit` reports.

    Keras' own `train_step` updates it. `Model.metrics` includes it, but does not tell
    it apart from the user's metrics.
    """
    return model._loss_tracker


def is_writing_legacy_h5() -> bool:
    """Return whether Keras is saving a whole model in the legacy `.h5` format."""
    return bool(global_state.get_global_attribute("use_legacy_config"))


def count_rows(model: keras.Model) -> float:
    """Return the number of rows in the loss that `fit` or `evaluate` reports."""
    return float(keras.ops.convert_to_numpy(loss_tracker(model).count))


def compute_loss(
    model: keras.Model,
    x: Any,
    y: tf.Tensor,
    y_pred: tf.Tensor,
    sample_weight: tf.Tensor | None,
    training: bool = True,
) -> tf.Tensor:
    """Return the mean loss of this replica's rows, from the model's `compute_loss`.

    Under a strategy, Keras' losses divide means by the number of replicas, but a
    `compute_loss` of the user may compute losses in other ways. This function therefore
    prevents the division. The loss of a batch without rows, for which Keras returns an
    empty tensor, is 0.
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
        else:  # the parameters have other names: pass them in Keras' order
            loss = model.compute_loss(*options.values())
    finally:
        _thread.keeps_means = False
    if not loss.shape.rank:
        return loss
    if replicas.count() > 1 and loss.shape != (0,):
        raise UserError(
            "With several replicas, `compute_loss` must return a scalar, the mean over "
            f"the rows that it received. Received: a loss of shape {loss.shape}"
        )
    return tf.reduce_sum(loss)


def _unless_means_are_kept(scale):
    @functools.wraps(scale)
    def call(value):
        return value if getattr(_thread, "keeps_means", False) else scale(value)

    return call


def _without_empty_result(reduce):
    """Return `reduce` with a scalar 0 for no values, so that losses can be added."""

    @functools.wraps(reduce)
    def call(values, *arguments, **options):
        result = reduce(values, *arguments, **options)
        is_empty = tuple(result.shape) == (0,)
        if is_empty and getattr(_thread, "keeps_means", False):
            return tf.reduce_sum(result)
        return result

    return call


def _of_workers(reduce):
    """Return `reduce`, with which Keras reports a step, for several workers too.

    Keras averages over the first axis, which scalars lack (keras#20585). All results
    are averaged over the replicas in one operation.
    """

    @functools.wraps(reduce)
    def call(values, strategy, reduction):
        of_workers = isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
        results = tf.nest.flatten(values)
        if reduction == "concat" or not of_workers or not results:
            return reduce(values, strategy, reduction)
        local = [strategy.experimental_local_results(value) for value in results]
        own = [tf.stack([tf.cast(x, tf.float32) for x in row]) for row in zip(*local)]
        total = strategy.reduce("MEAN", tf.add_n(own) / len(own), axis=None)
        means = [
            tf.cast(mean, row[0].dtype) for mean, row in zip(tf.unstack(total), local)
        ]
        return tf.nest.pack_sequence_as(values, means)

    return call


trainer.reduce_per_replica = _of_workers(trainer.reduce_per_replica)
losses.reduce_values = _without_empty_result(losses.reduce_values)
for _name in ("scale_loss_for_distribution", "unscale_loss_for_distribution"):
    setattr(losses, _name, _unless_means_are_kept(getattr(losses, _name)))


def is_compilable(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether XLA can compile the update of an optimizer.

    It can compile Keras' own optimizers. An optimizer or schedule of the user may
    print, call NumPy or use strings.
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

    It can compile Keras' layers and losses. Layers or losses of the user may print,
    call NumPy or use strings. Dropout draws other random numbers under XLA.
    """
    layers = list(model._flatten_layers(include_self=False))
    parts = [*layers, *tf.nest.flatten(model.loss)]
    for layer in layers:
        parts += [value for value in vars(layer).values() if isinstance(value, _PARTS)]
    packages = ("keras", "tensorflow", "tf_dlrm")
    if any(getattr(part, "_seed_generators", None) for part in layers):
        return False
    return all(
        isinstance(part, str)
        or (getattr(part, "__module__", None) or "").partition(".")[0] in packages
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
    """Suppress Keras' warning at the end of a dataset of unknown length.

    The warning says that the dataset is too short, which is only possible with
    `steps_per_epoch`.
    """
    if not epoch_iterator.steps_per_epoch:
        epoch_iterator._interrupted_warning = lambda: None


@contextlib.contextmanager
def without_end_of_data_warnings(steps: int | None) -> Iterator[None]:
    """Suppress Keras' warning at the end of a dataset of unknown length.

    Args:
        steps: The requested number of steps, or `None`. With a number, the warning is
            justified and is not suppressed.
    """
    with warnings.catch_warnings():
        if steps is None:
            warnings.filterwarnings("ignore", "Your input ran out of data")
        yield


def begin_at_position(epoch_iterator: Any) -> None:
    """Make the epochs of a dataset with a `position` begin at the batch it names.

    `fit` numbers the batches of each epoch from 0. After a resume, batches that were
    trained on before count as seen, so that callbacks get the numbers of an
    uninterrupted run.

    Raises:
        ValueError: If `steps_per_epoch` is set for a dataset that ends.
    """
    adapter = epoch_iterator.data_adapter
    position = getattr(getattr(adapter, "_dataset", None), "position", None)
    if position is None:
        return
    size = epoch_iterator.steps_per_execution
    position.follow(epoch_iterator.steps_per_epoch, size)
    from_zero = epoch_iterator._enumerate_iterator

    def enumerate_iterator():
        if position.epochs_differ:  # forget the size of the previous epoch
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
    """Copy the batches of a dataset to a device while the device computes.

    Datasets that a strategy distributes are left unchanged, because the strategy
    prefetches them. So are datasets with strings, which a device cannot hold, and with
    ragged tensors, which the host would have to read back to split them.
    """
    dataset = epoch_iterator._distributed_dataset
    if not isinstance(dataset, tf.data.Dataset):
        return
    # Keras reuses the iterator of a validation for the next one.
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
    """Return callbacks for `fit` that call `own` before the user's callbacks.

    Args:
        callbacks: A list, one callback, or Keras' `CallbackList`.
        own: The callback to add.
        stack: Stack that restores a `CallbackList` when it closes.
    """
    listed = getattr(callbacks, "callbacks", None)
    if listed is None:
        return [own, *tf.nest.flatten(callbacks)]
    listed.insert(0, own)
    stack.callback(listed.remove, own)
    own.set_model(callbacks._model)
    return callbacks


def with_each(callbacks: Any, own: keras.callbacks.Callback, stack: ExitStack) -> Any:
    """Return callbacks for `fit` that call `own` after each of the user's callbacks.

    Args:
        callbacks: A list, one callback, or Keras' `CallbackList`. In a `CallbackList`,
            `own` is called once, after all others.
        own: The callback to add.
        stack: Stack that restores a `CallbackList` when it closes.
    """
    listed = getattr(callbacks, "callbacks", None)
    if listed is None:
        callbacks = tf.nest.flatten(callbacks)
        return [c for callback in callbacks for c in (callback, own)]
    listed.append(own)
    stack.callback(listed.remove, own)
    own.set_model(callbacks._model)
    return callbacks


def forget_validation_size(model: keras.Model) -> None:
    """Allow the next validation of `fit` to have a different number of batches.

    Keras reuses the iterator of the first validation and stops after as many batches.
    """
    model._eval_epoch_iterator = None


class KerasModelAdapter(keras.Model):
    """A built `keras.Model` with one output `(B, 1)`, adapted to Keras' `fit`.

    Under a strategy, `fit` builds model, metrics and loss from a first batch, which it
    averages over the replicas. That fails for ragged tensors and for an uneven first
    batch. This class builds them without data.

    Keras cannot compile its loop for `steps_per_execution` with several replicas. This
    class replaces it by a loop in Python.
    """

    embedding: EmbeddingLayer
    train_function: Any
    test_function: Any
    steps_per_execution: int

    @property
    def losses(self) -> list[tf.Tensor]:
        """The losses that the layers have added."""
        return [*super().losses, *recorded_losses(self.embedding)]

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None:
            agree_on_size(iterator)
            expect_end_of_data(iterator)
            begin_at_position(iterator)
            device = accelerators.first()
            if device is not None:
                prefetch_to_device(iterator, device)
        if self._distribute_strategy is not None:
            build_metrics(self)

    def _get_metrics_result_or_logs(self, logs):
        # A resumed epoch may have no steps left, but it has results.
        if not logs and self._loss_tracker.count > 0:
            return self.get_metrics_result()
        return super()._get_metrics_result_or_logs(logs)

    def make_train_function(self, force: bool = False) -> None:
        """Create the function that `fit` calls for `steps_per_execution` steps."""
        before = self.train_function
        super().make_train_function(force)
        if self.train_function is not before:
            self.train_function = self._one_by_one(self.train_function)

    def make_test_function(self, force: bool = False) -> None:
        """Create the function that `evaluate` calls for `steps_per_execution` steps."""
        before = self.test_function
        super().make_test_function(force)
        if self.test_function is not before:
            self.test_function = self._one_by_one(self.test_function)

    def function_of(self, step: Any) -> Any:
        """Return the function that `fit` would call if `train_step` were `step`."""
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
                if outputs is None:  # otherwise the next call raises it
                    raise
            finally:
                self.steps_per_execution = num_steps
            return outputs

        return run
