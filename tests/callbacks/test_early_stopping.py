"""Early ends of a training, and evaluations within epochs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.guard_data import make_batches

import tf_dlrm
from tf_dlrm.callbacks import EarlyStopping, EvaluateWithinEpochs, ResumableTraining


def make_model():
    keras.utils.set_random_seed(3)
    tables = [tf_dlrm.EmbeddingTable(f"C{i}", 20, 4) for i in range(3)]
    spec = tf_dlrm.FeatureSpec(("I0", "I1"), tables)
    model = tf_dlrm.DLRM(spec, (8, 4), (8, 1))
    metrics = [tf_dlrm.metrics.ClickAUC()]
    model.compile("sgd", metrics=metrics, run_eagerly=True, jit_compile=False)
    return model


@pytest.fixture
def rows():
    batches = make_batches(10, 8)
    features, label = zip(*batches, strict=True)
    joined = {k: np.concatenate([f[k] for f in features]) for k in features[0]}
    return joined, np.concatenate(label)


class Scripted(keras.callbacks.Callback):
    """Puts results of a script into the logs, as a validation would."""

    def __init__(self, values):
        super().__init__()
        self._values = list(values)

    def on_epoch_end(self, epoch, logs=None):
        logs["val_auc"] = self._values[epoch]


def fit(rows, values, stop, epochs=6):
    return make_model().fit(
        *rows,
        batch_size=40,
        epochs=epochs,
        verbose=0,
        callbacks=[Scripted(values), stop],
    )


def test_it_ends_at_the_target(rows, capsys):
    stop = EarlyStopping(target=0.8)
    history = fit(rows, [0.7, 0.79, 0.81, 0.9, 0.9, 0.9], stop)
    assert len(history.epoch) == 3
    assert stop.best == 0.81
    assert stop.reason == "val_auc 0.81000 reached 0.8"
    assert "Training stops: val_auc 0.81000 reached 0.8." in capsys.readouterr().out


def test_of_a_loss_the_smallest_is_best(rows):
    stop = EarlyStopping("loss", target=0.0, patience=1, verbose=0)
    stop.set_model(model := make_model())
    stop.on_train_begin()
    stop.on_evaluation({"loss": 0.5})
    stop.on_evaluation({"loss": 0.4})
    assert stop.best == 0.4 and stop.reason is None
    stop.on_evaluation({"loss": 0.45})
    assert stop.reason is None  # nothing was learned since
    model.optimizer.iterations.assign_add(1)
    stop.on_evaluation({"loss": 0.45})
    assert stop.reason == "loss has not improved on 0.40000 in 1 evaluations"
    assert model.stop_training


@pytest.mark.breadth(1)
@pytest.mark.parametrize(
    "values, options, expected",
    [
        ([0.7, 0.72, 0.71, 0.72, 0.9, 0.9], {"patience": 2}, 4),
        ([0.7, 0.705, 0.711, 0.9, 0.9, 0.9], {"patience": 2, "min_delta": 0.01}, 6),
        ([0.7, 0.705, 0.709, 0.9, 0.9, 0.9], {"patience": 2, "min_delta": 0.01}, 3),
        ([0.7] * 6, {}, 6),
    ],
    ids=["no-better", "slow-sum", "too-slow", "nothing-asked"],
)
def test_it_ends_where_it_improves_no_more(rows, values, options, expected):
    history = fit(rows, values, EarlyStopping(verbose=0, **options))
    assert len(history.epoch) == expected


def test_it_ends_after_some_minutes(rows):
    stop = EarlyStopping(max_minutes=1e-9, verbose=0)
    model = make_model()
    model.fit(*rows, batch_size=8, epochs=3, verbose=0, callbacks=[stop])
    assert model.optimizer.iterations.numpy() == 1
    assert stop.reason == "1e-09 minutes have passed"
    assert stop.minutes > 0


@pytest.mark.integration
def test_a_second_training_begins_anew(rows):
    stop = EarlyStopping(target=0.8, verbose=0)
    fit(rows, [0.9] * 6, stop)
    history = fit(rows, [0.7] * 6, stop, epochs=2)
    assert len(history.epoch) == 2
    assert stop.reason is None and stop.best == 0.7


def test_a_result_that_is_not_there_is_named(rows):
    with pytest.raises(ValueError, match="`monitor` must be one of the results auc, l"):
        make_model().fit(*rows, verbose=0, callbacks=[EarlyStopping(target=0.8)])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"patience": 0}, "`patience` must be at least 1"),
        ({"min_delta": -1.0}, "`min_delta` must be at least 0"),
        ({"max_minutes": 0}, "`max_minutes` must be positive"),
    ],
    ids=["patience", "min-delta", "max-minutes"],
)
def test_refuses_what_has_no_meaning(options, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**options)


@pytest.mark.integration
def test_evaluations_within_an_epoch_change_nothing(rows):
    features, label = rows
    valid = tf.data.Dataset.from_tensor_slices((features, label)).batch(20)
    histories, models, within = [], [], None
    for evaluated in (False, True):
        model, callbacks = make_model(), []
        if evaluated:
            stop = EarlyStopping(patience=100)
            within = EvaluateWithinEpochs(valid, 4, [stop])
            callbacks = [within, stop]
        history = model.fit(
            features,
            label,
            batch_size=8,
            epochs=2,
            verbose=0,
            shuffle=False,
            validation_data=valid if evaluated else None,
            callbacks=callbacks,
        )
        histories.append(history.history)
        models.append(model)
    for a, b in zip(models[0].variables, models[1].variables, strict=True):
        np.testing.assert_array_equal(a.numpy(), b.numpy())
    for name, values in histories[0].items():
        assert histories[1][name] == values
    places = [(each["epoch"], each["batch"]) for each in within.results]
    assert places == [(0, 4), (0, 8), (1, 4), (1, 8)]


@pytest.mark.integration
def test_results_within_an_epoch_are_those_of_the_model_there(rows):
    features, label = rows
    valid = tf.data.Dataset.from_tensor_slices((features, label)).batch(20)
    within = EvaluateWithinEpochs(valid, 5)
    make_model().fit(
        features, label, batch_size=8, verbose=0, shuffle=False, callbacks=[within]
    )
    model = make_model()
    model.fit(
        {k: v[:40] for k, v in features.items()},
        label[:40],
        batch_size=8,
        verbose=0,
        shuffle=False,
    )
    expected = model.evaluate(valid, verbose=0, return_dict=True)
    for name, value in expected.items():
        assert within.results[0][f"val_{name}"] == pytest.approx(value, abs=1e-7)


def test_a_target_within_an_epoch_ends_it(rows):
    features, label = rows
    valid = tf.data.Dataset.from_tensor_slices((features, label)).batch(20)
    stop = EarlyStopping(target=0.0, verbose=0)
    model = make_model()
    model.fit(
        features,
        label,
        batch_size=8,
        epochs=2,
        verbose=0,
        validation_data=valid,
        callbacks=[EvaluateWithinEpochs(valid, 3, [stop]), stop],
    )
    assert model.optimizer.iterations.numpy() == 3


def test_it_may_be_fed_within_epochs_alone(rows):
    """At the last step of an epoch, too: the end of the epoch is no second one."""
    features, label = rows
    valid = tf.data.Dataset.from_tensor_slices((features, label)).batch(20)
    stop, model = EarlyStopping(patience=1, min_delta=2.0, verbose=0), make_model()
    within = EvaluateWithinEpochs(valid, 5, [stop])
    model.fit(
        features, label, batch_size=8, epochs=3, verbose=0, callbacks=[within, stop]
    )
    assert model.optimizer.iterations.numpy() == 10
    assert "in 1 evaluations" in stop.reason


@pytest.mark.integration
def test_an_evaluation_at_the_end_of_an_epoch_counts_once(rows):
    features, label = rows
    valid = tf.data.Dataset.from_tensor_slices((features, label)).batch(20)
    stop, model = EarlyStopping(patience=2, min_delta=2.0, verbose=0), make_model()
    model.fit(
        features,
        label,
        batch_size=8,
        epochs=3,
        verbose=0,
        validation_data=valid,
        callbacks=[EvaluateWithinEpochs(valid, 10, [stop]), stop],
    )
    assert model.optimizer.iterations.numpy() == 30


def test_refuses_steps_that_are_none():
    with pytest.raises(ValueError, match="`every_steps` must be at least 1"):
        EvaluateWithinEpochs(None, 0)


@pytest.mark.integration
def test_what_it_saw_goes_on_after_a_resume(rows, tmp_path):
    features, label = rows
    train = tf.data.Dataset.from_tensor_slices((features, label)).batch(40)
    stop = None
    for epochs in (2, 6):
        stop = EarlyStopping(patience=3, verbose=0)
        checkpoint = ResumableTraining(tmp_path, verbose=0)
        checkpoint.carry(stop=stop)
        model = make_model()
        model.fit(
            checkpoint.resume(model, train),
            initial_epoch=checkpoint.initial_epoch,
            epochs=epochs,
            verbose=0,
            callbacks=[Scripted([0.9] + [0.8] * 5), stop, checkpoint],
        )
    assert model.optimizer.iterations.numpy() == 4 * 2
    assert stop.reason == "val_auc has not improved on 0.90000 in 3 evaluations"
    assert stop.best == 0.9
