"""`tf-dlrm train --resume`: runs that were cut, and what is refused."""

import dataclasses
import json
import shutil

import keras
import pytest
import tensorflow as tf
from helpers.lock_holder import holding

from pipelines import cli, runs
from pipelines.runs.config import RunConfig
from tf_dlrm.runtime.locks import InUseError

pytestmark = pytest.mark.integration

CONFIG = RunConfig(
    embedding_dim=4,
    bottom_mlp_dims=(4,),
    top_mlp_dims=(4, 1),
    hash_buckets=50,
    batch_size=100,
    epochs=2,
    dropout=0.2,
    batch_normalization="before_activation",
    jit_compile="off",
)


class CutError(Exception):
    pass


class Cut(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == 8:
            raise CutError


@pytest.fixture(scope="module")
def cut(tmp_path_factory):
    """A folder with rows and a run that was cut at step 8 of 10."""
    folder = tmp_path_factory.mktemp("cut")
    data = str(folder / "a.tsv")
    assert cli.main(["generate", "--output", data, "--rows", "500"]) == 0
    train(folder, "whole")
    with pytest.raises(CutError):
        train(folder, "run", [Cut()])
    return folder


def train(folder, name, callbacks=(), **options):
    data = str(folder / "a.tsv")
    checkpoints = {"every_steps": 2}
    return runs.train(
        CONFIG,
        data,
        [data],
        folder / name,
        None,
        callbacks,
        checkpoints=checkpoints,
        **options,
    )


@pytest.fixture
def run(cut, tmp_path):
    shutil.copytree(cut / "run", tmp_path / "run")
    return str(tmp_path / "run")


def test_it_goes_on_with_the_options_of_the_run(cut, run, capsys):
    assert cli.main(["train", "--resume", "--out", run]) == 0
    printed = capsys.readouterr().out
    assert "step-000000007: epoch 2, batch 2." in printed
    assert "checkpoints took" in printed
    whole, metrics = (
        json.loads((path / "metrics.json").read_text())
        for path in (cut / "whole", cut.__class__(run))
    )
    for name in ("num_rows", "num_bad_rows", "num_valid_rows"):
        assert metrics[name] == whole[name], name
    for name, value in whole["metrics"].items():
        assert metrics["metrics"][name] == pytest.approx(value, rel=1e-4), name
    csv = (cut.__class__(run) / "metrics.csv").read_text().splitlines()
    assert len(csv) == 3 and csv[0].startswith("epoch,")
    steps, expected = (
        [line.partition(",")[0] for line in path.read_text().splitlines()]
        for path in (cut.__class__(run) / "steps.csv", cut / "whole" / "steps.csv")
    )
    assert steps == expected == ["step", "5", "5", "10", "10"]
    assert not (cut.__class__(run) / "checkpoints").exists()
    assert cli.main(["train", "--resume", "--out", run]) == 0
    assert "this run is already finished" in capsys.readouterr().out


def test_a_run_cut_before_its_model_was_whole(cut, tmp_path):
    """All epochs are behind it, and the rows are counted all the same."""
    shutil.copytree(cut / "run", tmp_path / "run")
    whole = json.loads((cut / "whole" / "metrics.json").read_text())

    class CutAtEnd(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            raise CutError

    with pytest.raises(CutError):
        train(cut, tmp_path / "run", [CutAtEnd()], resume=True)
    (tmp_path / "run" / "model.keras").write_text("half of a model")
    _, results = train(cut, tmp_path / "run", resume=True)
    assert results["num_rows"] == whole["num_rows"] == 500
    assert len((tmp_path / "run/metrics.csv").read_text().splitlines()) == 3


def test_other_options_or_data_are_refused_by_name(cut, run, tmp_path, capsys):
    shutil.copy(cut / "a.tsv", tmp_path / "b.tsv")
    for more, message in (
        (["--batch-size", "99"], "--batch-size was 100, now 99"),
        (["--train", str(tmp_path / "b.tsv")], "--train was a.tsv, now b.tsv"),
        (["--valid", str(tmp_path / "b.tsv")], "--valid was a.tsv, now b.tsv"),
    ):
        assert cli.main(["train", "--resume", "--out", run, *more]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", ["train", "valid"])
def test_another_content_of_the_same_size_is_refused_by_name(
    option, cut, run, tmp_path, capsys
):
    text = (cut / "a.tsv").read_bytes()
    changed = bytes([text[0] ^ 1]) + text[1:]  # the first label
    (tmp_path / "a.tsv").write_bytes(changed)
    more = [f"--{option}", str(tmp_path / "a.tsv")]
    assert cli.main(["train", "--resume", "--out", run, *more]) == 2
    assert f"started: a.tsv of --{option}. Restore" in capsys.readouterr().err


def test_a_run_of_before_contents_were_noted_goes_on(cut, run, capsys):
    path = cut.__class__(run) / "config.json"
    config = json.loads(path.read_text())
    assert set(config["data"].pop("content")) == {"train", "valid"}
    path.write_text(json.dumps(config))
    assert cli.main(["train", "--resume", "--out", run]) == 0
    assert "batch 2." in capsys.readouterr().out


def test_two_trainings_into_one_folder(cut, run, capsys):
    files = {path: path.stat() for path in cut.__class__(run).rglob("*")}
    with holding(run) as process:
        assert cli.main(["train", "--resume", "--out", run]) == 2
        error = capsys.readouterr().err
        assert f"{run} is being written by process {process.pid} on" in error
        assert error.count("\n") == 1
        for path, before in files.items():
            assert path.stat().st_mtime_ns == before.st_mtime_ns or path.is_dir()
    with holding(f"{run}/checkpoints"), pytest.raises(InUseError):
        train(cut, run, resume=True)  # of ResumableTraining alone
    assert cli.main(["train", "--resume", "--out", run]) == 0


def test_a_run_that_can_go_on_is_not_overwritten(cut, run, capsys):
    data = str(cut / "a.tsv")
    assert cli.main(["train", "--train", data, "--out", run]) == 2
    assert (
        "contains an interrupted run. Resume it with --resume"
        in capsys.readouterr().err
    )


def test_resume_begins_a_run_where_there_is_none(cut, tmp_path, capsys):
    out = str(tmp_path / "new")
    assert cli.main(["train", "--resume", "--out", out]) == 2
    assert "--train" in capsys.readouterr().err
    command = ["train", "--resume", "--out", out, "--train", str(cut / "a.tsv")]
    assert cli.main([*command, "--dry-run"]) == 0
    assert "resume the run in" in capsys.readouterr().out


def test_a_deterministic_run_records_what_xla_compiles(cut, tmp_path, monkeypatch):
    # Enabled, it would stay so in this process.
    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", lambda: None)
    config = dataclasses.replace(CONFIG, deterministic=True)

    def fit(callbacks=()):
        data, checkpoints = str(cut / "a.tsv"), {"every_steps": 2}
        return runs.train(
            config,
            data,
            None,
            tmp_path / "run",
            callbacks=callbacks,
            checkpoints=checkpoints,
            resume=True,
        )

    with pytest.raises(CutError):
        fit([Cut()])
    path = tmp_path / "run" / "config.json"
    content = json.loads(path.read_text())
    assert content["data"]["xla"] == "none"
    content["data"]["xla"] = "program"
    path.write_text(json.dumps(content))
    with pytest.warns(RuntimeWarning, match="the whole dense part.*compiling nothing"):
        fit()
