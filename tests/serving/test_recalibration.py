"""Predictions of a model of sampled negatives are those of all rows, wherever asked."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import pipelines
import tf_dlrm
from tf_dlrm import calibration
from tf_dlrm.serving.c_library import read_recorded
from tf_dlrm.serving.signatures import ServingModule

RATE = 0.07
VALUES = [[b"a%d" % i, b"b%d" % i, b"c"] for i in range(26)]


def formula(p, w=RATE):
    """In float64, as He et al. 2014 write it."""
    p = np.asarray(p, np.float64)
    return p / (p + (1 - p) / w)


def make_model(rate, **kwargs):
    parser = pipelines.criteo.Parser(pipelines.vocabulary.Vocabulary(VALUES))
    keras.utils.set_random_seed(3)
    model = tf_dlrm.DLRM(
        parser.spec(4), (8, 4), (8, 1), negative_sampling_rate=rate, **kwargs
    )
    model.top_mlp.dense_layers[-1].kernel.assign(np.linspace(-9, 9, 8)[:, None])
    return model, parser


def make_features(num_rows=40):
    rng = np.random.default_rng(0)
    return {
        "dense_features": rng.normal(size=(num_rows, 13)).astype("float32"),
        "sparse_features": rng.integers(0, 4, (num_rows, 26)),
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    paths = {}
    for name, rate in (("sampled", RATE), ("whole", 1.0)):
        model, parser = make_model(rate)
        paths[name] = pathlib.Path(
            tf_dlrm.export_saved_model(
                model,
                tmp_path_factory.mktemp(name) / "ctr",
                preprocessor=parser,
                candidate_features=("C3", "I2"),
            )
        )
    return paths


@pytest.fixture(scope="module")
def loaded(exported):
    return {name: tf.saved_model.load(str(path)) for name, path in exported.items()}


def test_the_formula_and_its_ends():
    p = np.concatenate([[0, 1, 1e-30, 1 - 1e-7], np.random.default_rng(0).random(99)])
    p = p.astype("float32")
    for w in (1e-4, 0.1, 0.999):
        got = calibration.recalibrate(tf.constant(p), w).numpy()
        np.testing.assert_allclose(got, formula(p, w), rtol=1e-6)
        assert got[0] == 0 and got[1] == 1
    assert calibration.recalibrate(p, 1.0) is p


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    [
        "serving_default",
        "serving_ragged",
        "serving_tsv",
        "serving_examples",
        "serving_candidates",
    ],
)
def test_every_signature_serves_the_formula(exported, loaded, name):
    """The weights are equal: what the one serves is the formula of the other's."""
    (request,) = [r for r in read_recorded(exported["whole"]) if r.signature == name]
    inputs = {k: tf.constant(v) for k, v in request.inputs.items()}
    whole, sampled = (
        loaded[k].signatures[name](**inputs)["probabilities"].numpy()
        for k in ("whole", "sampled")
    )
    assert np.ptp(whole) > 0.05
    np.testing.assert_allclose(sampled, formula(whole), rtol=2e-6)
    # What was recorded, and what the export was verified with, is corrected too.
    (recorded,) = [r for r in read_recorded(exported["sampled"]) if r.signature == name]
    np.testing.assert_allclose(recorded.probabilities, formula(whole), rtol=1e-5)


@pytest.mark.integration
def test_the_export_says_the_rate(exported):
    for name, rate in (("sampled", RATE), ("whole", 1.0)):
        text = (exported[name] / "assets.extra" / "tf_dlrm.json").read_text()
        assert json.loads(text)["negative_sampling_rate"] == rate


@pytest.mark.integration
def test_quantized_tables_serve_the_formula(exported, tmp_path):
    """The export verified itself; its answers are near those of float32 tables."""
    model, parser = make_model(RATE)
    path = tf_dlrm.export_saved_model(
        model, tmp_path, preprocessor=parser, table_dtype="float16"
    )
    for name in ("serving_default", "serving_tsv"):
        got, expected = (
            next(r.probabilities for r in read_recorded(p) if r.signature == name)
            for p in (path, exported["sampled"])
        )
        np.testing.assert_allclose(got, expected, rtol=0.02)


@pytest.mark.integration
def test_an_export_without_the_correction_is_not_put_in_place(tmp_path, monkeypatch):
    model, parser = make_model(RATE)
    init = ServingModule.__init__

    def without(self, model, *args):
        monkeypatch.setattr(type(model), "recalibrate", lambda self, p: p)
        init(self, model, *args)
        for function in self.functions.values():
            function.get_concrete_function()
        monkeypatch.undo()

    monkeypatch.setattr(ServingModule, "__init__", without)
    with pytest.raises(RuntimeError, match="differs from the model"):
        tf_dlrm.export_saved_model(model, tmp_path, preprocessor=parser)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_all_negatives_leave_the_graph_as_it_was(monkeypatch):
    model, parser = make_model(1.0)

    def nodes():
        module = ServingModule(model, 2, parser, ("C3",))
        return {
            name: [
                (n.op, n.name)
                for n in f.get_concrete_function().graph.as_graph_def().node
            ]
            for name, f in module.functions.items()
        }

    expected = nodes()
    monkeypatch.setattr(tf_dlrm.DLRM, "recalibrate", lambda self, p: p)
    assert nodes() == expected


@pytest.mark.integration
def test_training_is_that_of_the_sample_and_all_else_is_corrected():
    whole, _ = make_model(1.0)
    sampled, _ = make_model(RATE)
    features = make_features()
    label = (np.arange(40) % 3 == 0).astype("float32")
    for model in (whole, sampled):
        model.compile("sgd", metrics=tf_dlrm.metrics.click_metrics())
        model.fit(features, label, batch_size=40, epochs=2, verbose=0, shuffle=False)
    for a, b in zip(whole.get_weights(), sampled.get_weights()):
        np.testing.assert_array_equal(a, b)
    p = whole.predict(features, verbose=0)
    raw = whole(features, training=True)
    np.testing.assert_array_equal(sampled(features, training=True), raw)
    np.testing.assert_allclose(sampled(features), formula(p), rtol=2e-6)
    np.testing.assert_allclose(
        sampled.predict(features, verbose=0), formula(p), rtol=2e-6
    )
    found = sampled.evaluate(features, label, verbose=0, return_dict=True)
    q = formula(p[:, 0])
    loss = -np.mean(label * np.log(q) + (1 - label) * np.log1p(-q))
    assert found["log_loss"] == pytest.approx(loss, rel=1e-5)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["calibration"] == pytest.approx(q.mean() / label.mean(), rel=1e-5)
    before = whole.evaluate(features, label, verbose=0, return_dict=True)
    assert found["auc"] == pytest.approx(before["auc"], abs=1e-6)


def test_the_rate_is_saved_with_the_model(tmp_path):
    model, _ = make_model(RATE)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert again.negative_sampling_rate == RATE
    features = make_features()
    np.testing.assert_array_equal(again(features), model(features))
    shown = []
    again.summary(print_fn=shown.append)
    assert "Negatives sampled at 0.07" in shown[-1]
    config = model.get_config()
    del config["negative_sampling_rate"]  # of a file from before there was one
    assert tf_dlrm.DLRM.from_config(config).negative_sampling_rate == 1


@pytest.mark.parametrize("rate", [0, -1, 1.01, float("nan")])
def test_rates_out_of_range_are_refused(rate):
    with pytest.raises(ValueError, match="`negative_sampling_rate` must be above 0"):
        make_model(rate)
