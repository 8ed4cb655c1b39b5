"""`tf-dlrm export --calibrate`: rows to a correction, its figures, and its export."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers.run_folders import PNG, make_run
from sklearn.metrics import log_loss, roc_auc_score

from pipelines import cli
from pipelines.evaluation import fit_on_rows
from pipelines.log_data import describe_data
from pipelines.runs.folder import RunFolder
from pipelines.synthetic import Planted


def test_training_rows_are_recognized(tmp_path):
    for name in ("a.tsv", "b.tsv", "c.tsv"):
        Planted().write(tmp_path / name, 20, 20 * ord(name[0]))
    paths = [str(tmp_path / name) for name in ("a.tsv", "b.tsv")]
    run = RunFolder(make_run(tmp_path / "run", data=describe_data(paths, None)))
    assert run.was_trained_on([f"{tmp_path}/[bc].tsv"], "valid")
    assert not run.was_trained_on([tmp_path / "c.tsv"], "valid")
    (tmp_path / "far").mkdir()
    copied = shutil.copy(tmp_path / "a.tsv", tmp_path / "far")
    assert run.was_trained_on([copied], "valid")
    shutil.copy(tmp_path / "c.tsv", copied)
    assert not run.was_trained_on([copied], "valid")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with records, a run on them, and files of new rows."""
    folder = tmp_path_factory.mktemp("place")
    for name, rows, first in (("all", 4000, 0), ("new", 3000, 5000)):
        Planted().write(folder / f"{name}.tsv", rows, first)
    for command in (
        "prepare --input {0}/all.tsv --out {0}/records --valid-share 0.3",
        "train --train {0}/records --out {0}/run --bottom-mlp-dims 16 8"
        " --top-mlp-dims 16 1 --embedding-dim 8 --batch-size 256 --epochs 3",
    ):
        assert cli.main(command.format(folder).split()) in (0, None)
    return folder


def scores(place, model, file):
    command = f"predict --model {place}/{model} --input {place}/{file} --overwrite"
    output = place / "scores.csv"
    assert cli.main([*command.split(), "--output", str(output)]) == 0
    with output.open() as lines:
        rows = list(csv.DictReader(lines))
    columns = [[float(r[name]) for r in rows] for name in ("label", "probability")]
    return np.array(columns)


@pytest.mark.integration
def test_the_command_exports_what_it_fitted(place, capsys):
    command = f"export --model {place}/run --output {place}/ctr --calibrate platt"
    command += f" --calibration-input {place}/new.tsv --calibration-slice C3"
    command += " --min-slice-rows 300"
    assert cli.main([*command.split(), "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "fit a correction (platt) by C3 on" in plan
    assert not (place / "run/calibration.json").exists()
    assert cli.main(command.split()) == 0
    printed = capsys.readouterr().out
    assert "Values of C3 with a correction of their own: " in printed
    assert "Warning" not in printed
    written = json.loads((place / "run/calibration.json").read_text())
    assert written["num_rows"] == 3000 and written["correction"]["method"] == "platt"
    assert (place / "run/calibration.png").read_bytes().startswith(PNG)

    labels, before = scores(place, "run", "new.tsv")
    figures = written["before"]
    assert figures["log_loss"] == pytest.approx(log_loss(labels, before), rel=1e-6)
    assert figures["auc"] == pytest.approx(roc_auc_score(labels, before), rel=1e-6)
    expected = before.mean() / labels.mean()
    assert figures["calibration"] == pytest.approx(expected, rel=1e-5)
    assert written["after"]["calibration"] == pytest.approx(1, abs=0.03)
    assert written["after"]["log_loss"] < figures["log_loss"]
    for name, column in (("before", before), ("after", None)):
        with (place / f"run/calibration_{name}.csv").open() as lines:
            bins = list(csv.DictReader(lines))
        assert sum(float(b["num_rows"]) for b in bins) == 3000
        assert sum(float(b["num_clicks"]) for b in bins) == labels.sum()
        if column is not None:
            lowest = min(float(b["lowest"]) for b in bins)
            assert lowest == pytest.approx(column.min(), rel=1e-4)

    # The scores of the export are those of the service: the fit on all rows.
    labels, after = scores(place, "ctr", "new.tsv")
    assert after.mean() == pytest.approx(labels.mean(), rel=1e-4)
    run = RunFolder(place / "run")
    parser = run.load_parser()
    model = run.load_model(parser)
    fitted = fit_on_rows(model, parser, place / "new.tsv", "platt", "C3", 300)
    assert fitted.describe() == {k: written[k] for k in fitted.describe()}
    lines = (place / "new.tsv").read_bytes().splitlines()
    ids = [bag[2] for bag in parser.features(lines)["sparse_features"].to_list()]
    ids = np.array([bag[0] if bag else -1 for bag in ids])
    expected = fitted.correction(before, ids)
    np.testing.assert_allclose(after, expected, rtol=0, atol=2e-6)


@pytest.mark.integration
def test_records_fit_it_too_and_training_rows_cause_a_warning(place, capsys):
    command = f"export --model {place}/run --output {place}/m --calibrate isotonic"
    command += f" --calibration-input {place}/records"
    assert cli.main(command.split()) == 0
    assert "Warning" not in capsys.readouterr().out
    split = RunFolder(place / "run").read()["data"]["records"]
    assert split == str(place / "records")
    assert cli.main([*command.split(), "--calibration-split", "train"]) == 0
    printed = capsys.readouterr().out
    assert "Warning: " in printed and "--calibration-input" in printed


@pytest.mark.integration
def test_mistakes_are_one_line(place, capsys):
    export = f"export --model {place}/run --output {place}/none"
    rows = f"--calibration-input {place}/new.tsv"
    (place / "clicks.tsv").write_bytes(
        b"".join(
            line
            for line in (place / "new.tsv").read_bytes().splitlines(keepends=True)
            if line.startswith(b"1")
        )
    )
    for options, message in (
        (rows, "--calibration-input has no effect without --calibrate"),
        ("--calibration-slice C1", "--calibration-slice has no effect without"),
        ("--calibrate platt", "name labelled files with --calibration-input"),
        (f"--calibrate platt {rows} --calibration-slice I1",
         "--calibration-slice must be a categorical feature of the model: C1"),
        (f"--calibrate platt {rows} --calibration-slice C3",
         "No value of C3 has --min-slice-rows 10000 rows"),
        (f"--calibrate platt --calibration-input {place}/clicks.tsv",
         "have the label 1; a correction needs rows with and without a click"),
    ):  # fmt: skip
        assert cli.main([*export.split(), *options.split()]) == 2, options
        error = capsys.readouterr().err
        assert message in error and error.strip().count("\n") == 0, error
    assert not (place / "none").exists()
