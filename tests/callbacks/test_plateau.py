"""Reductions of the learning rate on a plateau, and after a resume."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import cut_training

import tf_dlrm
from tf_dlrm.callbacks import EvaluateWithinEpochs, ReduceLROnPlateau, ResumableTraining

VALUES = [0.70, 0.71, 0.71, 0.70, 0.72, 0.72, 0.71, 0.73]


def make_model(**options):
    keras.utils.set_random_seed(3)
    spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable("a", 20, 4)])
    model = tf_dlrm.DLRM(spec, (4,), (4, 1))
    optimizer = options.pop("optimizer", keras.optimizers.Adagrad(0.5))
    metrics = [tf_dlrm.metrics.ClickAUC()]
    model.compile(optimizer, metrics=metrics, jit_compile=False, **options)
    return model


def make_rows():
    rng = np.random.default_rng(0)
    features = {
        "dense_features": rng.normal(size=(32, 1)).astype(np.float32),
        "sparse_features": rng.integers(0, 20, (32, 1)),
    }
    return features, rng.integers(0, 2, 32).astype(np.float32)


class Scripted(keras.callbacks.Callback):
    """Puts results of a script into the logs, as a validation would."""

    def on_epoch_end(self, epoch, logs=None):
        logs["val_auc"] = VALUES[epoch]


def simulate(values, factor, patience, min_delta, min_lr, sign=1):
    """Return the rate after each evaluation, by the rules in words."""
    rate, best, without, rates = 0.5, None, 0, []
    for value in values:
        if best is None or sign * (value - best) > min_delta:
            best, without = value, 0
        else:
            without += 1
            if without == patience:
                rate, without = max(rate * factor, min_lr), 0
        rates.append(rate)
    return rates


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patience": 2},
        {"factor": 0.5, "min_lr": 0.2},
        {"min_delta": 0.015},
    ],
    ids=["defaults", "patience", "floor", "delta"],
)
def test_rates_are_those_of_the_rules(options):
    rates = []
    read = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: rates.append(
            float(model.optimizer.learning_rate)
        )
    )
    model = make_model(embedding_optimizer=tf_dlrm.optimizers.SparseAdagrad(2.0))
    plateau = ReduceLROnPlateau(verbose=0, **options)
    model.fit(
        *make_rows(),
        epochs=len(VALUES),
        verbose=0,
        callbacks=[Scripted(), plateau, read],
    )
    rules = {"factor": 0.1, "patience": 1, "min_delta": 0.0, "min_lr": 1e-6} | options
    expected = [0.5, *simulate(VALUES, **rules)]
    np.testing.assert_allclose(rates, expected[:-1], rtol=1e-6)
    rate = float(model.optimizer.learning_rate)
    np.testing.assert_allclose(rate, expected[-1], rtol=1e-6)
    # The tables' own rate keeps its ratio.
    own = model.embedding_optimizer.learning_rate
    np.testing.assert_allclose(own, 4 * rate, rtol=1e-6)
    assert plateau.num_reductions == len(set(expected)) - 1


def test_of_a_loss_the_smallest_is_best(capsys):
    plateau = ReduceLROnPlateau("val_loss")
    plateau.set_model(model := make_model())
    plateau.on_train_begin()
    for value in (0.5, 0.4, 0.45):
        model.optimizer.iterations.assign_add(1)
        plateau.on_evaluation({"val_loss": value})
    assert plateau.best == 0.4 and float(model.optimizer.learning_rate) < 0.06
    printed = capsys.readouterr().out
    assert "val_loss has not improved on 0.40000: learning rate 0.5 -> 0.05" in printed
    plateau.on_evaluation({"val_loss": 0.45})  # the same step again
    assert plateau.num_reductions == 1


def test_evaluations_within_epochs_count():
    features, label = make_rows()
    dataset = tf.data.Dataset.from_tensor_slices((features, label)).batch(8)
    model, plateau = make_model(), ReduceLROnPlateau("val_auc", min_delta=1, verbose=0)
    within = EvaluateWithinEpochs(dataset, 1, [plateau])
    model.fit(dataset, epochs=1, verbose=0, callbacks=[within, plateau])
    assert len(within.results) == 4 and plateau.num_reductions == 3


def fit_resumable(folder, cut_after=None):
    model = make_model(embedding_optimizer={"a": tf_dlrm.optimizers.SparseAdagrad(2.0)})
    checkpoint = ResumableTraining(folder, monitor=None, verbose=0)
    plateau = ReduceLROnPlateau(verbose=0)
    checkpoint.carry(plateau=plateau)
    features, label = make_rows()
    dataset = tf.data.Dataset.from_tensor_slices((features, label)).batch(8)
    dataset = checkpoint.resume(model, dataset)
    more = [] if cut_after is None else [cut_training.Cut(cut_after)]
    try:
        model.fit(
            dataset,
            initial_epoch=checkpoint.initial_epoch,
            epochs=len(VALUES),
            verbose=0,
            callbacks=[Scripted(), plateau, checkpoint, *more],
        )
    except cut_training.CutError:
        return None
    return model, plateau


def test_a_resumed_run_reduces_as_the_whole_one(tmp_path, capsys):
    """Also the tables' own rates, which follow the model's."""
    whole, plateau = fit_resumable(tmp_path / "whole")
    # Cut after a reduction, and once between an evaluation without gain and the next.
    assert fit_resumable(tmp_path / "cut", cut_after=13) is None
    assert fit_resumable(tmp_path / "cut", cut_after=10) is None
    resumed, again = fit_resumable(tmp_path / "cut")
    assert plateau.num_reductions == again.num_reductions == 4
    assert plateau.get_state() == again.get_state()
    for a, b in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    own = [m.embedding_optimizer["a"].learning_rate for m in (whole, resumed)]
    assert own[0] == own[1] < 0.001


@pytest.mark.parametrize(
    "options, message",
    [
        ({"factor": 1.0}, "`factor` must be above 0 and below 1. Received: 1.0"),
        ({"patience": 0}, "`patience` must be at least 1"),
        ({"min_delta": -1}, "`min_delta` must be at least 0"),
        ({"min_lr": float("nan")}, "`min_lr` must be at least 0"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ReduceLROnPlateau(**options)


def test_what_it_cannot_do_is_refused():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    model = make_model(optimizer=keras.optimizers.SGD(schedule))
    with pytest.raises(ValueError, match="needs an optimizer with a float learning"):
        model.fit(*make_rows(), verbose=0, callbacks=[ReduceLROnPlateau("loss")])
    with pytest.raises(ValueError, match="`monitor` must be one of the results auc, "):
        make_model().fit(*make_rows(), verbose=0, callbacks=[ReduceLROnPlateau()])
