"""The command as a person meets it: the whole job, and one clear line for mistakes."""

import csv
import dataclasses
import gzip
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import event_files

from pipelines import cli, records, runs
from pipelines.runs.folder import RunFolder
from pipelines.synthetic import Planted

pytestmark = pytest.mark.integration

SMALL = [
    "--bottom-mlp-dims", "16", "8", "--top-mlp-dims", "16", "1",
    "--embedding-dim", "8", "--batch-size", "256",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, rows, first in (("train", 3000, 0), ("valid", 700, 3000)):
        Planted().write(folder / f"{name}.tsv", rows, first)
    return folder


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "one"
    arguments = [
        "train",
        "--train",
        f"{data}/train.tsv",
        "--valid",
        f"{data}/valid.tsv",
    ]
    assert cli.main([*arguments, "--out", str(out), "--epochs", "2", *SMALL]) == 0
    return out


def fails(arguments, capsys):
    """Runs a command that must fail in one line; returns the line."""
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert "Traceback" not in error
    return error


def test_a_run_folder_is_whole(trained):
    config = json.loads((trained / "config.json").read_text())
    assert config["config"]["epochs"] == 2
    assert config["data"]["run"] is None
    assert config["data"]["train"][0].endswith("train.tsv")
    results = json.loads((trained / "metrics.json").read_text())
    assert results["num_rows"] == 3000 and results["num_valid_rows"] == 700
    expected = {"auc", "log_loss", "normalized_entropy", "calibration", "accuracy"}
    assert expected <= set(results["metrics"])
    assert {f"val_{name}" for name in expected} <= set(results["metrics"])
    with open(trained / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["val_auc"]) == results["metrics"]["val_auc"]
    with open(trained / "steps.csv") as file:
        *_, validation, training = csv.DictReader(file)
    assert validation["step"] == training["step"] == "24"
    assert validation["val_auc"] == rows[-1]["val_auc"] and validation["auc"] == ""
    assert training["auc"] == rows[-1]["auc"] and training["val_auc"] == ""
    *_, times = map(json.loads, (trained / "times.jsonl").read_text().splitlines())
    for name in ("training_seconds", "validation_seconds"):
        assert times[name] == results[name]
    assert times["waiting_seconds"] > 0 and times["num_rows"] == 6000
    assert (trained / "vocabulary.tsv").exists() and (trained / "model.keras").exists()


def test_tensorboard_has_what_it_should(trained):
    train, validation = (
        event_files.read(trained / "logs" / part) for part in ("train", "validation")
    )
    names = ("loss", "auc", "log_loss", "normalized_entropy", "calibration", "accuracy")
    metrics = {f"metrics/{name}" for name in names}
    speed = "speed/samples_per_second"
    assert metrics | {speed, "speed/input_wait_share", "speed/checkpoint_seconds"} <= (
        set(train)
    )
    assert {"optimizer/learning_rate", "gradients/dense_norm"} <= set(train)
    for group in ("rows_touched", "rows_dead", "row_norm_mean", "row_norm_max"):
        assert {f"{group}/C{i}" for i in range(1, 27)} <= set(train)
    assert metrics | {speed, "precision_recall/pr_curves"} <= set(validation)
    assert list(validation["metrics/auc"]) == [12, 24]  # 3,000 rows, batches of 256
    results = json.loads((trained / "metrics.json").read_text())["metrics"]
    written = validation["metrics/auc"][24]
    assert written == pytest.approx(results["val_auc"], abs=1e-6)
    assert min(train[speed].values()) > 0
    values, metrics, _ = event_files.hyperparameters(trained / "logs")
    assert values["optimizer"] == "adagrad" and values["bottom_mlp_dims"] == "16-8"
    assert ("metrics/auc", "validation") in metrics


def test_more_is_watched_where_asked(data, tmp_path, capsys):
    out, path = tmp_path / "run", data / "train.tsv"
    command = ["train", "--train", path, "--out", out, *SMALL, "--min-count", "3"]
    watched = ["--histograms", "--projector-tables", "C1", "C3", "--profile-steps"]
    more = [*watched, "3:4", "--no-gradient-norms", "--no-touched-rows"]
    assert cli.main([str(each) for each in [*command, *more]]) == 0
    assert "metric              training\n" in capsys.readouterr().out
    part = out / "logs" / "train"
    found = event_files.read(part)
    assert {"weights/top_mlp/dense_0/kernel", "rows/C1"} <= set(found)
    assert not {"gradients/dense_norm", "rows_dead/C1"} & set(found)
    assert list(part.glob("plugins/profile/*/*.xplane.pb"))
    vocabulary = RunFolder(out).read_vocabulary()
    labels = (part / "projector" / "C3_labels.tsv").read_text("utf-8").splitlines()
    assert labels[:2] == ["value\tid", "(empty or rare)\t0"]
    expected = [value.decode() for value in vocabulary.values("C3")]
    assert [line.split("\t")[0] for line in labels[2:]] == expected
    for bad, message in (
        (["--profile-steps", "5"], "must be FIRST:LAST"),
        (["--profile-steps", "9:3"], "must be FIRST:LAST"),
        (["--profile-steps", "1:5000"], "at most 1,000 steps"),
        (["--projector-tables", "C27"], "no table C27. Tables: C1, C2,"),
        (["--projector-rows", "0"], "must be 1 to 100,000"),
    ):
        assert message in fails([*command, *bad], capsys)


def test_evaluate_repeats_the_validation(trained, data, tmp_path, capsys):
    output = tmp_path / "e.json"
    command = ["evaluate", "--model", trained, "--input", f"{data}/valid.tsv"]
    assert cli.main([*map(str, command), "--output", str(output)]) == 0
    assert "log_loss" in capsys.readouterr().out
    got = json.loads(output.read_text())
    expected = json.loads((trained / "metrics.json").read_text())["metrics"]
    for name in ("auc", "log_loss", "calibration"):
        assert got[name] == pytest.approx(expected[f"val_{name}"], rel=1e-5)
    assert got["num_rows"] == 700


def test_evaluate_on_rows_without_clicks_has_no_auc(trained, data, tmp_path, capsys):
    lines = (data / "valid.tsv").read_bytes().splitlines(keepends=True)
    negatives = [line for line in lines if line.startswith(b"0")]
    (tmp_path / "v.tsv").write_bytes(b"".join(negatives))
    output = tmp_path / "e.json"
    command = ["evaluate", "--model", trained, "--input", tmp_path / "v.tsv"]
    assert cli.main([*map(str, command), "--output", str(output)]) == 0
    found = json.loads(output.read_text())
    assert found["auc"] is None and found["num_rows"] == len(negatives)
    assert found["log_loss"] > 0 and "nan" in capsys.readouterr().out


def test_predict_from_the_run_and_from_the_export_agree(trained, data, tmp_path):
    exported = tmp_path / "saved_model"
    assert cli.main(["export", "--model", str(trained), "--output", str(exported)]) == 0
    assert (exported / "1" / "saved_model.pb").exists()
    lines = (data / "valid.tsv").read_bytes().splitlines()[:50]
    unlabelled = [line.split(b"\t", 1)[1] for line in lines]
    mixed = [*lines[:20], *unlabelled[20:30], b"not a row", *lines[30:]]
    source = tmp_path / "mixed.tsv.gz"
    source.write_bytes(gzip.compress(b"\n".join(mixed)))
    scores = {}
    for name, model in (("run", trained), ("exported", exported)):
        output = tmp_path / f"{name}.csv"
        command = ["predict", "--model", model, "--input", source, "--output", output]
        assert cli.main([*map(str, command), "--max-bad-share", "0.1"]) == 0
        with open(output) as file:
            rows = list(csv.DictReader(file))
        assert [row["line"] for row in rows] == [str(i) for i in range(1, 52)]
        assert {row["file"] for row in rows} == {str(source)}
        labels = [line[:1].decode() for line in lines]
        labels[20:] = [""] * 11 + labels[30:]
        assert [row["label"] for row in rows] == labels
        scores[name] = [row["probability"] for row in rows]
        bad = pathlib.Path(f"{output}.bad_rows.tsv").read_text().splitlines()
        assert len(bad) == 2 and "\t31\t" in bad[1] and "not a row" in bad[1]
    for values in scores.values():
        assert values[30] == ""
    kept = [i for i in range(51) if i != 30]
    got = np.array([float(scores["exported"][i]) for i in kept])
    np.testing.assert_allclose(got, [float(scores["run"][i]) for i in kept], atol=1e-6)
    folder = RunFolder(trained)
    parser = folder.load_parser()
    features, _ = parser(tf.constant(lines))
    expected = folder.load_model(parser)(features)[:, 0]
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_prepare_and_train_with_its_vocabulary(data, tmp_path, capsys):
    prepared = tmp_path / "prepared"
    command = ["prepare", "--input", f"{data}/*.tsv", "--out", prepared]
    assert cli.main([*map(str, command), "--min-count", "5"]) == 0
    manifest = records.Manifest.load(prepared)
    assert manifest.num_rows("train") == 3700
    out = tmp_path / "run"
    options = ["--vocabulary", prepared / "vocabulary.tsv", "--out", out, *SMALL]
    command = ["train", "--train", f"{data}/train.tsv", *options]
    assert cli.main([*map(str, command)]) == 0
    folder = RunFolder(out)
    assert list(folder.load_parser().vocabulary.sizes) == list(
        manifest.schema.vocabulary_sizes
    )
    # The rows are those of the training, not those of the vocabulary.
    results = json.loads((out / "metrics.json").read_text())
    assert results["num_rows"] == 3000
    config = folder.load_model(folder.load_parser()).optimizer.get_config()
    assert config["learning_rate"]["config"]["decay_steps"] == 2 * 12  # epochs


def test_train_and_evaluate_on_records(data, tmp_path, capsys):
    prepared, out = tmp_path / "prepared", tmp_path / "run"
    command = ["prepare", "--input", data / "train.tsv", "--out", prepared]
    options = ["--min-count", "5", "--valid-share", "0.1", "--test-share", "0.1"]
    assert cli.main([*map(str, command), *options]) == 0
    command = ["train", "--train", prepared, "--out", out, *SMALL]
    assert cli.main([*map(str, command), "--dry-run"]) == 0
    assert "train 2,400, valid 300, test 300 rows" in capsys.readouterr().out
    assert cli.main([*map(str, command)]) == 0
    results = json.loads((out / "metrics.json").read_text())
    assert (results["num_rows"], results["num_valid_rows"]) == (2400, 300)
    assert results["metrics"]["val_loss"] > 0
    command = ["evaluate", "--model", out, "--input", prepared]
    assert cli.main([*map(str, command)]) == 0
    evaluated = json.loads((out / "evaluation.json").read_text())
    assert evaluated["num_rows"] == 300
    # The same rows as text give the same metrics.
    lines = (data / "train.tsv").read_bytes().splitlines(keepends=True)
    (tmp_path / "test.tsv").write_bytes(b"".join(lines[2700:]))
    command = ["evaluate", "--model", out, "--input", tmp_path / "test.tsv"]
    assert cli.main([*map(str, command)]) == 0
    again = json.loads((out / "evaluation.json").read_text())
    for name in ("auc", "log_loss", "calibration"):
        assert again[name] == pytest.approx(evaluated[name], rel=1e-6)
    command = ["train", "--train", prepared, "--out", tmp_path / "other"]
    assert cli.main([*map(str, command), "--valid", str(data / "train.tsv")]) == 2
    assert "leave --valid, --vocabulary and --schema out" in capsys.readouterr().err


def test_a_model_of_expanded_rows_expands_what_it_scores(data, tmp_path, capsys):
    prepared, out, model = tmp_path / "prepared", tmp_path / "run", tmp_path / "model"
    command = ["prepare", "--input", data / "train.tsv", "--out", prepared]
    options = ["--min-count", "5", "--test-share", "0.1", "--multi-hot", "uniform"]
    assert cli.main([*map(str, command), *options]) == 0
    command = ["train", "--train", prepared, "--out", out, *SMALL]
    assert cli.main([*map(str, command)]) == 0
    lines = (data / "train.tsv").read_bytes().splitlines(keepends=True)
    (tmp_path / "test.tsv").write_bytes(b"".join(lines[2700:]))
    found = []
    for source in (prepared, tmp_path / "test.tsv"):
        command = ["evaluate", "--model", out, "--input", source]
        assert cli.main([*map(str, command)]) == 0
        found.append(json.loads((out / "evaluation.json").read_text())["log_loss"])
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert cli.main(["export", "--model", str(out), "--output", str(model)]) == 0
    scores = []
    for scorer in (out, model):
        command = ["predict", "--model", scorer, "--input", tmp_path / "test.tsv"]
        output = tmp_path / f"{scorer.name}.csv"
        assert cli.main([*map(str, command), "--output", str(output)]) == 0
        with open(output) as file:
            scores.append([float(r["probability"]) for r in csv.DictReader(file)])
    np.testing.assert_allclose(*scores, atol=1e-6)
    labels = [int(line[:1]) for line in lines[2700:]]
    clipped = np.clip(scores[0], 1e-7, 1 - 1e-7)
    loss = -np.mean(np.where(labels, np.log(clipped), np.log(1 - clipped)))
    assert loss == pytest.approx(found[0], rel=1e-4)
    plain = tmp_path / "plain"
    command = ["prepare", "--input", data / "train.tsv", "--out", plain]
    vocabulary = str(prepared / "vocabulary.tsv")
    options = ["--vocabulary", vocabulary, "--test-share", "0.1"]
    assert cli.main([*map(str, command), *options]) == 0
    assert cli.main(["evaluate", "--model", str(out), "--input", str(plain)]) == 2
    assert "other bags (`multi_hot`)" in capsys.readouterr().err


def test_training_by_hashing_needs_no_vocabulary(data, tmp_path):
    command = ["train", "--train", f"{data}/train.tsv", "--out", f"{tmp_path}/r"]
    assert cli.main([*command, "--hash-buckets", "50", *SMALL]) == 0
    parser = RunFolder(tmp_path / "r").load_parser()
    assert set(parser.vocabulary.sizes) == {50}


def test_generate_says_what_is_possible(tmp_path, capsys):
    path = tmp_path / "new" / "a.tsv.gz"
    assert cli.main(["generate", "--output", str(path), "--rows", "500"]) == 0
    report = json.loads(pathlib.Path(f"{path}.json").read_text())
    assert report["num_rows"] == 500
    assert f"{report['best_auc']:.4f}" in capsys.readouterr().out
    assert len(gzip.decompress(path.read_bytes()).splitlines()) == 500


@pytest.mark.parametrize(
    "command",
    [
        ["generate", "--output", "{tmp}/a.tsv"],
        ["prepare", "--input", "{data}/train.tsv", "--out", "{tmp}/p"],
        ["train", "--train", "{data}/train.tsv", "--out", "{tmp}/r"],
        ["tune", "--train", "{data}/train.tsv", "--out", "{tmp}/t"],
        ["evaluate", "--model", "{run}", "--input", "{data}/valid.tsv"],
        ["importance", "--model", "{run}", "--input", "{data}/valid.tsv"],
        ["tables", "--model", "{run}"],
        ["predict", "--model", "{run}", "--input", "{data}/valid.tsv",
         "--output", "{tmp}/s"],
        ["export", "--model", "{run}", "--output", "{tmp}/m"],
        ["demo", "--out", "{tmp}/d"],
    ],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_dry_run_prints_and_does_nothing(command, data, trained, tmp_path, capsys):
    words = [w.format(tmp=tmp_path, data=data, run=trained) for w in command]
    assert cli.main([*words, "--dry-run"]) == 0
    assert (
        "Dry run: nothing is written. The command would:\n- " in capsys.readouterr().out
    )
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(data, trained, tmp_path, capsys):
    train = ["train", "--out", tmp_path / "r"]
    good = f"{data}/train.tsv"
    (tmp_path / "empty.tsv").write_bytes(b"")
    (tmp_path / "wide.tsv").write_bytes(b"1\t" * 60 + b"\n")
    (tmp_path / "there.csv").write_text("of great value")
    cases = [
        (["fly"], "there is no command 'fly'"),
        ([*train, "--train", good, "--colour", "red"], "options: --colour"),
        ([*train, "--train", good, "--epochs", "many"], "--epochs"),
        (train, "--train"),
        ([*train, "--train", good, "--run", "nope"], "There is no named run 'nope'"),
        ([*train, "--train", "/no/such.tsv"], "no file '/no/such.tsv'"),
        ([*train, "--train", "/no/such*"], "No file matches"),
        ([*train, "--train", data], "is a directory"),
        ([*train, "--train", tmp_path / "empty.tsv"], "files are empty"),
        ([*train, "--train", tmp_path / "wide.tsv"], "wide.tsv:1"),
        ([*train, "--train", good, "--top-mlp-dims", "8", "2"], "must end in 1"),
        (["evaluate", "--model", tmp_path, "--input", good], "not the folder of a run"),
        (["predict", "--model", tmp_path, "--input", good, "--output", tmp_path / "s"],
         "contains no SavedModel"),
        (["export", "--model", trained, "--output", tmp_path / "m", "--version", "0"],
         "--version must be"),
        (["train", "--train", good, "--out", trained], "already contains a run"),
        (["generate", "--output", tmp_path / "a", "--rows", "0"], "--rows must be"),
        ([*train, "--train", good, "--batch-size", "0"], "--batch-size must be"),
        ([*train, "--train", good, "--epochs", "0"], "--epochs must be"),
        ([*train, "--train", good, "--learning-rate", "nan"], "--learning-rate must"),
        ([*train, "--train", good, "--learning-rate", "-1"], "--learning-rate must"),
        ([*train, "--train", good, "--dropout", "2"], "--dropout must be"),
        ([*train, "--train", good, "--hash-buckets", "1"], "--hash-buckets must be"),
        ([*train, "--train", good, "--embedding-dim", "8"], "--bottom-mlp-dims must"),
        ([*train, "--train", good, good], "listed twice"),
        ([*train, "--train", good, "--vocabulary", tmp_path / "v", "--min-count", "3"],
         "--min-count 3 has no effect with --vocabulary"),
        (["evaluate", "--model", trained, "--input", good, "--output", tmp_path],
         "is a directory"),
        (["predict", "--model", trained, "--input", good, "--output", good],
         "is one of the input files"),
        (["predict", "--model", trained, "--input", good, "--output",
          tmp_path / "there.csv"],
         "already exists. Name another --output, or replace it with --overwrite"),
        (["predict", "--model", "/nowhere", "--input", good, "--output",
          tmp_path / "s"], "no folder /nowhere"),
        (["predict", "--model", trained, "--input", good, "--output", tmp_path / "s",
          "--batch-size", "0"], "--batch-size must be"),
        (["evaluate", "--model", tmp_path, "--input", good, "--dry-run"],
         "not the folder of a run"),
        (["export", "--model", tmp_path, "--dry-run"], "not the folder of a run"),
    ]  # fmt: skip
    for arguments, message in cases:
        assert message in fails(arguments, capsys), arguments


def test_bad_rows_stop_training_with_place_and_reason(data, tmp_path, capsys):
    lines = (data / "train.tsv").read_bytes().splitlines()
    lines[41] = lines[41].replace(b"\t", b"\t\t", 1)
    (tmp_path / "bad.tsv").write_bytes(b"\n".join(lines))
    command = [
        "train",
        "--train",
        tmp_path / "bad.tsv",
        "--out",
        tmp_path / "r",
        *SMALL,
    ]
    line = fails(command, capsys)
    assert "bad.tsv:42: " in line and "1 of 3,000 rows" in line
    command[4] = tmp_path / "again"
    assert cli.main([*map(str, command), "--max-bad-share", "0.001"]) == 0
    bad = (tmp_path / "again" / "bad_rows.tsv").read_text().splitlines()
    assert len(bad) == 2 and "\t42\t" in bad[1]
    results = json.loads((tmp_path / "again" / "metrics.json").read_text())
    assert results["num_bad_rows"] == 1 and results["num_rows"] == 2999


def test_bad_validation_rows_stop_before_the_training(data, tmp_path, capsys):
    (tmp_path / "bad.tsv").write_bytes(b"no row\n" * 3)
    train = ["train", "--train", f"{data}/train.tsv", "--out", tmp_path / "r", *SMALL]
    line = fails([*train, "--valid", tmp_path / "bad.tsv"], capsys)
    assert "3 of 3 rows" in line and "bad.tsv:1: " in line
    assert (tmp_path / "r" / "bad_rows_valid.tsv").exists()
    line = fails(
        [*train, "--valid", tmp_path / "bad.tsv", "--max-bad-share", "1"], capsys
    )
    assert "contains no valid rows" in line


def test_runs_that_did_not_train_are_not_kept(data, tmp_path, capsys):
    (tmp_path / "bad.tsv").write_bytes(b"no row\n" * 3)
    train = ["train", "--out", tmp_path / "r", *SMALL]
    options = ["--hash-buckets", "9", "--max-bad-share", "1"]
    line = fails([*train, "--train", tmp_path / "bad.tsv", *options], capsys)
    assert "There are no valid rows to train on" in line
    diverge = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: logs.update(loss=float("nan"))
    )
    with pytest.raises(ValueError, match="diverged"):
        config = dataclasses.replace(runs.get("demo"), hash_buckets=9)
        runs.train(config, data / "train.tsv", None, tmp_path / "r", None, [diverge])
    assert not (tmp_path / "r" / "model.keras").exists()


def test_evaluate_sets_bad_rows_aside_and_ignores_other_files(
    trained, data, tmp_path, capsys
):
    rows = (data / "valid.tsv").read_bytes() + b"no row\n"
    (tmp_path / "v.tsv").write_bytes(rows)
    (tmp_path / "v.tsv.json").write_text("somebody else's")
    output = tmp_path / "e.json"
    command = ["evaluate", "--model", trained, "--input", tmp_path / "v.tsv"]
    command += ["--output", output]
    line = fails(command, capsys)
    assert "v.tsv:701: " in line and f"{output}.bad_rows.tsv" in line
    assert cli.main([*map(str, command), "--max-bad-share", "0.01"]) == 0
    assert "\t701\t" in pathlib.Path(f"{output}.bad_rows.tsv").read_text()
    assert json.loads(output.read_text())["num_bad_rows"] == 1
    (tmp_path / "none.tsv").write_bytes(b"no row\n")
    command[4] = tmp_path / "none.tsv"
    assert "contains no valid rows" in fails([*command, "--max-bad-share", "1"], capsys)


def test_another_model_in_the_folder_is_refused(trained, data, tmp_path, capsys):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    with open(copy / "model.keras", "ab") as file:
        file.write(b"x")
    command = ["evaluate", "--model", copy, "--input", f"{data}/valid.tsv"]
    assert "is not the model that this run wrote" in fails(command, capsys)
    (copy / "config.json").write_text("{}")
    assert "config.json is damaged" in fails(command, capsys)


def test_a_damaged_export_is_one_line(trained, data, tmp_path, capsys):
    import shutil

    assert (
        cli.main(["export", "--model", str(trained), "--output", f"{tmp_path}/m"]) == 0
    )
    shutil.rmtree(tmp_path / "m" / "1" / "variables")
    command = ["predict", "--model", tmp_path / "m", "--input", f"{data}/valid.tsv"]
    assert "variables" in fails([*command, "--output", tmp_path / "s.csv"], capsys)


@pytest.mark.parametrize(
    "words, message",
    [
        (["evaluate", "--model", "nowhere", "--input", __file__], "no folder nowhere"),
        (["prepare", "--multi-hot", "uniform", "--input", "x", "--out", "y"], "x"),
    ],
    ids=["evaluate", "prepare"],
)
def test_failing_commands_end(words, message, tmp_path):
    """Threads of a cut-off input pipeline once kept the process from ending."""
    command = [sys.executable, "-m", "pipelines.cli", *words]
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env
    )
    assert done.returncode == 2
    loading, error = done.stderr.splitlines()  # and no start-up lines of TensorFlow
    assert loading == "Loading TensorFlow ..." and message in error


def test_a_vocabulary_that_is_not_the_models_is_refused(
    trained, data, tmp_path, capsys
):
    import shutil

    from pipelines.vocabulary import HashVocabulary

    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    HashVocabulary(100).save(copy / "vocabulary.tsv")
    command = ["evaluate", "--model", copy, "--input", f"{data}/valid.tsv"]
    assert "not the vocabulary that this run was trained with" in fails(command, capsys)
    config = json.loads((copy / "config.json").read_text())
    config["vocabulary_digest"] = HashVocabulary(100).digest
    (copy / "config.json").write_text(json.dumps(config))
    assert "does not match the model" in fails(command, capsys)


def test_the_installed_command_is_quiet_and_quick_about_mistakes():
    command = [sys.executable, "-m", "pipelines.cli", "train", "--colour", "red"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "--colour" in done.stderr


def test_named_runs_build(data):
    from pipelines.runs import build_model
    from tf_dlrm import FeatureSpec

    for name in runs.RUNS:
        config = runs.get(name)
        assert type(config).from_json(config.to_json()) == config
        spec = FeatureSpec.criteo([10] * 26, config.embedding_dim)
        model = build_model.make_model(config, spec)
        build_model.compile_model(model, config, num_steps=10)
