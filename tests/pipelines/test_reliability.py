"""Reliability: numbers against NumPy on the rows themselves, and the whole job."""

import csv
import json

import numpy as np
import pytest
import tensorflow as tf

from pipelines import cli
from pipelines.evaluation import reliability, reliability_chart
from pipelines.runs.folder import RunFolder
from pipelines.synthetic import Planted
from tf_dlrm.metrics import ClickAUC

SMALL = [
    "--bottom-mlp-dims", "32", "8", "--top-mlp-dims", "32", "1",
    "--embedding-dim", "8", "--batch-size", "512",
]  # fmt: skip


def clicks(num_rows=30_000, center=-2.5, seed=0):
    rng = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-rng.normal(center, 1.3, num_rows)))
    return (rng.random(num_rows) < p).astype("float32"), p.astype("float32")


def measured(y, p, **kwargs):
    metric = ClickAUC()
    for i in range(0, len(y), 1000):
        metric.update_state(y[i : i + 1000], p[i : i + 1000])
    return reliability.from_histogram(*metric.histogram(), **kwargs)


def test_bins_equal_those_of_sorted_rows():
    y, p = clicks()
    found = measured(y, p)
    order = np.argsort(p, kind="stable")
    y, p = y[order].astype(np.float64), p[order].astype(np.float64)
    assert len(found.bins) == 20
    assert sum(b.num_rows for b in found.bins) == 30_000
    first, error = 0, 0.0
    for b in found.bins:
        # A bucket of the histogram, 0.0005 of a logit, is not divided.
        assert abs(b.num_rows - 1500) <= 30
        rows = slice(first, first + int(b.num_rows))
        assert b.num_clicks == y[rows].sum()
        assert b.observed == pytest.approx(y[rows].mean(), rel=1e-12)
        assert b.predicted == pytest.approx(p[rows].mean(), rel=3e-4)
        assert b.lowest == pytest.approx(p[rows][0], rel=3e-4)
        assert b.highest == pytest.approx(p[rows][-1], rel=3e-4)
        # Wilson's ends are the rates at which the click rate is 1.96 deviations away.
        for end in (b.observed_low, b.observed_high):
            deviation = np.sqrt(end * (1 - end) / b.num_rows)
            assert abs(b.observed - end) == pytest.approx(1.959964 * deviation)
        error += abs(p[rows].mean() - y[rows].mean()) * b.num_rows / 30_000
        first += int(b.num_rows)
    assert found.expected_calibration_error == pytest.approx(error, rel=2e-2)
    assert found.describe().keys() == {"expected_calibration_error"}


def test_the_calibration_without_the_correction():
    y, p = clicks()
    corrected = p.astype(np.float64)
    corrected = 0.1 * corrected / (0.1 * corrected + 1 - corrected)
    found = measured(y, corrected.astype("float32"), negative_sampling_rate=0.1)
    expected = p.mean(dtype=np.float64) / y.mean(dtype=np.float64)
    assert found.uncorrected_calibration == pytest.approx(expected, rel=3e-4)


def test_equal_predictions_share_a_bin_and_no_rows_are_told(tmp_path):
    y = np.array([0, 1, 0, 0], "float32")
    found = measured(y, np.full(4, 0.25, "float32"))
    (only,) = found.bins
    assert (only.num_rows, only.observed) == (4, 0.25)
    assert only.predicted == pytest.approx(0.25, rel=3e-4)
    nothing = measured(0 * y, np.array([0, 1, 0.5, 1e-30], "float32"))
    assert [b.observed for b in nothing.bins] == [0] * len(nothing.bins)
    for each in (found, nothing):  # pictures of odd data are drawn all the same
        reliability_chart.draw(each, {}, tmp_path / "picture.png")
    with pytest.raises(ValueError, match="no rows with predictions"):
        measured(y[:0], y[:0])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    planted = Planted(click_rate=0.1)
    for name, rows, first in (("train", 60_000, 0), ("test", 20_000, 60_000)):
        planted.write(folder / f"{name}.tsv", rows, first)
    return folder


def run(*words, code=0):
    assert cli.main([str(word) for word in words]) == code


