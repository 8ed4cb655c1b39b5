"""An export serves its correction in every signature; the model stays as it is."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.schema_vocabulary import make_vocabulary

import pipelines
import tf_dlrm
from pipelines.schema import Schema, Sparse
from tf_dlrm.calibration import (
    IsotonicCorrection,
    PlattCorrection,
    SlicedCorrection,
    fit_correction,
)
from tf_dlrm.serving.c_library import Request, read_recorded
from tf_dlrm.serving.signatures import ServingModule

SCHEMA = Schema("y", ["x", "z"], ["c", Sparse("d", separator="|"), "e"])


def make_model():
    parser = pipelines.Parser(make_vocabulary(SCHEMA))
    keras.utils.set_random_seed(3)
    model = tf_dlrm.DLRM(parser.spec(4), (8, 4), (8, 1), negative_sampling_rate=0.3)
    model.top_mlp.dense_layers[-1].kernel.assign(np.linspace(-9, 9, 8)[:, None])
    return model, parser


def make_sliced(feature):
    """Curves that differ by much, for ids 0 and 2 and for missing ids."""
    rng = np.random.default_rng(0)
    labels, p = rng.random((2, 4_000))
    labels = (labels < p**2).astype("float32")
    other = fit_correction(labels, p, "isotonic")
    by_id = {2: fit_correction(labels, p**3, "isotonic")}
    by_id |= {-1: IsotonicCorrection([0, 1], [0.1, 0.2])}
    by_id |= {0: IsotonicCorrection([0, 1], [0.4, 0.9])}
    return SlicedCorrection(feature, other, by_id, 4_000)


def slice_ids(request, parser, position):
    """The first id of the feature in each row, row by row in Python."""
    inputs = request.inputs
    if len(inputs) == 1:
        ((name, raw),) = inputs.items()
        read = parser.features if name == "lines" else parser.features_of_examples
        features = read(tf.constant(raw))
        rows = features["sparse_features"]
        rows = rows.to_list() if isinstance(rows, tf.RaggedTensor) else rows.numpy()
        bags = [row[position] for row in rows]
    elif request.signature == "serving_ragged":
        bags, values = [], list(inputs["sparse_values"])
        for row in inputs["sparse_row_lengths"]:
            for feature, length in enumerate(row):
                bag, values = values[:length], values[length:]
                bags += [bag] if feature == position else []
    else:
        bags = inputs["sparse_features"][:, position]
    ids = [[i for i in np.reshape(bag, -1) if i >= 0] for bag in bags]
    return np.array([row[0] if row else -1 for row in ids])


def test_the_correction_is_that_of_each_row_and_feature():
    model, _ = make_model()
    rng = np.random.default_rng(1)
    inputs = {
        "dense_features": tf.constant(rng.normal(size=(50, 2)), tf.float32),
        "sparse_features": tf.constant(rng.integers(-1, 4, (50, 3, 2))),
    }
    plain = model.predict(inputs, verbose=0)
    ids = inputs["sparse_features"].numpy()[:, 1]
    first = np.where(ids[:, 0] >= 0, ids[:, 0], ids[:, 1])
    assert set(first) == {-1, 0, 1, 2, 3}
    for correction, expected in (
        (PlattCorrection(0.5, -1.0), PlattCorrection(0.5, -1.0)(plain)),
        (make_sliced("d"), make_sliced("d")(plain, first)),
    ):
        module = ServingModule(model, 2, calibration=correction)
        got = module.functions["serving_default"](*inputs.values())["probabilities"]
        assert np.abs(expected - plain).max() > 0.05
        np.testing.assert_allclose(got, expected, rtol=0, atol=2e-5)
    np.testing.assert_array_equal(model.predict(inputs, verbose=0), plain)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The model, its parser, and an export without a correction."""
    model, parser = make_model()
    folder = tmp_path_factory.mktemp("plain")
    options = {"candidate_features": ("c", "x"), "max_hotness": 2}
    options |= {"preprocessor": parser}
    path = tf_dlrm.export_saved_model(model, folder, **options)
    return model, parser, options, pathlib.Path(path)


