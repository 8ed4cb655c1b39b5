"""The model that a run saves: the best of its validations, or the last."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from pipelines import cli, criteo, runs
from pipelines.reports.comparison import make_report
from pipelines.runs import saving
from pipelines.runs.config import RunConfig
from pipelines.runs.folder import RunFolder
from pipelines.runs.resuming import check_same
from pipelines.runs.watching import Watching

CONFIG = RunConfig(
    embedding_dim=4,
    bottom_mlp_dims=(4,),
    top_mlp_dims=(4, 1),
    hash_buckets=50,
    learning_rate=0.3,  # too large: the model of the end is not the best
    batch_size=100,
    epochs=3,
    evaluate_every_steps=2,
    jit_compile="off",
)
LAST_STEP = 15
TIES = 1e-3  # the AUC is of a histogram; some 20 of 22,500 pairs may share a bucket


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, rows, seed in (("train", "500", "1"), ("valid", "300", "2")):
        command = ["generate", "--output", f"{folder}/{name}.tsv", "--rows", rows]
        assert cli.main([*command, "--seed", seed]) == 0
    lines = (folder / "valid.tsv").read_text().splitlines(keepends=True)
    flipped = [str(1 - int(line[0])) + line[1:] for line in lines]
    (folder / "flipped.tsv").write_text("".join(flipped))
    return folder


class Steps(keras.callbacks.Callback):
    """Keeps the weights after each step; interrupts the training after one of them."""

    def __init__(self, last=None):
        super().__init__()
        self.weights, self.last = {}, last

    def on_train_batch_end(self, batch, logs=None):
        step = int(self.model.optimizer.iterations.numpy())
        self.weights[step] = weights(self.model)
        if step == self.last:
            raise InterruptedError


def weights(model):
    tables = [model.embedding.get_table(t.name) for t in model.spec.tables]
    return [*(v.numpy() for v in model.dense_variables), *tables]


def train(data, out, last=None, resume=False, valid="valid.tsv", **options):
    steps = Steps(last)
    config = dataclasses.replace(CONFIG, **options)
    folder, results = runs.train(
        config,
        [str(data / "train.tsv")],
        [str(data / valid)],
        out,
        callbacks=[steps],
        resume=resume,
        watching=Watching(gradient_norms=False, touched_rows=False),
    )
    return folder, results, steps.weights


def scores(folder, data, which, valid="valid.tsv"):
    """AUC and log loss of a saved model on validation rows, by scikit-learn."""
    parser = folder.load_parser()
    model = folder.load_model(parser, which)
    labels, predictions = [], []
    for features, label in criteo.read(str(data / valid), parser, 300):
        labels.append(np.ravel(label))
        predictions.append(model.predict_on_batch(features)[:, 0])
    labels, predictions = np.concatenate(labels), np.concatenate(predictions)
    return roc_auc_score(labels, predictions), log_loss(labels, predictions)


def check_equal(folder, which, expected):
    found = weights(folder.load_model(folder.load_parser(), which))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def evaluations(folder, results, name):
    """The values of all validations, by step."""
    values = {
        5 * e["epoch"] + e["batch"]: e[name]
        for e in results["evaluations_within_epochs"]
    }
    lines = folder.history_path.read_text().splitlines()
    column = lines[0].split(",").index(name)
    for epoch, line in enumerate(lines[1:], start=1):
        values[5 * epoch] = float(line.split(",")[column])
    return values


@pytest.mark.integration
@pytest.mark.parametrize(
    "monitor, valid, choose",
    [
        ("auc", "valid.tsv", max),
        pytest.param("log_loss", "flipped.tsv", min, marks=pytest.mark.integration),
    ],
)
def test_the_best_of_the_monitored_metric_is_saved(
    data, tmp_path, monitor, valid, choose
):
    folder, results, steps = train(data, tmp_path / "run", monitor=monitor, valid=valid)
    values = evaluations(folder, results, f"val_{monitor}")
    assert sorted(values) == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    step = choose(values, key=values.get)
    assert step < LAST_STEP  # else the test says nothing
    best = {"epoch": -(-step // 5), "step": step, monitor: values[step]}
    assert results["best"] == best and results["saved_model"] == "best"
    for which in ("saved", "best"):
        check_equal(folder, which, steps[step])
    check_equal(folder, "last", steps[LAST_STEP])
    auc, loss = scores(folder, data, "saved", valid)
    if monitor == "auc":  # the first model of the other one ties most rows
        assert results["metrics"]["val_auc"] == pytest.approx(auc, abs=TIES)
    assert results["metrics"]["val_log_loss"] == pytest.approx(loss, abs=1e-5)
    assert saving.describe(results).endswith("saved model: best")
    assert f"best: epoch {best['epoch']}, step {step}, {monitor} " in (
        saving.describe(results)
    )
    assert not folder.checkpoint_dir.exists()


@pytest.mark.integration
def test_the_last_is_saved_on_request(data, tmp_path):
    folder, results, steps = train(data, tmp_path / "run", saved_model="last")
    step = results["best"]["step"]
    assert step < LAST_STEP and results["last"]["step"] == LAST_STEP
    for which in ("saved", "last"):
        check_equal(folder, which, steps[LAST_STEP])
    check_equal(folder, "best", steps[step])
    auc, _ = scores(folder, data, "last")
    assert results["metrics"]["val_auc"] == pytest.approx(auc, abs=TIES)
    assert saving.describe(results).endswith("saved model: last")


@pytest.mark.integration
def test_one_file_where_the_best_is_the_last(data, tmp_path):
    options = {"learning_rate": 1e-3, "epochs": 1, "evaluate_every_steps": None}
    folder, results, steps = train(data, tmp_path / "run", **options)
    assert results["best"]["step"] == results["last"]["step"] == 5
    assert [path.name for path in folder.path.glob("*.keras")] == ["model.keras"]
    for which in ("saved", "best", "last"):
        check_equal(folder, which, steps[5])
    line = saving.describe(results)
    assert line.startswith("best: epoch 1, step 5, auc") and "last:" not in line


@pytest.mark.integration
def test_without_validation_there_is_no_best_model(data, tmp_path):
    config = dataclasses.replace(CONFIG, evaluate_every_steps=None, epochs=1)
    train_path = str(data / "train.tsv")
    folder, results = runs.train(config, train_path, None, tmp_path / "run")
    assert results["best"] is None and results["saved_model"] == "last"
    assert "saved model: last (no validation" in saving.describe(results)
    assert folder.find_model("last") == folder.model_path
    with pytest.raises(ValueError, match="no best model, only the last one: no"):
        folder.find_model("best")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.breadth(0, 1)
@pytest.mark.parametrize("after", [-1, 0, 1, LAST_STEP])
def test_an_interrupted_run_ends_with_the_same_best_model(data, whole, tmp_path, after):
    """Before, at, and after the step of the best evaluation, and at the end."""
    expected, results, _ = whole
    best = results["best"]["step"]
    with pytest.raises(InterruptedError):
        train(data, tmp_path / "run", last=min(best + after, LAST_STEP))
    folder, resumed, _ = train(data, tmp_path / "run", resume=True)
    assert resumed["best"] == pytest.approx(results["best"], rel=1e-4)
    places = [
        [(e["epoch"], e["batch"]) for e in r["evaluations_within_epochs"]]
        for r in (results, resumed)
    ]
    assert places[0] == places[1]
    for which in ("best", "last"):
        parsers = expected.load_parser(), folder.load_parser()
        a, b = (
            weights(each.load_model(parser, which))
            for each, parser in zip((expected, folder), parsers, strict=True)
        )
        for x, y in zip(a, b, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.integration
def test_commands_take_the_saved_model_or_the_one_that_is_asked_for(
    data, whole, tmp_path, capsys
):
    shutil.copytree(whole[0].path, tmp_path / "run")
    run, rows = str(tmp_path / "run"), str(data / "valid.tsv")
    for which, file in (
        ("saved", "evaluation"),
        ("best", "evaluation_best"),
        ("last", "evaluation_last"),
    ):
        command = ["evaluate", "--model", run, "--input", rows, "--which", which]
        assert cli.main(command) == 0
        found = json.loads((tmp_path / "run" / f"{file}.json").read_text())
        auc, _ = scores(RunFolder(run), data, which)
        assert found["auc"] == pytest.approx(auc, abs=TIES)
        output = str(tmp_path / f"{which}.csv")
        command = ["predict", "--model", run, "--input", rows, "--output", output]
        assert cli.main([*command, "--which", which]) == 0
    texts = {w: (tmp_path / f"{w}.csv").read_text() for w in ("saved", "best", "last")}
    assert texts["saved"] == texts["best"] != texts["last"]
    command = ["export", "--model", run, "--output", str(tmp_path / "saved_model")]
    assert cli.main([*command, "--which", "last"]) == 0
    command = ["predict", "--model", str(tmp_path / "saved_model"), "--input", rows]
    output = str(tmp_path / "exported.csv")
    assert cli.main([*command, "--output", output]) == 0
    exported = np.loadtxt(output, delimiter=",", skiprows=1, usecols=3)
    last = np.loadtxt(tmp_path / "last.csv", delimiter=",", skiprows=1, usecols=3)
    np.testing.assert_allclose(exported, last, atol=1e-6)
    capsys.readouterr()
    assert cli.main([*command, "--output", f"{output}.2", "--which", "best"]) == 2
    assert "--which best needs the folder of a run" in capsys.readouterr().err
    (tmp_path / "run" / "model_last.keras").write_text("damaged")
    command = ["evaluate", "--model", run, "--input", rows, "--which", "last"]
    assert cli.main(command) == 2
    assert "model_last.keras is not the model that this run" in capsys.readouterr().err


@pytest.mark.integration
def test_a_report_says_of_which_model_its_values_are(whole):
    found = make_report([whole[0].path])
    step = whole[1]["best"]["step"]
    assert any(f"its best model, at step {step}." in note for note in found.notes)
    values = found.values[0]
    assert values["validation_auc"] == whole[1]["best"]["auc"]


@pytest.mark.integration
def test_a_run_of_an_earlier_version_keeps_its_last_model(whole, tmp_path):
    shutil.copytree(whole[0].path, tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    content = json.loads(folder.config_path.read_text())
    for name in ("monitor", "saved_model"):
        del content["config"][name]
    folder.config_path.write_text(json.dumps(content))
    config = folder.read_config()
    assert (config.monitor, config.saved_model) == ("auc", "last")
    assert RunConfig().saved_model == "best"
    check_same(folder, config, folder.read_data())


def test_a_target_goes_with_the_monitored_auc():
    with pytest.raises(ValueError, match="`target_auc` requires monitor='auc'"):
        dataclasses.replace(CONFIG, target_auc=0.8, monitor="log_loss")
