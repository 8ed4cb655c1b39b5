"""What `tf_dlrm.training.keras_hooks` uses of Keras' private parts is still there.

A test that fails here after an update of Keras names the hook to look at.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices
from keras.src.backend.tensorflow import trainer
from keras.src.callbacks.callback_list import CallbackList
from keras.src.losses import loss as losses
from keras.src.trainers.epoch_iterator import EpochIterator

from tf_dlrm.training import keras_hooks


def parameters(function):
    return list(inspect.signature(function).parameters)


def make_model(**options):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", loss="mse", metrics=["mae"], **options)
    return model


def test_the_loss_tracker_is_a_mean_of_the_name_loss():
    tracker = keras_hooks.loss_tracker(make_model())
    assert isinstance(tracker, keras.metrics.Mean) and tracker.name == "loss"


def test_compiled_metrics_and_losses_are_built_from_outputs():
    model = make_model()
    for compiled in (model._compile_metrics, model._compile_loss):
        assert compiled.built is False
        assert parameters(compiled.build) == ["y_true", "y_pred"]
    keras_hooks.build_metrics(model)
    assert model._compile_metrics.built and model._compile_loss.built


def test_steps_become_train_functions_and_layers_know_their_seeds():
    assert parameters(keras.Model._make_function) == ["self", "step_function"]
    dropout, dense = keras.layers.Dropout(0.5), keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((1,)), dropout, dense])
    layers = list(model._flatten_layers(include_self=False))
    assert dropout in layers and dense in layers and model not in layers
    assert dropout._seed_generators and not dense._seed_generators
    model.compile("sgd", loss="mse")
    assert not keras_hooks.is_equal_under_xla(model)
    model = keras.Sequential([keras.Input((1,)), dense])
    model.compile("sgd", loss="mse")
    assert keras_hooks.is_equal_under_xla(model)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("_maybe_symbolic_build", ["self", "iterator", "data_batch"]),
        ("_get_metrics_result_or_logs", ["self", "logs"]),
        ("make_train_function", ["self", "force"]),
        ("make_test_function", ["self", "force"]),
        ("compute_loss", ["self", "x", "y", "y_pred", "sample_weight", "training"]),
        ("compute_metrics", ["self", "x", "y", "y_pred", "sample_weight"]),
    ],
)
def test_methods_of_a_model_that_are_overridden(name, expected):
    assert parameters(getattr(keras.Model, name)) == expected


@pytest.mark.parametrize(
    "caller, name",
    [
        ("fit", "self._maybe_symbolic_build(iterator="),
        ("fit", "_get_metrics_result_or_logs(logs)"),
        ("fit", "self.make_train_function()"),
        ("fit", "self.train_function(iterator)"),
        ("fit", "_eval_epoch_iterator"),
        ("evaluate", "self.test_function(iterator)"),
        ("train_step", "self._loss_tracker"),
    ],
)
def test_keras_still_calls_what_is_overridden(caller, name):
    """A method that Keras no longer calls would be a dead override, without a word."""
    method = getattr(trainer.TensorFlowTrainer, caller)
    assert name in inspect.getsource(method)


def test_epochs_are_numbered_by_the_iterator():
    data = tf.data.Dataset.from_tensor_slices(np.zeros((6, 1))).batch(2)
    iterator = EpochIterator(data, steps_per_execution=1)
    for name in ("_enumerate_iterator", "_get_iterator", "_interrupted_warning"):
        assert callable(getattr(iterator, name))
    for name in ("_steps_seen", "_current_iterator", "_num_batches"):
        assert name in vars(iterator)
    assert iterator.steps_per_epoch is None and iterator.steps_per_execution == 1
    assert "self._enumerate_iterator()" in inspect.getsource(EpochIterator)
    assert "self._interrupted_warning()" in inspect.getsource(EpochIterator)
    assert iterator.data_adapter._dataset is data
    assert parameters(iterator.data_adapter.on_epoch_begin) == []
    # What the adapter's own numbering relies on: first and last step, and an iterator.
    steps = [step[:2] for step in iterator._enumerate_iterator()]
    assert [first for first, _ in steps] == [0, 1, 2]


def test_fit_keeps_the_iterator_of_the_validation():
    source = inspect.getsource(trainer.TensorFlowTrainer.fit)
    assert 'getattr(self, "_eval_epoch_iterator", None) is None' in source
    model = make_model()
    model._eval_epoch_iterator = "of the last validation"
    keras_hooks.forget_validation_size(model)
    assert model._eval_epoch_iterator is None


def test_a_callback_list_knows_its_callbacks_and_its_model():
    model, callback = make_model(), keras.callbacks.Callback()
    callbacks = CallbackList([callback], model=model)
    assert callbacks.callbacks == [callback] and callbacks._model is model


def test_sigmoid_keeps_its_logit():
    probability = keras.ops.sigmoid(tf.constant([3.0]))
    np.testing.assert_allclose(probability._keras_logits, [3.0])


def test_losses_are_scaled_by_the_functions_that_are_replaced():
    for name in ("scale_loss_for_distribution", "unscale_loss_for_distribution"):
        assert hasattr(getattr(losses, name), "__wrapped__"), name
    source = inspect.getsource(losses.reduce_values)
    assert "scale_loss_for_distribution(" in source
    assert "tuple(values.shape) == (0,)" in source  # returned as it is
    assert "reduce_values(" in inspect.getsource(losses.reduce_weighted_values)
    assert "loss_module.unscale_loss_for_distribution" in inspect.getsource(trainer)


@on_devices(2)
def test_the_scaled_mean_is_whole_inside_of_compute_loss():
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        model = make_model()

    def loss():
        y = tf.constant([[1.0], [3.0]])
        return (
            keras.losses.MeanSquaredError()(y, 0 * y),
            keras_hooks.compute_loss(model, y, y, 0 * y, None),
        )

    scaled, whole = strategy.run(loss)
    for value in strategy.experimental_local_results(scaled):
        np.testing.assert_allclose(value, 5.0 / 2)
    for value in strategy.experimental_local_results(whole):
        np.testing.assert_allclose(value, 5.0)


@on_devices(2)
def test_keras_clips_before_it_sums_over_replicas():
    """Why clipping is refused under replicas; if this fails, it need not be."""
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    with strategy.scope():
        variable = keras.Variable([0.0])
        optimizer = keras.optimizers.SGD(1.0, clipnorm=1.0)
        optimizer.build([variable])
    strategy.run(lambda: optimizer.apply([tf.constant([5.0])], [variable]))
    (value, *_) = strategy.experimental_local_results(variable.value)
    np.testing.assert_allclose(value, [-2.0])  # -1 from each, not -1 for both


def test_the_versions_are_those_that_were_tried():
    assert keras.__version__.startswith("3.15."), "look at keras_hooks.py"
