"""A batch that is not finite changes nothing: compared with a training without it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.guard_data import Normalized, make_batches, poison, table_state

import tf_dlrm
from tf_dlrm.runtime import deferred_checks
from tf_dlrm.training import NotFiniteError

pytestmark = pytest.mark.engines

NUM_BATCHES, BATCH_SIZE = 5, 16


@pytest.fixture(autouse=True)
def counts_are_read_at_each_step(monkeypatch):
    """So that messages name the batch on an accelerator, too."""
    monkeypatch.setattr(deferred_checks, "READ_EVERY", 1)


def make_model(optimizer="adagrad", interaction="dot", normalized=False, **options):
    keras.utils.set_random_seed(3)
    tables = [tf_dlrm.EmbeddingTable(f"C{i}", 20, 4) for i in range(3)]
    if normalized:
        interaction = Normalized()
    model = tf_dlrm.DLRM(
        tf_dlrm.FeatureSpec(("I0", "I1"), tables), (8, 4), (8, 1), interaction
    )
    metrics = tf_dlrm.metrics.click_metrics()
    model.compile(optimizer, metrics=metrics, **options)
    return model


def train(model, batches, callbacks=(), **options):
    signature = tf.nest.map_structure(
        lambda rows: tf.TensorSpec((None, *rows.shape[1:]), rows.dtype), batches[0]
    )
    dataset = tf.data.Dataset.from_generator(
        lambda: iter(batches), output_signature=signature
    )
    return model.fit(dataset, verbose=0, callbacks=list(callbacks), **options).history


def state(model):
    others = [v.numpy() for v in (*model.variables, *model.optimizer.variables)]
    return [*table_state(model), *others]


@pytest.mark.breadth(1, 1)
@pytest.mark.parametrize(
    "optimizer, options",
    [
        ("sgd", {}),
        ("adagrad", {"jit_compile": True}),
        ("adam", {"jit_compile": False}),
        ("adam", {"run_eagerly": True, "normalized": True}),
        ("sgd", {"normalized": True, "steps_per_execution": 3}),
    ],
    ids=["sgd", "adagrad-xla", "adam-without-xla", "eager-normalized", "several-steps"],
)
def test_a_batch_that_is_not_finite_is_as_if_it_never_was(optimizer, options):
    batches = make_batches(NUM_BATCHES, BATCH_SIZE)
    poisoned = [
        poison(batches[1], "dense_features", np.nan),
        *batches[:2],
        poison(batches[0], "label", np.inf),
        batches[2],
        poison(batches[0], "dense_features", -np.inf),
        *batches[3:],
    ]
    clean, guarded = (make_model(optimizer, **options) for _ in range(2))
    expected = train(clean, batches, epochs=2)
    with pytest.warns(RuntimeWarning, match="6 batches had a loss or gradients that"):
        found = train(guarded, poisoned, epochs=2)
    assert guarded.num_skipped_batches == 6
    assert clean.num_skipped_batches == 0
    for value, expected_value in zip(state(guarded), state(clean), strict=True):
        np.testing.assert_array_equal(value, expected_value)
    assert found == expected


@pytest.mark.integration
def test_without_a_guard_it_is_applied():
    batches = make_batches(1, BATCH_SIZE)
    model = make_model(max_skipped_batches=None)
    train(model, [poison(batches[0], "dense_features", np.nan)])
    assert not all(np.isfinite(value).all() for value in state(model))
    assert model.num_skipped_batches == 0


@pytest.mark.breadth(0, 1)
@pytest.mark.parametrize(
    "name, cause",
    [("dense_features", "dense features"), ("label", "labels"), ("weight", "weights")],
)
def test_too_many_in_a_row_stop_the_training(name, cause):
    batches = make_batches(4, BATCH_SIZE, weighted=True)
    model = make_model(max_skipped_batches=3)
    bad = [poison(batch, name, np.nan) for batch in batches[:3]]
    with pytest.raises(NotFiniteError) as caught:
        train(model, [batches[0], bad[0], batches[1], *bad, batches[2]], epochs=2)
    message = str(caught.value)
    assert "3 batches in a row" in message
    assert "batch 6 of epoch 1" in message
    assert cause in message
    expected = make_model()
    train(expected, batches[:2])
    for value, expected_value in zip(state(model), state(expected), strict=True):
        np.testing.assert_array_equal(value, expected_value)


def test_tables_that_are_not_finite_are_named():
    model = make_model(max_skipped_batches=1)
    model.embedding.set_table("C1", np.full((20, 4), np.nan, np.float32))
    with pytest.raises(NotFiniteError, match="embeddings"):
        train(model, make_batches(1, BATCH_SIZE))


def test_an_epoch_without_any_good_batch_stops_the_training():
    batches = [poison(make_batches(1, BATCH_SIZE)[0], "label", np.nan)] * 2
    with pytest.raises(NotFiniteError, match="2 batches in a row"):
        train(make_model(), batches)


def test_a_training_that_diverges_keeps_weights_that_are_finite():
    model = make_model("sgd", max_skipped_batches=2)
    model.optimizer.learning_rate = 1e30
    with pytest.raises(NotFiniteError, match="smaller learning rate"):
        train(model, make_batches(20, BATCH_SIZE))
    assert all(np.isfinite(value).all() for value in state(model))


class CountsRows(tf_dlrm.DLRM):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        results = super().compute_metrics(x, y, y_pred, sample_weight)
        return results | {"rows": tf.shape(x["sparse_features"])[0] + tf.shape(y)[0]}


def test_metrics_of_a_user_see_no_row_of_it():
    spec = tf_dlrm.FeatureSpec(
        ("I0", "I1"), [tf_dlrm.EmbeddingTable(f"C{i}", 20, 4) for i in range(3)]
    )
    model = CountsRows(spec, (8, 4), (8, 1))
    model.compile("sgd")
    good, last = make_batches(2, BATCH_SIZE)
    with pytest.warns(RuntimeWarning, match="1 batches"):
        found = train(model, [good, poison(last, "label", np.nan)])
    assert found["rows"] == [0]
    assert np.isfinite(found["loss"][0])


@pytest.mark.integration
def test_a_callback_list_is_as_it_was_afterwards():
    model = make_model()
    callbacks = keras.callbacks.CallbackList([keras.callbacks.History()], model=model)
    before = list(callbacks.callbacks)
    x, y = make_batches(1, BATCH_SIZE)[0]
    model.fit(x, y, verbose=0, callbacks=callbacks)
    assert callbacks.callbacks == before


@pytest.mark.parametrize("number", [0, -1])
def test_refuses_a_number_that_is_not_one(number):
    with pytest.raises(ValueError, match="`max_skipped_batches` must be at least 1"):
        make_model(max_skipped_batches=number)


def test_it_is_saved_with_the_model(tmp_path):
    model = make_model(max_skipped_batches=7)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.get_compile_config()["max_skipped_batches"] == 7