@pytest.mark.integration
@pytest.mark.parametrize("feature", ["c", "d"])  # of candidates, and shared
def test_every_signature_serves_the_correction(feature, plain, tmp_path):
    model, parser, options, plain = plain
    correction = make_sliced(feature)
    options = {**options, "calibration": correction}
    corrected = pathlib.Path(tf_dlrm.export_saved_model(model, tmp_path, **options))
    served = {
        path: tf.saved_model.load(str(path)).signatures for path in (plain, corrected)
    }
    requests = read_recorded(corrected)
    assert len(requests) == 5
    for request in requests:
        inputs = {k: tf.constant(v) for k, v in request.inputs.items()}
        before, after = (
            served[path][request.signature](**inputs)["probabilities"].numpy()
            for path in (plain, corrected)
        )
        position = "cd".index(feature)
        if request.signature != "serving_candidates":
            ids = slice_ids(request, parser, position)
        elif feature == "c":
            ids = request.inputs["candidate_sparse_features"][:, 0]
            ids = np.where(ids[:, 0] >= 0, ids[:, 0], ids[:, 1])
        else:  # without c
            ids = np.repeat(slice_ids(request, parser, position - 1), len(before))
        expected = correction(before, ids)
        assert np.abs(expected - before).max() > 0.05
        near = np.maximum(request.margins, 2e-6)
        assert (np.abs(after - expected) <= near).all(), request.signature
        assert request.compare(after)[1] <= 1e-6
    if feature == "c":
        assert tf_dlrm.serving.verify_saved_model(corrected)["largest_difference"]
    described = json.loads((corrected / "assets.extra/tf_dlrm.json").read_text())
    assert described["calibration"]["slice_feature"] == feature
    assert described["calibration"]["slice_ids"] == [-1, 0, 2]
    text = (corrected / "assets.extra/README.md").read_text()
    assert "corrected by isotonic regression, fitted on 4,000 rows. 3 values" in text
    assert f"values of `{feature}` have" in text
    for file in ("tf_dlrm.json", "README.md", "tf_dlrm_requests.json"):
        text = (plain / "assets.extra" / file).read_text()
        assert "calibration" not in text and "corrected" not in text
        assert "margins" not in text


@pytest.mark.integration
def test_smaller_tables_are_corrected(tmp_path):
    """The export compared itself with what its own graph answers."""
    model, _ = make_model()
    answers = []
    for calibration in (None, PlattCorrection(0.7, -0.5, 100)):
        path = tf_dlrm.export_saved_model(
            model,
            tmp_path,
            table_dtype="int8",
            calibration=calibration,
        )
        answers.append([request.probabilities for request in read_recorded(path)])
    for plain, corrected in zip(*answers, strict=True):
        expected = PlattCorrection(0.7, -0.5)(plain)
        np.testing.assert_allclose(corrected, expected, rtol=0, atol=2e-6)


def test_a_steep_curve_may_magnify_the_rounding_of_the_prediction():
    expected, margins = np.float32([[0.2], [0.3]]), np.float32([[0.0], [0.1]])
    request = Request("serving_default", {}, expected, margins)
    assert request.compare(expected + np.float32([[0], [0.1]])) == pytest.approx(
        (0.1, 0), abs=1e-7
    )
    assert request.compare(expected + np.float32([[0.1], [0]]))[1] > 0.09
    assert request.compare(expected + np.float32([[0], [0.3]]))[1] > 0.19
    assert np.isnan(request.compare(expected * np.nan)[1])


@pytest.mark.integration
def test_an_export_with_a_jump_is_reproduced(tmp_path):
    """The curve jumps at the prediction of every row without features."""
    model, _ = make_model()
    rows = {
        "dense_features": np.zeros((1, 2), "float32"),
        "sparse_features": np.full((1, 3), -1),
    }
    p = float(model.predict(rows, verbose=0)[0, 0])
    jump = IsotonicCorrection([0, p, p + 1e-9, 1], [0, 0.01, 0.99, 1])
    assert tf_dlrm.export_saved_model(model, tmp_path, calibration=jump)


@pytest.mark.parametrize(
    "calibration, message",
    [
        ("isotonic", "must be the result of `tf_dlrm.calibration.fit_correction`"),
        (SlicedCorrection("x", PlattCorrection(1, 0), {}), "categorical feature"),
    ],
)
def test_another_correction_is_refused(calibration, message, tmp_path):
    model, _ = make_model()
    with pytest.raises((TypeError, ValueError), match=message):
        tf_dlrm.export_saved_model(model, tmp_path / "m", calibration=calibration)
    assert not (tmp_path / "m").exists()
