"""Endless training: each file once, evaluated before, published, killed and resumed."""

import csv
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

import pipelines
import tf_dlrm
from pipelines import cli
from pipelines.following import Arrivals
from pipelines.runs import RunConfig
from pipelines.runs.folder import RunFolder
from pipelines.synthetic import Planted

CONFIG = RunConfig(
    embedding_dim=4,
    bottom_mlp_dims=(8, 4),
    top_mlp_dims=(8, 1),
    interaction="dot",
    hash_buckets=300,
    batch_size=128,
    learning_rate=0.05,
    embedding_learning_rate=0.05,
    jit_compile="off",
    shuffle=True,
)
ONCE = Arrivals(settle_seconds=0.0, poll_seconds=0.01, idle_seconds=0.05)
NUM_ROWS = 500


def put(folder, number, num_rows=NUM_ROWS):
    """Add a file as a careful writer does: beside, then renamed."""
    folder.mkdir(exist_ok=True)
    Planted().write(folder / f".day_{number}", num_rows, number * NUM_ROWS)
    (folder / f".day_{number}").rename(folder / f"day_{number}")


def files_of(out):
    with open(pathlib.Path(out) / "files.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def weights_of(folder):
    model = folder.load_model(folder.load_parser())
    return [*model.get_weights(), *model.embedding.get_weights()]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stream") / "log"
    for number in range(3):
        put(folder, number)
    return folder


@pytest.mark.integration
def test_the_weights_are_those_of_progressive_training(log, tmp_path):
    """The same files as days: equal weights, and equal results before each file."""
    folder, results = pipelines.follow(log, tmp_path / "followed", CONFIG, ONCE)
    days, expected = pipelines.runs.train(
        CONFIG, sorted(map(str, log.iterdir())), None, tmp_path / "days",
        progressive=True,
    )  # fmt: skip
    assert results["num_files"] == 3 and results["num_rows"] == 3 * NUM_ROWS
    lines = files_of(folder.path)
    assert [line["file"] for line in lines] == ["day_0", "day_1", "day_2"]
    assert not lines[0]["val_auc"]
    for line, day in zip(lines[1:], expected["days"], strict=True):
        for name in ("auc", "log_loss", "calibration"):
            assert float(line[f"val_{name}"]) == pytest.approx(day[name], rel=1e-4)
    for own, other in zip(weights_of(folder), weights_of(days), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


class Stop(Exception):
    pass


def stop_at(step):
    import keras

    class Kill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if int(self.model.optimizer.iterations.numpy()) == step:
                raise Stop

    return Kill()


@pytest.mark.integration
@pytest.mark.parametrize("step", [6])
def test_a_killed_run_resumes_where_it_was(step, log, tmp_path):
    """Killed in the second file: equal weights, no file twice, no row lost."""
    published = {"every_steps": 2, "verbose": 0, "export": {"preprocessor": None}}
    whole, _ = pipelines.follow(log, tmp_path / "whole", CONFIG, ONCE)
    options = {
        "publish": {"base_dir": tmp_path / "published", **published},
        "checkpoints": {"every_steps": 1},
    }
    with pytest.raises(Stop):
        pipelines.follow(
            log, tmp_path / "cut", CONFIG, ONCE, callbacks=[stop_at(step)], **options
        )
    folder, results = pipelines.follow(log, tmp_path / "cut", CONFIG, ONCE, **options)
    assert [line["file"] for line in files_of(folder.path)] == [
        "day_0", "day_1", "day_2",
    ]  # fmt: skip
    assert results["num_rows"] == 3 * NUM_ROWS
    for own, other in zip(weights_of(folder), weights_of(whole), strict=True):
        np.testing.assert_array_equal(own, other)
    replica = tf_dlrm.serving.Replica(tmp_path / "published")
    assert replica.in_place().base == 1
    model = folder.load_model(folder.load_parser())
    full = tf_dlrm.export_saved_model(model, tmp_path / "full")
    from helpers import delta_oracle

    path = replica.materialize(tmp_path / "served")
    delta_oracle.assert_equal(
        delta_oracle.weights_of(path), delta_oracle.weights_of(full)
    )


@pytest.mark.integration
def test_files_that_come_while_it_waits_and_bad_ones(tmp_path, capsys):
    log = tmp_path / "log"
    put(log, 0)
    (log / "day_1").write_text("these are\nno rows\n")
    (log / "day_2.gz").write_bytes(b"\x1f\x8b\x08\x00 truncated")
    arrivals = Arrivals(settle_seconds=0.0, poll_seconds=0.01, idle_seconds=1.0)
    later = threading.Timer(0.5, put, (log, 3))
    later.start()
    folder, results = pipelines.follow(log, tmp_path / "run", CONFIG, arrivals)
    later.join()
    lines = {line["file"]: line for line in files_of(folder.path)}
    assert list(lines) == ["day_0", "day_1", "day_2.gz", "day_3"]
    assert "rows are bad" in lines["day_1"]["refused"] or lines["day_1"]["refused"]
    assert lines["day_2.gz"]["refused"] and not lines["day_3"]["refused"]
    assert results["num_files"] == 2
    assert "Refused day_1:" in capsys.readouterr().out


@pytest.mark.integration
def test_sigterm_saves_and_the_command_resumes(log, tmp_path):
    """The command in a process of its own, which waits for a fourth file."""
    own = tmp_path / "log"
    own.mkdir()
    for path in log.iterdir():
        os.link(path, own / path.name)
    words = [
        "train", "--follow", str(own), "--out", str(tmp_path / "run"),
        "--hash-buckets", "300", "--embedding-dim", "4", "--bottom-mlp-dims", "8", "4",
        "--top-mlp-dims", "8", "1", "--batch-size", "128", "--jit-compile", "off",
        "--follow-settle-seconds", "0", "--publish", str(tmp_path / "published"),
        "--publish-every-seconds", "0.05", "--publish-dtype", "int8",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", "from pipelines.cli import entry; entry()", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("day_2:"):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    said = process.stdout.read()
    assert process.wait() == 143 and "SIGTERM: training is saved in" in said
    assert "run the same command again" in said
    put(own, 3)
    assert cli.main([*words, "--follow-idle-seconds", "0.5"]) == 0
    lines = files_of(tmp_path / "run")
    assert [line["file"] for line in lines] == [f"day_{i}" for i in range(4)]
    served = tmp_path / "served"
    command = ["follow-deltas", str(tmp_path / "published"), "--output", str(served)]
    assert cli.main([*command, "--once"]) == 0
    assert tf_dlrm.serving.verify_saved_model(served)["largest_difference"]
    folder = RunFolder(tmp_path / "run")
    assert cli.main(["evaluate", "--model", str(folder.path), "--input",
                     str(own / "day_3")]) == 0  # fmt: skip


@pytest.mark.parametrize(
    "change, message",
    [
        ({"learning_rate_decay": "linear"}, "`learning_rate_decay` does not go with"),
        ({"patience": 2}, "`patience` does not go with `follow`"),
        ({"epochs": 2}, "`follow` trains on each file once. Leave `epochs` out"),
        ({"negative_sampling_rate": 0.5}, "`negative_sampling_rate` does not go"),
    ],
)
def test_refused_options(change, message, tmp_path):
    import dataclasses

    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(ValueError, match=message):
        pipelines.follow(tmp_path, tmp_path / "run", config)


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--publish", "x", "--train", "y"],
            "--publish has no effect without --follow",
        ),
        (["--follow", "x", "--train", "y"], "leave --train out"),
        (["--follow", "x", "--progressive"], "leave --progressive out"),
    ],
)
def test_options_of_the_command_that_contradict(words, message, tmp_path, capsys):
    assert cli.main(["train", "--out", str(tmp_path / "run"), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_dry_run_names_the_folder(tmp_path, capsys):
    words = ["train", "--follow", str(tmp_path), "--out", str(tmp_path / "run")]
    assert cli.main([*words, "--publish", "p", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert f"train on each finished file of {tmp_path}" in said
    assert "publish to p every 10 s" in said


def test_another_folder_is_refused(log, tmp_path):
    out = RunFolder(tmp_path / "run")
    vocabulary = pipelines.HashVocabulary(300)
    out.path.mkdir()
    out.describe(CONFIG, {"follow": "/elsewhere"}, vocabulary)
    import dataclasses

    config = dataclasses.replace(CONFIG, epochs=1, saved_model="last")
    out.describe(config, {"follow": "/elsewhere"}, vocabulary)
    with pytest.raises(ValueError, match="follows /elsewhere. Choose another `out`"):
        pipelines.follow(log, out.path, CONFIG, ONCE)
