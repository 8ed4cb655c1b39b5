"""Export: signatures, sizes, versions, refusals, equality after reload."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

import numpy as np
import pytest
import tensorflow as tf

import tf_dlrm
from pipelines import criteo
from pipelines.vocabulary import Vocabulary
from tf_dlrm import EmbeddingTable, FeatureSpec, layers
from tf_dlrm.serving import export, versions

SIZES = (500, 7, 30)


def make_model(**kwargs):
    tables = [EmbeddingTable(f"C{i}", size, 8, "mean") for i, size in enumerate(SIZES)]
    spec = FeatureSpec(("I0", "I1"), tables)
    bottom = layers.MLP((8, 8), final_activation="relu", dropout=0.1)
    return tf_dlrm.DLRM(spec, bottom, (8, 1), **kwargs)


def make_features(hotness, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(-1, n, (9, hotness)) for n in SIZES], axis=1)
    return {
        "dense_features": rng.normal(size=(9, 2)).astype("float32"),
        "sparse_features": ids,
    }


def serve(path, features, signature="serving_default"):
    function = tf.saved_model.load(str(path)).signatures[signature]
    return function(**{k: tf.constant(v) for k, v in features.items()})


@pytest.mark.breadth(1)
@pytest.mark.parametrize("hotness", [1, 3])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_reload_equals_the_model(hotness, policy, tmp_path):
    model = make_model(dtype=policy)
    model.compile("adagrad")
    features = make_features(hotness)
    model.fit(features, np.ones(9), verbose=0)
    path = tf_dlrm.export_saved_model(model, tmp_path / "ctr", max_hotness=hotness)
    assert path == str(tmp_path / "ctr" / "1")
    out = serve(path, features)
    assert list(out) == ["probabilities"]
    expected = model.predict(features, verbose=0)
    np.testing.assert_allclose(out["probabilities"], expected, atol=1e-6)
    described = json.loads(
        (pathlib.Path(path) / "assets.extra/tf_dlrm.json").read_text()
    )
    assert described["max_hotness"] == hotness
    assert described["features"] == model.spec.get_config()


@pytest.mark.integration
def test_ids_out_of_range_count_as_none(tmp_path):
    model = make_model()
    path = tf_dlrm.export_saved_model(model, tmp_path, max_hotness=2)
    features = make_features(2)
    bad = np.array(features["sparse_features"])
    bad[0, 1], bad[1, 2], bad[2, 0] = [7, -5], [1 << 40, 3], [-(1 << 40), 500]
    outside = (bad < 0) | (bad >= np.array(SIZES)[:, None])
    expected = serve(path, features | {"sparse_features": np.where(outside, -1, bad)})
    got = serve(path, features | {"sparse_features": bad})
    np.testing.assert_array_equal(got["probabilities"], expected["probabilities"])


def test_each_weight_once_and_nothing_else(tmp_path):
    tables = [EmbeddingTable(f"C{i}", 20_000, 16) for i in range(3)]
    model = tf_dlrm.DLRM(FeatureSpec(("I0",), tables), (8, 16), (8, 1))
    model.compile("adam")
    model.fit(
        {"dense_features": np.ones((4, 1)), "sparse_features": np.ones((4, 3), int)},
        np.ones(4),
        verbose=0,
    )
    path = pathlib.Path(tf_dlrm.export_saved_model(model, tmp_path))
    written = sum(f.stat().st_size for f in (path / "variables").glob("*.data*"))
    weights = 4 * sum(int(np.prod(w.shape)) for w in model.weights)
    assert weights <= written <= 1.05 * weights


@pytest.mark.integration
def test_versions_count_up_and_are_never_overwritten(tmp_path):
    model = make_model()
    (tmp_path / "notes").mkdir()
    paths = [tf_dlrm.export_saved_model(model, tmp_path) for _ in range(2)]
    paths.append(tf_dlrm.export_saved_model(model, tmp_path, version=7))
    paths.append(tf_dlrm.export_saved_model(model, tmp_path))
    assert [pathlib.Path(p).name for p in paths] == ["1", "2", "7", "8"]
    with pytest.raises(FileExistsError, match="Version 7 .* never overwritten"):
        tf_dlrm.export_saved_model(model, tmp_path, version=7)
    assert {p.name for p in tmp_path.iterdir()} == {"1", "2", "7", "8", "notes"}


def test_exports_at_once_each_have_a_number(tmp_path):
    with versions.staged_directory(tmp_path, None) as slow:
        (slow.path / "slow").write_text("")
        with versions.staged_directory(tmp_path, None) as fast:
            (fast.path / "fast").write_text("")
    assert (fast.version, slow.version) == (1, 2)
    assert (tmp_path / "1" / "fast").exists() and (tmp_path / "2" / "slow").exists()
    with pytest.raises(FileExistsError, match="Version 3 .* never overwritten"):
        with versions.staged_directory(tmp_path, 3):
            (tmp_path / "3").mkdir()
    assert {path.name for path in tmp_path.iterdir()} == {"1", "2", "3"}


@pytest.mark.integration
def test_the_vocabulary_leaves_no_files_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    vocabulary = Vocabulary([[b"a"]] + [[]] * 25)
    parser = criteo.Parser(vocabulary)
    model = tf_dlrm.DLRM(parser.spec(embedding_dim=2), (2,), (1,))
    tf_dlrm.export_saved_model(model, tmp_path / "a", preprocessor=parser)
    vocabulary_files = [".vocabulary.*", "vocabulary.*"]
    left = [p for g in vocabulary_files for p in (tmp_path / "temporary").glob(g)]
    assert not left
    monkeypatch.setattr(export, "_replay", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tf_dlrm.export_saved_model(model, tmp_path / "a", preprocessor=parser)
    left = [p for g in vocabulary_files for p in (tmp_path / "temporary").glob(g)]
    assert not left and [path.name for path in (tmp_path / "a").iterdir()] == ["1"]


@pytest.mark.integration
def test_what_killed_exports_left_goes_after_a_day(tmp_path):
    old, fresh, other = (tmp_path / n for n in (".tmp-1-old", ".tmp-1-new", "notes"))
    for path in (old, fresh, other):
        (path / "variables").mkdir(parents=True)
    for path in (old, other):
        os.utime(path, (0, 0))
    tf_dlrm.export_saved_model(make_model(), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".tmp-1-new", "notes", "1"}


@pytest.mark.integration
@pytest.mark.parametrize(
    "num_kills", [2, pytest.param(200, marks=pytest.mark.slow, id="200")]
)
def test_versions_are_whole_whenever_an_export_is_killed(num_kills, tmp_path):
    script = pathlib.Path(__file__).with_name("crash_cases.py")
    command = [sys.executable, str(script), str(num_kills), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert f"passed: {num_kills} kills" in done.stdout, done.stderr[-3000:]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    model = make_model()

    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        tf_dlrm.export_saved_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_a_model_that_does_not_repeat_itself_is_not_put_in_place(tmp_path, monkeypatch):
    model = make_model()
    load = tf.saved_model.load

    def load_changed(path):
        loaded = load(path)
        loaded.weights[0].assign_add(tf.ones_like(loaded.weights[0]))
        return loaded

    monkeypatch.setattr(tf.saved_model, "load", load_changed)
    with pytest.raises(RuntimeError, match="differs from the"):
        tf_dlrm.export_saved_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["table", "kernel"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(where, value, tmp_path):
    model = make_model()
    if where == "table":
        rows = model.embedding.get_table("C0")
        rows[-1, -1] = value
        model.embedding.set_table("C0", rows)
    else:
        kernel = model.top_mlp.dense_layers[0].kernel
        kernel.assign(np.full(kernel.shape, value))
    with pytest.raises(ValueError, match="is not finite"):
        tf_dlrm.export_saved_model(model, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"version": 0}, "`version` must be"),
        ({"version": "3"}, "`version` must be"),
        ({"max_hotness": 0}, "`max_hotness` must be"),
    ],
)
def test_mistakes_are_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        tf_dlrm.export_saved_model(make_model(), tmp_path, **arguments)


def test_keras_export_points_here():
    with pytest.raises(ValueError, match="tf_dlrm.export_saved_model"):
        make_model().export("anywhere")


@pytest.mark.integration
def test_the_directory_can_be_moved(tmp_path):
    model = make_model()
    features = make_features(1)
    path = tf_dlrm.export_saved_model(model, tmp_path / "a")
    shutil.move(path, tmp_path / "b")
    np.testing.assert_allclose(
        serve(tmp_path / "b", features)["probabilities"],
        model.predict(features, verbose=0),
        atol=1e-6,
    )
