"""`jit_compile="auto"` times two kinds of step where it may; their results agree."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices
from helpers.small_model import compiled, make_data, make_model, make_spec

import tf_dlrm
from tf_dlrm.runtime import choices, xla
from tf_dlrm.training import step_trial
from tf_dlrm.training.step_trial import PARTS, PROGRAM


def times(model):
    """Whether a model times its steps."""
    model.make_train_function()
    return model._step.chosen(times) is not times


@pytest.fixture(autouse=True)
def with_xla():
    with xla.disabled(None):  # nothing is traced here but where it is marked
        yield


class OwnStep(tf_dlrm.DLRM):
    def train_step(self, data):
        return super().train_step(data)


class OwnLoss(tf_dlrm.DLRM):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None):
        return tf.reduce_mean(y_pred)


def own_activation(x):
    return tf.nn.relu(x)


def own_loss(y, y_pred):
    return tf.reduce_mean((y - y_pred) ** 2, -1)


def make(case):
    options = {}
    shape = (make_spec(), (8, 4), (8, 1))
    kind = {"own step": OwnStep, "own compute_loss": OwnLoss}.get(case, tf_dlrm.DLRM)
    if case == "dropout":
        shape = (*shape[:2], tf_dlrm.layers.MLP((8, 1), dropout=0.1))
    if case == "own activation":
        shape = (*shape[:2], tf_dlrm.layers.MLP((8, 1), activation=own_activation))
    model = kind(*shape)
    if case in ("jit_compile=True", "jit_compile=False"):
        options["jit_compile"] = case.endswith("True")
    if case == "eager":
        options["run_eagerly"] = True
    if case == "own loss":
        options["loss"] = own_loss
    model.compile("adagrad", **options)
    return model


@pytest.mark.parametrize(
    "case",
    [
        "jit_compile=True",
        "jit_compile=False",
        "eager",
        "own step",
        "own compute_loss",
        "own loss",
        "own activation",
        "dropout",
    ],
)
def test_nothing_is_timed_where_the_rule_is_fixed(case):
    assert not times(make(case))


def test_steps_are_timed_by_default_and_not_without_xla():
    model = make("default")
    assert times(model) and model.xla_choice == PARTS
    model.use_xla(False)
    assert not times(model) and model.xla_choice == "none"
    model.use_xla(True)
    assert times(model)
    with xla.disabled():
        assert not times(model)
    with tf.distribute.OneDeviceStrategy("/cpu:0").scope():
        assert not times(make("default"))


def test_nothing_is_timed_under_op_determinism(monkeypatch):
    assert not choices.is_deterministic()

    def refuse():
        raise tf.errors.FailedPreconditionError(None, None, "determinism is enabled")

    monkeypatch.setattr(tf, "timestamp", refuse)
    assert choices.is_deterministic()
    model = make("default")
    assert not times(model) and model.xla_choice == PARTS


def test_determinism_that_is_enabled_during_a_training_ends_the_trial(monkeypatch):
    model = make("default")
    model.make_train_function()
    run = model._step.chosen(lambda iterator: PARTS)
    model._step._trial.kind = PROGRAM
    monkeypatch.setattr(choices, "is_deterministic", lambda: True)
    assert run(None) == PARTS
    assert model._step._trial.is_over and model.xla_choice == PARTS


@pytest.mark.breadth(0, 1)
@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_results_agree_whatever_is_chosen(steps_per_execution):
    """Also while both are tried, and where a batch is smaller or is not applied.

    Earlier tests of this process may have brought it near the limit of mappings.
    """
    on_devices(1)(check_choices)(steps_per_execution)


def check_choices(steps_per_execution):
    step_trial._SECONDS_BEFORE = step_trial._TRIAL_SECONDS = 0.0
    step_trial._MARGIN = np.inf  # the program is chosen
    x, y = make_data()
    x = {name: values.copy() for name, values in x.items()}
    x["dense_features"][40] = np.inf
    dataset = tf.data.Dataset.from_tensor_slices((x, y)).batch(12).repeat(20)
    results = []
    for jit_compile, expected in (("auto", PROGRAM), (False, "none")):
        keras.utils.set_random_seed(3)
        options = {"steps_per_execution": steps_per_execution}
        model = compiled("adam", jit_compile=jit_compile, **options)
        with pytest.warns(RuntimeWarning, match="20 batches"):
            history = model.fit(dataset, verbose=0).history
        assert model.xla_choice == expected
        assert int(model.optimizer.iterations) == int(model.embedding.iterations) == 100
        figures = np.array([history[name][0] for name in sorted(history)])
        state = [variable.numpy() for variable in model.optimizer.variables]
        results.append([*model.get_weights(), *state, figures])
    for got, expected in zip(*results, strict=True):
        # Sums in another order; Adam's steps of 0.001 amplify a last bit.
        np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-5)


def test_an_unused_model_has_no_choice():
    assert make_model().xla_choice == "none"
