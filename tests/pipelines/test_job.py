"""The whole job: generated data against its optimum, real rows against the target."""

import importlib.util
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from pipelines.runs import demo


def load_benchmark(name):
    """By path: other projects install a package called benchmarks."""
    path = pathlib.Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_real_rows_beat_logistic_regression(real_rows, tmp_path):
    """A hashed logistic regression has AUC 0.738 and log loss 0.471 on these rows."""
    found = load_benchmark("criteo_sample").measure(
        real_rows / "criteo_kaggle_sample.tsv.gz", tmp_path
    )
    assert np.mean(found["test"]["auc"]) >= 0.738
    assert np.mean(found["test"]["log_loss"]) <= 0.473
    assert np.mean(found["later"]["auc"]) >= 0.738


def test_demo_is_the_whole_job(tmp_path, capsys):
    result = demo.run(tmp_path / "demo", num_rows=50_000)
    printed = capsys.readouterr().out
    for place in ("data", "run", "run/logs", "saved_model/1"):
        assert str(tmp_path / "demo" / place) in printed
        assert (tmp_path / "demo" / place).is_dir()
    assert "click probability 0." in printed and "best possible" in printed
    assert 0.68 < result["metrics"]["auc"] < result["best_possible"]["best_auc"]
    evaluation = json.loads((tmp_path / "demo/run/evaluation.json").read_text())
    assert evaluation["auc"] == result["metrics"]["auc"]
    with pytest.raises(FileExistsError, match="already holds a run"):
        demo.run(tmp_path / "demo", num_rows=50_000)
    with pytest.raises(ValueError, match="--rows must be at least 1000"):
        demo.run(tmp_path / "other", num_rows=999)


@pytest.mark.slow
def test_a_million_planted_rows_come_within_0005_of_the_optimum(tmp_path):
    result = demo.run(tmp_path / "demo")
    assert result["best_possible"]["best_auc"] - result["metrics"]["auc"] < 0.005


def test_importing_the_package_is_silent():
    """No warnings of ours, and the command's modules without TensorFlow."""
    code = "import pipelines.commands, sys; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n" and done.stderr == ""
