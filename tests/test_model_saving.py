"""`.keras` and `.weights.h5` files of DLRM: what continues, what is refused."""

import keras
import numpy as np
import pytest
from helpers.small_model import (
    compiled,
    make_data,
    make_model,
    make_spec,
    predictions,
    tables_of,
)

import tf_dlrm
from tf_dlrm import layers, optimizers


@pytest.mark.breadth(1)
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_keras_file_continues_as_if_never_stopped(optimizer, tmp_path):
    features, label = make_data()
    model = compiled(optimizer)
    model.fit(features, label, verbose=0, shuffle=False)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(predictions(again), predictions(model))
    assert int(again.embedding.iterations) == int(model.embedding.iterations) == 2
    assert type(again.embedding_optimizer) is type(model.embedding_optimizer)
    for each in (model, again):
        each.fit(features, label, verbose=0, shuffle=False)
    for got, expected in zip(tables_of(again), tables_of(model)):
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(predictions(again), predictions(model))


@pytest.mark.integration
def test_keras_file_keeps_optimizers_by_table_and_layers(tmp_path):
    model = tf_dlrm.DLRM(
        make_spec(),
        layers.MLP((8, 4), final_activation="relu", dropout=0.2),
        (8, 1),
        interaction=layers.CrossInteraction(2, rank=3),
        embedding=layers.EmbeddingCollection(make_spec().tables, seed=3),
        dtype="mixed_bfloat16",
    )
    model.compile("sgd", embedding_optimizer={"C1": optimizers.SparseAdam(0.05)})
    model.fit(*make_data(), verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(predictions(again), predictions(model))
    assert again.embedding_optimizer["C1"].learning_rate == pytest.approx(0.05)
    assert again.bottom_mlp.dropout == 0.2
    assert again.interaction.rank == 3
    assert again.dtype_policy.name == "mixed_bfloat16"
    state, expected = again.embedding.get_state(), model.embedding.get_state()
    for name, slots in expected["slots"].items():
        for slot, values in slots.items():
            np.testing.assert_array_equal(state["slots"][name][slot], values)


def test_keras_file_keeps_which_tables_share_an_optimizer(tmp_path):
    model = make_model()
    shared = optimizers.SparseAdagrad(0.1)
    alone = optimizers.SparseAdagrad(0.1)
    each = {"C0": shared, "C1": alone, "C2": shared}
    model.compile("sgd", embedding_optimizer=each)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras").embedding_optimizer
    assert again["C0"] is again["C2"] is not again["C1"]


def test_weights_file(tmp_path):
    model = compiled()
    model.fit(*make_data(), verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    keras.utils.set_random_seed(99)
    for other in (compiled(), make_model(), compiled("adam")):
        assert np.abs(predictions(other) - predictions(model)).max() > 0
        other.load_weights(tmp_path / "m.weights.h5")
        np.testing.assert_array_equal(predictions(other), predictions(model))


def test_a_weights_file_of_other_tables_is_refused(tmp_path):
    compiled().save_weights(tmp_path / "m.weights.h5")
    other = tf_dlrm.DLRM(make_spec((11, 7, 31)), (8, 4), (8, 1))
    with pytest.raises(ValueError, match="'C2' has shape"):
        other.load_weights(tmp_path / "m.weights.h5")


@pytest.mark.parametrize("part", ["embedding", "interaction", "bottom_mlp"])
def test_what_is_frozen_stays_frozen_in_a_file(part, tmp_path):
    model = make_model(interaction="cross")
    getattr(model, part).trainable = False
    model.compile("sgd")
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert getattr(again, part).trainable is False
    assert len(again.trainable_variables) == len(model.trainable_variables)


@pytest.mark.integration
def test_slots_of_another_width_start_afresh(tmp_path):
    model = make_model()
    model.compile("sgd", embedding_optimizer="row_wise_adagrad")
    model.fit(*make_data(), verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    other = compiled("adagrad")
    with pytest.warns(UserWarning, match="restarts from its initial state"):
        other.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(predictions(other), predictions(model))
    assert (other.embedding.get_state()["slots"]["C0"]["accumulator"] == 0.1).all()


@pytest.mark.integration
def test_a_failed_load_does_not_colour_the_next(tmp_path):
    compiled().save_weights(tmp_path / "a.weights.h5")
    wrong = tf_dlrm.DLRM(make_spec((11, 7, 31)), (8, 4), (8, 1))
    wrong.save_weights(tmp_path / "b.weights.h5")
    other = tf_dlrm.DLRM(make_spec((12, 7, 30)), (8, 4), (8, 1))
    with pytest.raises(ValueError, match=r"\(12, 4\). Received .* \(11, 4\)"):
        other.load_weights(tmp_path / "a.weights.h5")
    model = compiled()
    with pytest.raises(ValueError, match="'C2' has shape"):
        model.load_weights(tmp_path / "b.weights.h5")
    model.load_weights(tmp_path / "a.weights.h5")


def test_learning_rates_by_table_find_their_tables_again(tmp_path):
    def make(names):
        model = make_model()
        rates = {"C0": 0.1, "C1": 0.2, "C2": 0.3}
        each = {name: optimizers.SparseSGD(rates[name]) for name in names}
        model.compile("sgd", embedding_optimizer=each)
        return model

    make(["C0", "C1", "C2"]).save_weights(tmp_path / "m.weights.h5")
    other = make(["C2", "C0", "C1"])
    other.load_weights(tmp_path / "m.weights.h5")
    rates = {n: o.learning_rate for n, o in other.embedding_optimizer.items()}
    assert rates == pytest.approx({"C0": 0.1, "C1": 0.2, "C2": 0.3})
