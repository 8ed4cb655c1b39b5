"""Learning rates of tables under callbacks that move the rate of the model."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.small_model import compiled, make_data, make_model, tables_of

from tf_dlrm import optimizers
from tf_dlrm.callbacks import ResumableTraining

RATES = [0.1, 0.05, 0.0, 0.2]


def dataset():
    features, label = make_data()
    return tf.data.Dataset.from_tensor_slices((features, label)).batch(16)


def compiled_with(table_optimizer, rate=0.1):
    keras.utils.set_random_seed(0)
    model = make_model()
    model.compile(keras.optimizers.SGD(rate), embedding_optimizer=table_optimizer)
    return model


class Assign(keras.callbacks.Callback):
    """Assigns rates as users do, at the begin of steps."""

    def on_train_batch_begin(self, batch, logs=None):
        step = int(self.model.optimizer.iterations.numpy())
        self.model.optimizer.learning_rate = RATES[step // 4]


SCHEDULER = keras.callbacks.LearningRateScheduler(lambda epoch: RATES[epoch])


@pytest.mark.breadth(1)
@pytest.mark.parametrize("callback", [SCHEDULER, Assign()], ids=["scheduler", "own"])
def test_own_rates_keep_their_ratio(callback):
    """The weights are those of epochs that are trained with rates set by hand."""
    model = compiled_with(optimizers.SparseSGD(0.5))
    model.fit(dataset(), epochs=4, callbacks=[callback], verbose=0)
    expected = compiled_with(optimizers.SparseSGD(0.5))
    for rate in RATES:
        expected.optimizer.learning_rate = rate
        expected.embedding_optimizer.learning_rate = 5 * rate
        expected.fit(dataset(), verbose=0)
    for a, b in zip(tables_of(model), tables_of(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    assert model.embedding_optimizer.learning_rate == pytest.approx(1.0)


def test_each_table_keeps_its_own_ratio():
    rates = {"C0": optimizers.SparseSGD(0.5), "C2": optimizers.SparseAdagrad(0.03)}
    model = compiled_with(rates)
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.02)
    model.fit(dataset(), callbacks=[scheduler], verbose=0)
    assert rates["C0"].learning_rate == pytest.approx(0.1)
    assert rates["C2"].learning_rate == pytest.approx(0.006)


@pytest.mark.integration
def test_a_plateau_reduces_both_and_a_checkpoint_holds_both(tmp_path):
    def fit(model, epochs):
        plateau = keras.callbacks.ReduceLROnPlateau("loss", 0.5, 1, min_delta=9)
        checkpoint = ResumableTraining(tmp_path / "c", verbose=0, monitor=None)
        data = checkpoint.resume(model, dataset())
        model.fit(
            data,
            epochs=epochs,
            initial_epoch=checkpoint.initial_epoch,
            callbacks=[plateau, checkpoint],
            verbose=0,
        )

    model = compiled_with(optimizers.SparseSGD(0.8), 0.1)
    fit(model, 2)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)
    assert model.embedding_optimizer.learning_rate == pytest.approx(0.4)
    resumed = compiled_with(optimizers.SparseSGD(0.8), 0.1)
    fit(resumed, 4)
    assert float(resumed.optimizer.learning_rate) == pytest.approx(0.025)
    assert resumed.embedding_optimizer.learning_rate == pytest.approx(0.2)


def test_a_rate_that_is_assigned_to_the_tables_counts_from_there():
    class Both(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                self.model.embedding_optimizer.learning_rate = 0.3
            self.model.optimizer.learning_rate = 0.1 / (1 + epoch)

    model = compiled_with(optimizers.SparseSGD(0.5), 0.1)
    model.fit(dataset(), epochs=2, callbacks=[Both()], verbose=0)
    assert model.embedding_optimizer.learning_rate == pytest.approx(0.15)


def test_an_assignment_between_fits_is_of_the_model_alone():
    model = compiled_with(optimizers.SparseSGD(0.5), 0.1)
    model.optimizer.learning_rate = 0.01
    callbacks = keras.callbacks.CallbackList([keras.callbacks.History()], model=model)
    model.fit(dataset(), callbacks=callbacks, verbose=0)
    assert model.embedding_optimizer.learning_rate == 0.5
    assert len(callbacks.callbacks) == 1


def test_a_schedule_of_the_tables_is_named():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    model = compiled_with(optimizers.SparseSGD(schedule))
    with pytest.warns(UserWarning, match="has a schedule do not follow it"):
        model.fit(dataset(), epochs=2, callbacks=[SCHEDULER], verbose=0)


def unknown_length():
    return dataset().filter(lambda x, y: True)


def generated():
    yield from dataset()


@pytest.mark.breadth(0)
@pytest.mark.parametrize("make", [dataset, unknown_length, generated])
def test_fit_and_evaluate_are_silent(make):
    """Keras warns of its own default of `shuffle`, and at the end of such data."""
    model = compiled()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.fit(make(), verbose=0)
        model.fit(unknown_length(), validation_data=unknown_length(), verbose=0)
        model.evaluate(unknown_length(), verbose=0)


@pytest.mark.integration
def test_what_a_user_asks_for_is_still_answered():
    model = compiled()
    with pytest.warns(UserWarning, match="`shuffle=True` was passed"):
        model.fit(dataset(), shuffle=True, verbose=0)
    with pytest.warns(UserWarning, match="ran out of data"):
        model.fit(unknown_length(), steps_per_epoch=9, verbose=0)
