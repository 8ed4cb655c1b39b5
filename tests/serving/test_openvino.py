"""OpenVINO reads the same files without TensorFlow, and gives the same answers."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import pipelines
import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec
from tf_dlrm.calibration import fit_correction
from tf_dlrm.serving.c_library import read_recorded

pytestmark = pytest.mark.integration

SCRIPT = pathlib.Path(__file__).with_name("openvino_cases.py")
SIZES, COMBINERS = (500, 7, 30), ("sum", "mean", "sqrtn")
# Interaction, widths of the tables, length of the bags, dtype.
MODELS = {
    "cat widths": ("cat", (8, 4, 6), 4, "float32"),
    "bfloat16": ("dot", (8, 8, 8), 4, "mixed_bfloat16"),
}
MORE_MODELS = {
    f"{interaction} {max_hotness}": (interaction, (8, 8, 8), max_hotness, "float32")
    for interaction in ("dot", "cat", "cross")
    for max_hotness in (1, 4)
}


def export(folder, interaction, widths, max_hotness, dtype):
    tables = [
        EmbeddingTable(f"C{i}", size, width, combiner)
        for i, (size, width, combiner) in enumerate(zip(SIZES, widths, COMBINERS))
    ]
    spec = FeatureSpec(("I0", "I1"), tables)
    model = tf_dlrm.DLRM(spec, (8, 8), (8, 1), interaction=interaction, dtype=dtype)
    return tf_dlrm.export_saved_model(model, folder, max_hotness=max_hotness)


def export_corrected(folder):
    model = tf_dlrm.DLRM(
        FeatureSpec(("I0", "I1"), [EmbeddingTable("C0", 50, 8)]), (8, 8), (8, 1)
    )
    rng = np.random.default_rng(0)
    predicted = rng.random(2000)
    labels = (rng.random(2000) < predicted**2).astype(float)
    correction = fit_correction(labels, predicted, "isotonic")
    return tf_dlrm.export_saved_model(model, folder, calibration=correction)


def export_with_everything(folder):
    """One-hot, and with signatures of strings, of which OpenVINO knows nothing."""
    values = [[b"a%d" % i, b"b%d" % i] for i in range(26)]
    parser = pipelines.criteo.Parser(pipelines.vocabulary.Vocabulary(values))
    model = tf_dlrm.DLRM(parser.spec(4), (8, 4), (8, 1))
    return tf_dlrm.export_saved_model(
        model, folder, preprocessor=parser, candidate_features=("C3", "I2")
    )


def write_request(path):
    """The recorded rows, and the same with NaN and with ids that are none.

    Ids within int32: OpenVINO cuts int64 to that on a CPU.
    """
    recorded = {each.signature: each for each in read_recorded(path)}["serving_default"]
    dense, ids = recorded.inputs["dense_features"], recorded.inputs["sparse_features"]
    bad_dense, bad_ids = dense.copy(), ids.copy()
    bad_dense[::3, 0], bad_dense[1::3, 1] = np.nan, -np.inf
    bad_ids[::2, 0], bad_ids[::3, 1], bad_ids[::5, 2] = 1 << 30, -7, -1
    signature = tf.saved_model.load(path).signatures["serving_default"]
    answer = signature(
        dense_features=tf.constant(bad_dense), sparse_features=tf.constant(bad_ids)
    )
    np.savez(
        pathlib.Path(path) / "openvino.npz",
        dense_features=np.concatenate([dense, bad_dense]),
        sparse_features=np.concatenate([ids, bad_ids]),
        probabilities=np.concatenate(
            [recorded.probabilities, answer["probabilities"].numpy()]
        ),
    )


def write_recorded(path):
    recorded = {each.signature: each for each in read_recorded(path)}["serving_default"]
    arrays = recorded.inputs | {"probabilities": recorded.probabilities}
    np.savez(pathlib.Path(path) / "openvino.npz", **arrays)


@pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None,
    reason="takes OpenVINO: pip install openvino",
)
@pytest.mark.parametrize(
    "models",
    [MODELS, pytest.param(MORE_MODELS, marks=pytest.mark.slow)],
    ids=["few", "product"],
)
def test_openvino_gives_the_recorded_answers(models, tmp_path):
    paths = {name: export(tmp_path / name, *model) for name, model in models.items()}
    paths["everything"] = export_with_everything(tmp_path / "everything")
    for path in paths.values():
        write_request(path)
    # Its steps magnify differences of the predictions, by their slope.
    paths["isotonic"] = export_corrected(tmp_path / "isotonic")
    write_recorded(paths["isotonic"])
    command = [sys.executable, str(SCRIPT), *paths.values()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, path in paths.items():
        # In float32 OpenVINO does not round to bfloat16 where the model does.
        tolerance = {"bfloat16": 0.02, "isotonic": 1e-4}.get(name, 1e-6)
        assert found[path] <= tolerance, (name, found[path])
