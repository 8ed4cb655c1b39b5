"""`tf-dlrm train` with guards: early ends, evaluations within epochs, divergence."""

import dataclasses
import json

import keras
import numpy as np
import pytest

from pipelines import cli, runs
from pipelines.runs import saving
from pipelines.runs.config import RunConfig
from pipelines.runs.folder import RunFolder

pytestmark = pytest.mark.integration

CONFIG = RunConfig(
    embedding_dim=4,
    bottom_mlp_dims=(4,),
    top_mlp_dims=(4, 1),
    hash_buckets=50,
    batch_size=100,
    epochs=2,
    jit_compile="off",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("data") / "a.tsv")
    assert cli.main(["generate", "--output", path, "--rows", "500"]) == 0
    return path


def train(data, out, callbacks=(), valid=True, **options):
    config = dataclasses.replace(CONFIG, **options)
    return runs.train(config, data, [data] if valid else None, out, None, callbacks)[1]


def test_a_target_within_an_epoch_ends_the_run(data, tmp_path, capsys):
    results = train(data, tmp_path / "run", target_auc=0.01, evaluate_every_steps=2)
    assert "Training stops: val_auc" in capsys.readouterr().out
    assert "reached 0.01" in results["stopped"]
    (within,) = results["evaluations_within_epochs"]
    assert (within["epoch"], within["batch"]) == (0, 2)
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["stopped"] == results["stopped"]
    assert written["evaluations_within_epochs"] == [within]


def test_what_is_not_asked_for_ends_nothing(data, tmp_path):
    results = train(data, tmp_path / "run", evaluate_every_steps=3)
    assert results["stopped"] is None
    places = [(e["epoch"], e["batch"]) for e in results["evaluations_within_epochs"]]
    assert places == [(0, 3), (1, 3)]
    assert results["num_skipped_batches"] == 0


def test_minutes_end_a_run_without_validation(data, tmp_path):
    results = train(data, tmp_path / "run", valid=False, max_minutes=1e-9)
    assert results["stopped"] == "1e-09 minutes have passed"


@pytest.mark.parametrize(
    "option", [{"target_auc": 0.8}, {"patience": 2}, {"evaluate_every_steps": 2}]
)
def test_what_needs_a_validation_is_refused_without(data, tmp_path, option):
    (name,) = option
    with pytest.raises(ValueError, match=f"`{name}` needs validation rows"):
        train(data, tmp_path / "run", valid=False, **option)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "option, rule",
    [
        ({"target_auc": 1.5}, "`target_auc` must be above 0 and at most 1"),
        ({"max_minutes": -1.0}, "`max_minutes` must be positive"),
        ({"patience": 0}, "`patience` must be at least 1"),
        ({"max_skipped_batches": 0}, "`max_skipped_batches` must be at least 1"),
    ],
    ids=["target", "minutes", "patience", "skipped"],
)
def test_values_without_a_meaning_are_refused(option, rule):
    with pytest.raises(ValueError, match=rule):
        dataclasses.replace(CONFIG, **option)


class Diverges(keras.callbacks.Callback):
    """From some step on no loss is finite."""

    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == 7:
            kernel = self.model.top_mlp.dense_layers[0].kernel
            kernel.assign(kernel * float("nan"))


def test_a_run_that_diverges_ends_with_its_place_and_its_checkpoint(data, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="3 batches in a row .* batch 5 of epoch 2"):
        train(data, out, [Diverges()], max_skipped_batches=3)
    assert not (out / "model.keras").exists()
    (checkpoint,) = (out / "checkpoints").glob("step-*")
    assert checkpoint.name == "step-000000005"


def test_the_rates_fall_on_a_plateau(data, tmp_path, capsys):
    """With a rate that overshoots, a validation soon is worse than the one before."""
    results = train(
        data,
        tmp_path / "run",
        learning_rate_decay="plateau",
        learning_rate=5.0,
        embedding_learning_rate=20.0,
        evaluate_every_steps=1,
        epochs=4,
    )
    values = [e["val_auc"] for e in results["evaluations_within_epochs"]]
    best, without = -1.0, 0
    for value in values:
        best, without = max(best, value), without + (value <= best)
    printed, reductions = capsys.readouterr().out, min(without, 7)  # to 1e-6
    assert results["num_rate_reductions"] == reductions > 0
    assert printed.count("has not improved on") == reductions
    assert "learning rate 5 -> 0.5." in printed
    with pytest.raises(ValueError, match="'plateau' needs validation rows"):
        train(data, tmp_path / "other", valid=False, learning_rate_decay="plateau")


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_an_l2_penalty_trains_whole_tables(data, tmp_path, optimizer):
    """It pulls rows that no batch reads to zero."""
    norms = {}
    for l2 in (0.0, 0.1):
        out = tmp_path / f"{l2}"
        train(data, out, l2=l2, optimizer=optimizer, hash_buckets=5000)
        folder = RunFolder(out)
        model = folder.load_model(folder.load_parser())
        norms[l2] = float(np.linalg.norm(model.embedding.get_table("C1")))
        of_tables = model.embedding_optimizer
        is_dense = type(of_tables).__name__.startswith("Dense")
        assert is_dense == (l2 > 0 and optimizer != "sgd")
        assert getattr(of_tables, "l2", 0.0) == l2
    assert norms[0.1] < 0.999 * norms[0.0]


def test_a_validation_of_one_class_selects_no_best_model(data, tmp_path, capsys):
    valid = tmp_path / "clicks.tsv"
    with open(data) as file:
        valid.write_text("".join(line for line in file if line[0] == "1"))
    config = dataclasses.replace(CONFIG, patience=1)
    folder, results = runs.train(config, data, [str(valid)], tmp_path / "run")
    assert results["best"] is None and results["saved_model"] == "last"
    assert "val_auc was never finite in 1 evaluations" in capsys.readouterr().out
    assert saving.describe(results) == (
        "saved model: last (the validation auc was never finite: it needs rows with "
        "and without a click)"
    )
    written = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert written["last"]["auc"] is None and written["metrics"]["val_auc"] is None
    with pytest.raises(ValueError, match="with and without a click, selected a best"):
        folder.find_model("best")