def evaluate(out, source, *options):
    run("evaluate", "--model", out, "--input", source, *options)
    return json.loads((out / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def sampled(data, tmp_path_factory):
    """A run on all clicks and a tenth of the other rows."""
    out = tmp_path_factory.mktemp("run") / "tenth"
    options = ["--out", out, "--negative-sampling-rate", "0.1", *SMALL]
    run("train", "--train", data / "train.tsv", "--valid", data / "test.tsv", *options)
    return out


@pytest.mark.slow
def test_a_model_of_a_tenth_of_the_negatives_is_calibrated(
    data, sampled, tmp_path, capsys
):
    whole = tmp_path / "whole"
    run("train", "--train", data / "train.tsv", "--out", whole, *SMALL)
    expected = evaluate(whole, data / "test.tsv")
    capsys.readouterr()
    found = evaluate(sampled, data / "test.tsv")
    printed = capsys.readouterr().out
    # Nine of ten rows are no clicks: odds ten times too high, rates about five times.
    assert 4 < found["uncorrected_calibration"] < 6
    assert 0.9 < found["calibration"] < 1.1
    assert found["negative_sampling_rate"] == 0.1
    # From 11,000 rows where the other learned from 60,000.
    assert found["auc"] > expected["auc"] - 0.05
    assert "uncorrected_calibration" not in expected
    results = json.loads((sampled / "metrics.json").read_text())
    labels = np.array(
        [line[:1] == b"1" for line in (data / "train.tsv").read_bytes().splitlines()]
    )
    assert labels.sum() < results["num_rows"] < labels.sum() + 0.11 * (~labels).sum()
    assert results["num_rows"] + results["num_negatives_left_out"] == 60_000
    assert 0.8 < results["metrics"]["calibration"] < 1.2  # of the sample
    for name in ("auc", "calibration", "log_loss"):
        assert results["metrics"][f"val_{name}"] == pytest.approx(found[name], rel=1e-5)
    config = json.loads((sampled / "config.json").read_text())
    assert config["config"]["negative_sampling_rate"] == 0.1
    assert config["data"]["negative_sampling_rate"] == 0.1
    # The bins, in the run's folder, agree with the metrics.
    table, picture = (
        sampled / f"evaluation_reliability.{ending}" for ending in ("csv", "png")
    )
    assert str(table) in printed and str(picture) in printed
    assert picture.read_bytes().startswith(b"\x89PNG")
    with open(table) as file:
        bins = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(file)]
    assert len(bins) == 20 and sum(b["num_rows"] for b in bins) == 20_000
    predicted = sum(b["predicted"] * b["num_rows"] for b in bins)
    calibration = predicted / sum(b["num_clicks"] for b in bins)
    assert calibration == pytest.approx(found["calibration"], rel=1e-3)


@pytest.mark.integration
def test_predictions_and_exports_of_the_run_are_corrected(data, sampled, tmp_path):
    run("export", "--model", sampled, "--output", tmp_path / "m")
    text = (tmp_path / "m" / "1" / "assets.extra" / "tf_dlrm.json").read_text()
    assert json.loads(text)["negative_sampling_rate"] == 0.1
    scores = []
    for model in (sampled, tmp_path / "m"):
        output = tmp_path / f"{model.name}.csv"
        source = ["--input", data / "test.tsv", "--output", output]
        run("predict", "--model", model, *source)
        with open(output) as file:
            scores.append([float(r["probability"]) for r in csv.DictReader(file)])
    lines = (data / "test.tsv").read_bytes().splitlines()
    clicks = np.mean([line[:1] == b"1" for line in lines])
    assert 0.9 < np.mean(scores[1]) / clicks < 1.1
    np.testing.assert_allclose(*scores, rtol=1e-4)
    folder = RunFolder(sampled)
    parser = folder.load_parser()
    raw = folder.load_model(parser)(
        parser.features(tf.constant(lines[:200])), training=True
    )
    raw = raw.numpy()[:, 0].astype(np.float64)
    expected = raw / (raw + (1 - raw) / 0.1)
    np.testing.assert_allclose(scores[1][:200], expected, rtol=1e-4)


@pytest.mark.slow
def test_records_are_sampled_by_prepare_or_by_the_run_but_not_by_both(
    data, tmp_path, capsys
):
    shares = ["--valid-share", "0.1", "--test-share", "0.1", "--min-count", "5"]
    rate = ["--negative-sampling-rate", "0.2"]
    source = ["prepare", "--input", data / "train.tsv", *shares]
    run(*source, "--out", tmp_path / "whole")
    run(*source, "--out", tmp_path / "sampled", *rate)
    results = {}
    for name, options in (("whole", rate), ("sampled", [])):
        out = tmp_path / f"run_{name}"
        run("train", "--train", tmp_path / name, "--out", out, *options, *SMALL)
        assert RunFolder(out).load_model(RunFolder(out).load_parser())
        config = json.loads((out / "config.json").read_text())
        assert config["data"]["negative_sampling_rate"] == 0.2
        results[name] = evaluate(out, tmp_path / name)
        assert results[name]["num_rows"] == 6000  # all of them
        assert 0.88 < results[name]["calibration"] < 1.12
        assert 2.5 < results[name]["uncorrected_calibration"] < 4.5
    assert results["whole"]["auc"] == pytest.approx(results["sampled"]["auc"], abs=0.03)
    capsys.readouterr()
    again = ["train", "--train", tmp_path / "sampled", "--out", tmp_path / "x"]
    for dry in ([], ["--dry-run"]):
        run(*again, "--negative-sampling-rate", "0.5", *dry, code=2)
        error = capsys.readouterr().err
        assert "negative_sampling_rate=0.2" in error
        assert "negative_sampling_rate=0.5 is refused" in error
    run("train", "--train", tmp_path / "whole", "--out", tmp_path / "x", *rate, *SMALL)
    first, second = (
        json.loads((tmp_path / n / "metrics.json").read_text())
        for n in ("run_whole", "x")
    )
    assert first["num_rows"] == second["num_rows"] < 20_000
    assert first["metrics"] == second["metrics"]  # the same rows
    evaluated = ["evaluate", "--model", tmp_path / "run_sampled", "--split", "train"]
    run(*evaluated, "--input", tmp_path / "sampled", code=2)
    assert "'train' of" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["0", "1.5", "-1", "nan"])
def test_rates_out_of_range_are_refused(data, tmp_path, capsys, rate):
    train = ["train", "--train", data / "train.tsv", "--out", tmp_path / "r"]
    run(*train, "--negative-sampling-rate", rate, code=2)
    assert "--negative-sampling-rate must be above 0" in capsys.readouterr().err
