"""Weights are those of the tables that a user named, in `fit` and in files."""

import keras
import numpy as np
import pytest
from helpers.small_model import compiled, make_data, make_model, make_spec, tables_of

import tf_dlrm


def test_weights_are_logical_tables_and_cannot_reach_the_null_row():
    model = compiled("sgd")
    weights = model.get_weights()
    assert [w.shape for w in weights[-3:]] == [(11, 4), (7, 4), (30, 4)]
    assert model.count_params() == sum(w.size for w in weights)
    model.set_weights([np.ones_like(w) for w in weights])
    empty = {
        "dense_features": np.zeros((1, 2), "float32"),
        "sparse_features": np.full((1, 3), -1),
    }
    np.testing.assert_array_equal(model.embedding(empty["sparse_features"]), 0.0)
    np.testing.assert_array_equal(model.embedding.get_table("C1"), 1.0)
    with pytest.raises(ValueError, match="dense weights and 3 tables"):
        model.set_weights(weights[1:])
    with pytest.raises(ValueError, match="'C2' has shape"):
        model.set_weights([*weights[:-1], np.ones((31, 4))])


def test_early_stopping_restores_the_best_tables():
    model = compiled(keras.optimizers.SGD(1.0))
    x, y = make_data()
    tables = []
    keep = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: tables.append(tables_of(model))
    )
    stop = keras.callbacks.EarlyStopping(
        "loss", mode="max", patience=2, restore_best_weights=True
    )
    model.fit(x, y, epochs=5, verbose=0, callbacks=[keep, stop])
    assert len(tables) == 3
    for a, b in zip(tables_of(model), tables[0], strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("name", ["m.h5", "m.hdf5", "M.H5"])
def test_a_model_is_not_saved_in_the_legacy_form(name, tmp_path):
    with pytest.raises(ValueError, match="legacy `.h5`"):
        make_model().save(tmp_path / name)
    with pytest.raises(ValueError, match="must end in|legacy `.h5`"):
        callback = keras.callbacks.ModelCheckpoint(str(tmp_path / name))
        compiled("sgd").fit(*make_data(), verbose=0, callbacks=[callback])


def test_of_a_file_that_does_not_fit_what_fits_is_loaded(tmp_path):
    first = compiled("adagrad")
    first.fit(*make_data(), verbose=0)
    first.save_weights(tmp_path / "m.weights.h5")
    second = tf_dlrm.DLRM(make_spec((11, 9, 30)), (8, 4), (8, 1))
    second.compile("adagrad")
    own = second.embedding.get_table("C1")
    with pytest.raises(ValueError, match="'C1' has shape"):
        second.load_weights(tmp_path / "m.weights.h5")
    assert np.abs(second.embedding.get_table("C0") - tables_of(first)[0]).max() > 0
    with pytest.warns(UserWarning, match=r"keep their current rows: 'C1' has"):
        second.load_weights(tmp_path / "m.weights.h5", skip_mismatch=True)
    for i, name in ((0, "C0"), (2, "C2")):
        np.testing.assert_array_equal(
            second.embedding.get_table(name), tables_of(first)[i]
        )
        slots = [m.embedding.get_state()["slots"][name] for m in (first, second)]
        for slot in slots[0]:
            np.testing.assert_array_equal(slots[1][slot], slots[0][slot])
    np.testing.assert_array_equal(second.embedding.get_table("C1"), own)
