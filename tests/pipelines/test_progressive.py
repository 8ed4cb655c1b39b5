"""`train --progressive`: each day is predicted before it is trained on."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import cli, runs
from pipelines.criteo import read
from pipelines.quarantine import Quarantine
from pipelines.runs.config import RunConfig
from pipelines.runs.folder import RunFolder
from pipelines.runs.progressive import DayData, in_order_of_time
from pipelines.schema import Schema
from pipelines.synthetic import Planted

pytestmark = pytest.mark.integration

CONFIG = RunConfig(
    embedding_dim=4,
    bottom_mlp_dims=(8, 4),
    top_mlp_dims=(8, 1),
    hash_buckets=50,
    batch_size=100,
    dropout=0.2,
    learning_rate_decay="linear",
    jit_compile="off",
)
SIZES = (350, 620, 480)  # rows of the days: a larger one after a smaller one
STEPS = (4, 7, 5)


class CutError(Exception):
    pass


class Cut(keras.callbacks.Callback):
    """Ends the training in the middle of a step, or of a validation."""

    def __init__(self, step=None, validation=None):
        super().__init__()
        self.step, self.left = step, validation

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == self.step:
            raise CutError

    def on_test_batch_begin(self, batch, logs=None):
        if self.left is not None:
            self.left -= 1
            if not self.left:
                raise CutError


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    folder = tmp_path_factory.mktemp("days")
    first = 0
    for day, size in enumerate(SIZES):
        Planted().write(folder / f"day_{day}.tsv", size, first)
        first += size
    with open(folder / "day_1.tsv", "a") as file:
        file.write("no row\n")
    return [str(folder / f"day_{day}.tsv") for day in range(len(SIZES))]


def train(days, out, callbacks=(), config=CONFIG, **options):
    config = dataclasses.replace(config, max_bad_share=0.01)
    checkpoints = {"every_steps": 2}
    return runs.train(
        config, days, None, out, None, callbacks, checkpoints=checkpoints,
        progressive=True, **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def whole(days, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    folder, results = train(days, out)
    return folder, results


def test_days_follow_the_event_times(tmp_path, capsys):
    """Sorted by name, day 10 would come before day 9."""
    rng, start = np.random.default_rng(0), np.datetime64("2026-03-01")
    for day in (10, 8, 9):
        seconds = np.sort(rng.integers(0, 86_400, 300))
        times = start + day * 86_400 + seconds.astype("timedelta64[s]")
        rows = [f"{t},{rng.integers(2)},i{rng.integers(9)},{t!s:.4}" for t in times]
        path = tmp_path / f"day_{day}.csv"
        path.write_text("\n".join(["ts,click,item,x", *rows]) + "\n")
    schema = Schema("click", ["x"], ["item"], time="ts")
    schema.save(tmp_path / "schema.json")
    paths = sorted(tmp_path.glob("day_*.csv"))
    command = ["train", "--train", *paths, "--schema", tmp_path / "schema.json",
               "--progressive", "--out", tmp_path / "r", *OPTIONS]  # fmt: skip
    run(*command, "--hash-buckets", "50")
    printed = capsys.readouterr().out
    assert "Days, in the order of ts: day_8.csv, day_9.csv, day_10.csv" in printed
    days = json.loads((tmp_path / "r" / "metrics.json").read_text())["days"]
    assert [day["day"] for day in days] == ["day_9.csv", "day_10.csv"]
    # So that the same command resumes the run.
    assert RunFolder(tmp_path / "r").read_data()["train"] == list(map(str, paths))
    untimed = Schema("click", ["x"], ["item"])
    assert in_order_of_time(list(map(str, paths)), untimed) == list(map(str, paths))


@pytest.mark.slow
def test_each_day_is_evaluated_as_a_run_of_the_days_before_would(days, whole):
    """Against a plain loop of `fit` and `evaluate` over the days."""
    folder, results = whole
    parser = folder.load_parser()
    keras.utils.set_random_seed(CONFIG.seed)
    from pipelines.runs import build_model

    model = build_model.make_model(CONFIG, parser.spec(CONFIG.embedding_dim))
    build_model.compile_model(model, CONFIG, sum(STEPS))
    quarantine = lambda: Quarantine(max_bad_share=0.01)  # noqa: E731
    expected = []
    for day, path in enumerate(days):
        options = {"shuffle": True, "seed": CONFIG.seed, "quarantine": quarantine()}
        inputs = read(path, parser, CONFIG.batch_size, **options).resumable_input
        dataset, position = inputs.begin(None)
        position.epoch = day
        if day:
            rows = read(path, parser, CONFIG.batch_size, quarantine=quarantine())
            expected.append(model.evaluate(rows, verbose=0, return_dict=True))
        for batch in dataset:
            model.train_on_batch(*batch)
    assert [found["day"] for found in results["days"]] == ["day_1.tsv", "day_2.tsv"]
    assert [found["num_rows"] for found in results["days"]] == list(SIZES[1:])
    for found, values in zip(results["days"], expected, strict=True):
        for name in ("auc", "log_loss", "normalized_entropy", "calibration"):
            assert found[name] == pytest.approx(values[name], rel=2e-4), name
    trained = folder.load_model(parser)
    assert int(trained.optimizer.iterations) == sum(STEPS)
    for table in model.spec.tables[:5]:
        rows = [m.embedding.get_table(table.name) for m in (model, trained)]
        np.testing.assert_allclose(*rows, atol=1e-5)


def test_the_folder_tells_of_the_days(days, whole):
    folder, results = whole
    stored = json.loads(folder.metrics_path.read_text())
    assert stored["days"] == results["days"]
    assert (stored["num_rows"], stored["num_bad_rows"]) == (sum(SIZES), 1)
    assert not folder.checkpoint_dir.exists()  # none is the best of different days
    assert stored["num_valid_rows"] == sum(SIZES[1:])
    assert not any("num_" in name for name in stored["metrics"])
    lines = folder.history_path.read_text().splitlines()
    header, *epochs = [line.split(",") for line in lines]
    column = header.index("val_auc")
    assert [float(e[column]) for e in epochs[:2]] == [d["auc"] for d in stored["days"]]
    assert epochs[2][column] == ""
    rows = [float(epoch[header.index("num_rows")]) for epoch in epochs]
    assert rows == list(SIZES)
    data = folder.read_data()
    assert data["progressive"] and data["rows_by_epoch"] == [350, 621, 480]
    events = sorted((folder.log_dir / "validation").iterdir())
    found = [
        (event.step, float(tf.make_ndarray(value.tensor)))
        for path in events
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.tag == "metrics/auc"
    ]
    assert [step for step, _ in found] == [4, 11]
    assert [auc for _, auc in found] == pytest.approx(
        [d["auc"] for d in stored["days"]]
    )
    # The rate falls to 0 over all days: the last step is made at 1 / 16 of it.
    rates = [
        float(tf.make_ndarray(value.tensor))
        for path in (folder.log_dir / "train").iterdir()
        for event in tf.compat.v1.train.summary_iterator(str(path))
        for value in event.summary.value
        if value.tag == "optimizer/learning_rate"
    ]
    assert rates[-1] == pytest.approx(0.0, abs=1e-9) and rates[0] > 0.01


def test_cut_in_a_day_and_in_a_validation_it_goes_on(days, whole, tmp_path, capsys):
    """The last time by the command, with the options of the run."""
    out = tmp_path / "run"
    with pytest.raises(CutError):
        train(days, out, [Cut(step=7)])
    for more, message in (
        (["--no-progressive"], "--progressive was on, now off"),
        (
            ["--train", *reversed(days)],
            "--train was day_0.tsv day_1.tsv day_2.tsv, now",
        ),
    ):
        run("train", "--resume", "--out", out, *more, code=2)
        assert message in capsys.readouterr().err
    with pytest.raises(CutError):
        train(days, out, [Cut(validation=3)], resume=True)
    assert "epoch 2, batch 2." in capsys.readouterr().out
    run("train", "--resume", "--out", out)
    printed = capsys.readouterr().out
    assert "epoch 2, batch 6." in printed and "day, before training on it" in printed
    folder, (expected_folder, expected) = RunFolder(out), whole
    results = json.loads(folder.metrics_path.read_text())
    for name in ("num_rows", "num_bad_rows", "num_valid_rows", "num_bad_valid_rows"):
        assert results[name] == expected[name], name
    for found, day in zip(results["days"], expected["days"], strict=True):
        for name, value in day.items():
            wanted = value if name == "day" else pytest.approx(value, rel=1e-4)
            assert found[name] == wanted
    lines = [f.history_path.read_text().splitlines() for f in (folder, expected_folder)]
    assert len(lines[0]) == len(lines[1]) == 4
    models = [f.load_model(f.load_parser()) for f in (folder, expected_folder)]
    assert [int(m.optimizer.iterations) for m in models] == [sum(STEPS)] * 2
    for table in models[0].spec.tables[:5]:
        rows = [m.embedding.get_table(table.name) for m in models]
        np.testing.assert_allclose(*rows, atol=1e-6)


OPTIONS = [
    "--bottom-mlp-dims", "8", "4", "--top-mlp-dims", "8", "1", "--embedding-dim", "4",
    "--batch-size", "100", "--jit-compile", "off", "--max-bad-share", "0.01",
]  # fmt: skip


def run(*words, code=0):
    assert cli.main([str(word) for word in words]) == code


@pytest.mark.slow
def test_a_vocabulary_of_the_first_day_and_a_sample_of_the_negatives(
    days, tmp_path, capsys
):
    command = ["train", "--train", *days, "--progressive", *OPTIONS, "--min-count", "2"]
    command += ["--negative-sampling-rate", "0.3"]
    run(*command, "--out", tmp_path / "run", "--dry-run")
    assert "at least 2 times in the first of them" in capsys.readouterr().out
    run(*command, "--out", tmp_path / "run")
    printed = capsys.readouterr().out
    assert f"built from the first day, {days[0]}: values" in printed
    assert "day_2.tsv                             480" in printed
    lines = open(days[0], "rb").read().splitlines()
    seen = [line.split(b"\t")[14] for line in lines]
    vocabulary = RunFolder(tmp_path / "run").read_vocabulary()
    assert set(vocabulary.values("C1")) == {
        value for value in seen if value and seen.count(value) > 1
    }
    assert len(vocabulary.values("C1")) > 1
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert results["num_rows"] + results["num_negatives_left_out"] == sum(SIZES)
    assert results["num_negatives_left_out"] > 400
    assert [day["num_rows"] for day in results["days"]] == list(SIZES[1:])


@pytest.mark.parametrize("num_days", [0, 1])
def test_a_run_that_ended_early_tells_of_the_days_that_it_came_to(
    num_days, days, tmp_path
):
    data = DayData(CONFIG, days, None, RunFolder(tmp_path), rows_by_epoch=[9] * 3)
    assert data.rows_to_choose_by == 27  # defaults go by the rows of all days
    names = ("num_rows", "auc", "log_loss", "normalized_entropy", "calibration")
    history = {f"val_{name}": [0.5] for name in names} if num_days else {"loss": [1.0]}
    results = data.describe_days(history)["days"]
    assert [day["day"] for day in results] == ["day_1.tsv"][:num_days]
    assert data.count(history)["num_bad_rows"] == 0


def test_mistakes_are_named(days, tmp_path, capsys):
    command = ["train", "--out", tmp_path / "r", "--progressive", *OPTIONS]
    shutil.copy(days[0], tmp_path / "a.tsv")
    run("prepare", "--input", tmp_path / "a.tsv", "--out", tmp_path / "p")
    cases = [
        (["--train", days[0]], "at least two files"),
        (
            ["--train", *days, "--epochs", "2"],
            "--progressive makes one pass over the days",
        ),
        (["--train", *days, "--patience", "1"], "--patience compares evaluations"),
        (
            ["--train", *days, "--learning-rate-decay", "plateau"],
            "--learning-rate-decay = 'plateau' compares evaluations",
        ),
        (["--train", *days, "--target-auc", "0.8"], "--target-auc compares"),
        (["--train", *days[:2], "--valid", days[2]], "leave --valid out"),
        (["--train", tmp_path / "p"], "contains records. Name the files"),
        (["--train", days[0], tmp_path / "p"], "contains records. Name the files"),
    ]
    for options, message in cases:
        for dry in ([], ["--dry-run"]):
            run(*command, *options, *dry, code=2)
            assert message in capsys.readouterr().err, options
    with pytest.raises(ValueError, match="one pass over the days"):
        train(days, tmp_path / "r", config=dataclasses.replace(CONFIG, epochs=2))
