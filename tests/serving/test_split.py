"""`export_split`: both parts together are the model, in TensorFlow and in LiteRT."""

import pathlib
import warnings

import numpy as np
import pytest
import tensorflow as tf

import tf_dlrm
from tf_dlrm.serving import export_split

SIZES = (40, 7, 300)


def make_model(dense=("I0", "I1"), combiner="sum", width=4, **options):
    tables = [
        tf_dlrm.EmbeddingTable(f"C{i}", size, width, combiner)
        for i, size in enumerate(SIZES)
    ]
    bottom = (8, width) if dense else None
    return tf_dlrm.DLRM(tf_dlrm.FeatureSpec(dense, tables), bottom, (8, 1), **options)


def make_rows(length, num_rows=16, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(-1, n, (num_rows, length)) for n in SIZES], axis=1)
    return rng.normal(size=(num_rows, 2)).astype("float32"), ids


def interpreter_of(path):
    """Return LiteRT's interpreter; TensorFlow's wheel has it, too, for a while."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        Interpreter = tf.lite.Interpreter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it is deprecated
        return Interpreter(model_path=str(path))


def run_both(path, dense, ids, edge, cloud, lite):
    """Return the probabilities of both parts."""
    signatures = tf.saved_model.load(path).signatures
    inputs = {"sparse_features": ids[:, edge]} if edge else {}
    if dense is not None:
        inputs["dense_features"] = dense
    if lite:
        runner = interpreter_of(pathlib.Path(path) / "edge.tflite")
        vectors = runner.get_signature_runner()(**inputs)["edge_vectors"]
    else:
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        vectors = signatures["edge"](**tensors)["edge_vectors"]
    answer = signatures["serving_edge"](
        edge_vectors=tf.constant(vectors), sparse_features=tf.constant(ids[:, cloud])
    )
    return answer["probabilities"].numpy()


@pytest.mark.breadth(2)
@pytest.mark.parametrize(
    "edge, length, combiner",
    [([0, 1], 1, "sum"), ([1], 1, "mean"), ([], 1, "sum"), ([0], 3, "sum"),
     ([1], 3, "mean"), ([0, 1], 3, "sqrtn")],
)  # fmt: skip
def test_both_parts_together_are_the_model(edge, length, combiner, tmp_path, capsys):
    model = make_model(combiner=combiner)
    names = [f"C{i}" for i in edge]
    path = export_split(model, tmp_path / "split", names, max_hotness=length)
    full = tf_dlrm.export_saved_model(model, tmp_path / "full", max_hotness=length)
    dense, ids = make_rows(length)
    dense[3, 0], ids[4, :, 0] = np.nan, 1 << 40  # missing, and ids out of range
    serve = tf.saved_model.load(full).signatures["serving_default"]
    expected = serve(dense_features=dense, sparse_features=ids)["probabilities"]
    cloud = [i for i in range(3) if i not in edge]
    got = run_both(path, dense, ids, edge, cloud, lite=False)
    if length == 1:
        np.testing.assert_array_equal(got, expected)
    else:  # the sums of bags have another order
        np.testing.assert_allclose(got, expected, atol=1e-7)
    lite = run_both(path, dense, ids, edge, cloud, lite=True)
    np.testing.assert_allclose(lite, expected, atol=1e-6)
    said = capsys.readouterr().out
    # 2 x 8 + 8 x 4 in the bottom MLP; (4 vectors: 6 products, and 4 values) x 8 + 8.
    assert "48 multiplications" in said and "88 multiplications" in said
    values = sum(4 * (SIZES[i] + 1) for i in edge)
    assert f"{values:,} values in tables" in said
    assert f"sends {4 * 4 * (1 + len(edge))} bytes a row" in said


@pytest.mark.integration
def test_without_dense_features_and_sampled_negatives(tmp_path):
    model = make_model(dense=(), negative_sampling_rate=0.25)
    path = export_split(model, tmp_path / "split", ["C2"])
    _, ids = make_rows(1)
    expected = model.predict({"sparse_features": ids}, verbose=0)
    got = run_both(path, None, ids, [2], [0, 1], lite=False)
    np.testing.assert_array_equal(got, expected)
    lite = run_both(path, None, ids, [2], [0, 1], lite=True)
    np.testing.assert_allclose(lite, expected, atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"edge_features": ["C9"]}, "unknown: .'C9'."),
        ({"edge_features": ["C0", "C0"]}, "each once"),
        ({"edge_features": ["I0"]}, "must name all of them or none .* Missing: .'I1'."),
        ({"edge_features": ["C0", "C1", "C2"]}, "leave at least one sparse feature"),
        (
            {"edge_features": ["C2"], "max_table_bytes": 4000},
            "Table 'C2' takes 4.8 kB, more than `max_table_bytes`=4,000",
        ),
        ({"max_hotness": 0}, "`max_hotness` must be at least 1"),
    ],
)
def test_refused_splits(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_split(make_model(), tmp_path, **options)
    with pytest.raises(ValueError, match="no bottom MLP that could be on the device"):
        export_split(make_model(dense=()), tmp_path)
    assert not list(tmp_path.iterdir())
