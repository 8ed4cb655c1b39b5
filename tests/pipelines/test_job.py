"""The whole job: generated data against its optimum, real rows against the target."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import roc_auc_score

from pipelines import demonstration, evaluation, runs
from pipelines.runs.folder import RunFolder
from pipelines.synthetic import Planted
from tf_dlrm.serving import quantization

pytestmark = pytest.mark.integration


def load_benchmark(name):
    """By path: other projects install a package called benchmarks."""
    path = pathlib.Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def real_runs(real_rows, tmp_path_factory):
    """Scores of runs on real rows, and the folder with the runs."""
    folder = tmp_path_factory.mktemp("real")
    path = real_rows / "criteo_kaggle_sample.tsv.gz"
    return load_benchmark("criteo_sample").measure(path, folder), folder


def test_real_rows_beat_logistic_regression(real_runs):
    """A hashed logistic regression has AUC 0.738 and log loss 0.471 on these rows."""
    found, _ = real_runs
    assert np.mean(found["test"]["auc"]) >= 0.738
    assert np.mean(found["test"]["log_loss"]) <= 0.473
    assert np.mean(found["later"]["auc"]) >= 0.738


@pytest.mark.parametrize(("bits", "allowed"), [(8, 0.0005), (4, 0.005)])
def test_quantized_tables_rank_real_rows_as_they_did(bits, allowed, real_runs):
    _, folder = real_runs
    run = RunFolder(folder / "run-0")
    parser = run.load_parser()
    model = run.load_model(parser)
    labels = [int(line[:1]) for line in (folder / "test.tsv").read_bytes().splitlines()]
    lines = tf.constant((folder / "test.tsv").read_bytes().splitlines())
    features = parser.features(lines)

    def auc():
        return roc_auc_score(labels, model.predict(features, verbose=0)[:, 0])

    before = auc()
    for table in model.spec.tables:
        stored = quantization.quantize(model.embedding.get_table(table.name), bits)
        rows = quantization.dequantize(stored, table.embedding_dim, bits)
        model.embedding.set_table(table.name, rows)
    assert 0 < abs(auc() - before) <= allowed


def test_demo_is_the_whole_job(tmp_path, capsys):
    result = demonstration.run(tmp_path / "demo", num_rows=50_000)
    printed = capsys.readouterr().out
    for place in ("data", "run", "run/logs", "saved_model/1"):
        assert str(tmp_path / "demo" / place) in printed
        assert (tmp_path / "demo" / place).is_dir()
    assert "click probability 0." in printed and "best possible" in printed
    assert (tmp_path / "demo/demo.png").read_bytes().startswith(b"\x89PNG")
    assert 0.68 < result["metrics"]["auc"] < result["best_possible"]["best_auc"]
    evaluation = json.loads((tmp_path / "demo/run/evaluation.json").read_text())
    assert evaluation["auc"] == result["metrics"]["auc"]
    with pytest.raises(FileExistsError, match="already contains a run"):
        demonstration.run(tmp_path / "demo", num_rows=50_000)
    with pytest.raises(ValueError, match="`num_rows` must be at least 1000"):
        demonstration.run(tmp_path / "other", num_rows=999)


@pytest.mark.slow
def test_the_demo_comes_within_001_of_the_optimum(tmp_path):
    result = demonstration.run(tmp_path / "demo")
    assert result["best_possible"]["best_auc"] - result["metrics"]["auc"] < 0.01


@pytest.mark.slow
def test_a_million_planted_rows_come_within_0005_of_the_optimum(tmp_path):
    planted, first, reports = Planted(), 0, []
    for name, rows in (("train", 1_000_000), ("valid", 100_000), ("test", 100_000)):
        reports.append(planted.write(tmp_path / f"{name}.tsv", rows, first))
        first += rows
    train, valid, test = (report.path for report in reports)
    folder, _ = runs.train(runs.get("demo"), train, valid, tmp_path / "run")
    parser = folder.load_parser()
    metrics = evaluation.evaluate(folder.load_model(parser), parser, test)
    assert reports[-1].best_auc - metrics["auc"] < 0.005


def test_importing_the_package_is_silent():
    """No warnings of ours, and the command's modules without TensorFlow."""
    code = "import pipelines.commands, sys; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n" and done.stderr == ""
