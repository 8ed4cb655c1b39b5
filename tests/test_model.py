"""DLRM's architecture: interactions, widths, summary, mistakes."""

import types

import keras
import numpy as np
import pytest
from helpers.small_model import (
    NUM_ROWS,
    compiled,
    make_data,
    make_model,
    make_spec,
    predictions,
    tables_of,
)

import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec, layers

WIDTHS = [(11, 2), (7, 4), (30, 8)]


@pytest.mark.breadth(2)
@pytest.mark.parametrize("interaction", ["dot", "cat", "cross", "layer"])
def test_interactions(interaction):
    if interaction == "layer":
        interaction = layers.CrossInteraction(2, rank=3)
    model = make_model(interaction=interaction)
    model.compile("adagrad")
    model.fit(*make_data(), verbose=0)
    assert predictions(model).shape == (NUM_ROWS, 1)


@pytest.mark.integration
def test_tables_of_any_width_meet_by_feature_mlps(tmp_path):
    tables = [EmbeddingTable(f"C{i}", n, w) for i, (n, w) in enumerate(WIDTHS)]
    spec = FeatureSpec(("I0", "I1"), tables)
    dims = {"C0": (6, 4), "C2": layers.MLP((4,), dropout=0.1)}
    mlps = types.MappingProxyType(dims)  # any mapping will do
    model = tf_dlrm.DLRM(spec, (8, 4), (8, 1), feature_mlp_dims=mlps)
    model.compile("adagrad")
    before = model.feature_mlps["C0"].dense_layers[0].kernel.numpy()
    start = tables_of(model)
    model.fit(*make_data(), verbose=0, epochs=2)
    assert np.abs(model.feature_mlps["C0"].dense_layers[0].kernel - before).max() > 0
    assert all(np.abs(a - b).max() > 0 for a, b in zip(tables_of(model), start))
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(predictions(again), predictions(model))
    with pytest.raises(ValueError, match="widths of features .*'C0': 2"):
        tf_dlrm.DLRM(spec, (8, 4), (8, 1))
    cat = tf_dlrm.DLRM(spec, (8, 4), (8, 1), interaction="cat")
    cat.compile("sgd")
    cat.fit(*make_data(), verbose=0)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({"top_mlp_dims": (8, 2)}, ValueError, "`top_mlp_dims` must end in 1"),
        ({"bottom_mlp_dims": (8, 5)}, ValueError, "`bottom_mlp_dims` must end in"),
        ({"bottom_mlp_dims": ()}, ValueError, "`bottom_mlp_dims` must be"),
        ({"interaction": "sum"}, ValueError, "`interaction` must be"),
        (
            {"interaction": "cat", "self_interaction": True},
            ValueError,
            "requires interaction",
        ),
        (
            {"embedding": keras.layers.Dense(1)},
            TypeError,
            "EmbeddingLayer. .*Received: Dense",
        ),
        ({"feature_mlp_dims": {"X": (4,)}}, ValueError, "does not have: X"),
        ({"feature_mlp_dims": layers.MLP((4,))}, TypeError, "share its weights"),
        (
            {"top_mlp_dims": layers.MLP((1,), final_activation="sigmoid")},
            ValueError,
            "without activation",
        ),
    ],
)
def test_mistakes_are_named(arguments, error, message):
    base = {"bottom_mlp_dims": (8, 4), "top_mlp_dims": (8, 1)}
    with pytest.raises(error, match=message):
        tf_dlrm.DLRM(make_spec(), **(base | arguments))


def test_summary_for_people():
    text = []
    model = compiled()
    model.summary(print_fn=text.append)
    text = "\n".join(text)
    # 48 rows of 4; (2+1)*8 + (8+1)*4; 4 + 6 dots = 10 inputs: (10+1)*8 + 9.
    assert "embedding tables" in text and "192" in text and "768 B" in text
    assert "2 > 8 > 4" in text and " 60" in text and " 97" in text
    assert f"{192 + 60 + 97}" in text
    assert "Adagrad, tables SparseAdagrad" in text
    assert max(map(len, text.splitlines())) <= 80


def test_paper_initial_values():
    model = make_model()
    for rows in tables_of(model):
        assert np.abs(rows).max() <= len(rows) ** -0.5
        assert np.abs(rows).max() > 0.8 * len(rows) ** -0.5


def test_an_embedding_of_other_tables_is_refused():
    for sizes in ((7, 11, 30), (11, 7), (11, 7, 31)):
        embedding = layers.EmbeddingCollection(make_spec(sizes).tables)
        with pytest.raises(ValueError, match="must hold the tables of `spec`"):
            make_model(embedding=embedding)


def test_the_layers_of_a_model_are_its_parts():
    """Whoever freezes `model.layers[:-1]` keeps the top MLP."""
    names = [layer.name for layer in make_model().layers]
    assert names == ["bottom_mlp", "embedding", "interaction", "top_mlp"]
