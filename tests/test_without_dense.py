"""A model without dense features, as for MovieLens or Frappe."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec

TABLES = [EmbeddingTable(name, 9, 4) for name in ("user", "item", "genre")]
SPEC = FeatureSpec((), TABLES)
IDS = np.array([[1, 2, 3], [4, 5, -1], [8, 0, 3]])


def make_model(**options):
    return tf_dlrm.DLRM(SPEC, top_mlp_dims=(8, 1), **options)


@pytest.mark.parametrize("diagonal", [False, True])
def test_the_interaction_takes_the_embeddings_alone(diagonal):
    model = make_model(self_interaction=diagonal)
    assert model.bottom_mlp is None
    z = np.stack([model.embedding.get_table(t.name) for t in TABLES])
    z = np.concatenate([z, np.zeros((3, 1, 4))], 1)  # -1 reads zeros
    z = np.stack([z[i, IDS[:, i]] for i in range(3)], 1).astype(np.float64)
    gram = np.einsum("bid,bjd->bij", z, z)
    i, j = np.tril_indices(3, 0 if diagonal else -1)
    x = gram[:, i, j]
    first, last = model.top_mlp.dense_layers
    x = np.maximum(x @ first.kernel.numpy() + first.bias.numpy(), 0)
    expected = 1 / (1 + np.exp(-(x @ last.kernel.numpy() + last.bias.numpy())))
    np.testing.assert_allclose(model(IDS_ONLY), expected, atol=1e-6)
    columns = {t.name: IDS[:, k] for k, t in enumerate(TABLES)}
    np.testing.assert_allclose(model(columns), expected, atol=1e-6)


IDS_ONLY = {"sparse_features": IDS}


@pytest.mark.breadth(0, 2)
@pytest.mark.parametrize("interaction", ["dot", "cat", "cross"])
@pytest.mark.parametrize("jit_compile", ["auto", True])
def test_it_trains_saves_and_serves(interaction, jit_compile, tmp_path, capsys):
    model = make_model(interaction=interaction)
    model.compile("adagrad", jit_compile=jit_compile)
    before = model.embedding.get_table("user")
    model.fit(IDS_ONLY, np.array([0.0, 1.0, 0.0]), epochs=2, verbose=0)
    assert np.abs(model.embedding.get_table("user") - before).max() > 0
    expected = model.predict(IDS_ONLY, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(again.predict(IDS_ONLY, verbose=0), expected)
    path = tf_dlrm.export_saved_model(model, tmp_path / "export")
    served = tf.saved_model.load(path).signatures["serving_default"](
        dense_features=tf.zeros((3, 0)), sparse_features=tf.constant(IDS[:, :, None])
    )
    np.testing.assert_allclose(served["probabilities"], expected, atol=1e-6)
    model.summary()
    assert "bottom MLP" not in capsys.readouterr().out


def test_ragged_ids_need_no_dense_features():
    ids = tf.RaggedTensor.from_uniform_row_length(
        tf.ragged.constant([[1, 1], [2], [3], [4], [], [0]], dtype=tf.int64), 3
    )
    assert make_model()({"sparse_features": ids}).shape == (2, 1)


def test_a_bottom_mlp_without_dense_features_is_refused():
    with pytest.raises(ValueError, match="`bottom_mlp_dims` must be omitted"):
        tf_dlrm.DLRM(SPEC, (8, 4), (8, 1))
    tf_dlrm.DLRM(SPEC, None, (8, 1))


def test_widths_that_differ_are_named():
    tables = [EmbeddingTable("a", 9, 4), EmbeddingTable("b", 9, 5)]
    with pytest.raises(ValueError, match="4 from the first, but widths .*'b': 5"):
        tf_dlrm.DLRM(FeatureSpec((), tables), top_mlp_dims=(8, 1))


def test_candidates_without_dense_features_are_scored_as_rows(tmp_path):
    model = make_model()
    path = tf_dlrm.export_saved_model(model, tmp_path, candidate_features=("item",))
    score = tf.saved_model.load(path).signatures["serving_candidates"]
    answer = score(
        dense_features=tf.zeros((1, 0)),
        sparse_features=tf.constant([[[1], [3]]], tf.int64),
        candidate_dense_features=tf.zeros((2, 0)),
        candidate_sparse_features=tf.constant([[[5]], [[7]]], tf.int64),
    )
    rows = {"sparse_features": np.array([[1, 5, 3], [1, 7, 3]])}
    np.testing.assert_allclose(answer["probabilities"], model(rows), atol=1e-6)


def test_no_dense_features_are_an_empty_sequence():
    with pytest.raises(ValueError, match="`dense` must be a sequence .* for none"):
        FeatureSpec(None, TABLES)
