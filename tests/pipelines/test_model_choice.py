"""Models that `train` compares for few rows, and the one that it keeps."""

import contextlib
import dataclasses
import json

import keras
import numpy as np
import pytest
from sklearn.metrics import log_loss

import pipelines
from pipelines import cli, runs
from pipelines.records.batch import Batch
from pipelines.runs import defaults, model_choice, previous_run
from pipelines.runs.config import RunConfig
from pipelines.runs.data import LogData, RecordData
from pipelines.runs.folder import RunFolder
from pipelines.runs.progressive import DayData
from pipelines.runs.resuming import check_same
from pipelines.runs.rows_in_memory import Rows
from pipelines.schema import Schema

SCHEMA = Schema(
    label="click",
    dense=(),
    sparse=(pipelines.Sparse("color"), pipelines.Sparse("shape")),
    format=pipelines.Text(delimiter=",", header=True),
)
ADDITIVE = defaults.ADDITIVE


def write_log(path, num_rows, pairs, seed=0, time=False, extra=()):
    """Write a log in which features matter alone, or only in pairs."""
    random = np.random.default_rng(seed)
    color, shape = random.integers(0, 8 if pairs else 100, (2, num_rows))
    effects = np.random.default_rng(99).normal(size=(2, 100))
    logit = effects[0][color] + effects[1][shape]
    if pairs:
        logit = 2.0 * (-1.0) ** (color + shape)
    labels = random.random(num_rows) < 1 / (1 + np.exp(-logit))
    seconds = random.permutation(num_rows)
    lines = ["click,color,shape" + ",seconds" * time, *extra]
    for i in range(num_rows):
        line = f"{labels[i]:d},c{color[i]},s{shape[i]}"
        lines.append(f"{line},{1_700_000_000 + seconds[i]}" if time else line)
    path.write_text("\n".join(lines) + "\n")
    return path


def open_log(tmp_path, train, valid=None, config=None, schema=SCHEMA):
    config = config or runs.get(None)
    return LogData(config, train, valid, RunFolder(tmp_path / "run"), schema=schema)


@pytest.mark.parametrize("pairs, name", [(False, "additive"), (True, "dot")])
def test_the_better_model_is_chosen(tmp_path, capsys, pairs, name):
    data = open_log(tmp_path, write_log(tmp_path / "a.csv", 4001, pairs))
    data.complete_config(model_choice.choose)
    chosen = {option: getattr(data.config, option) for option in ADDITIVE}
    assert (chosen == ADDITIVE) == (name == "additive")
    choice = data.comparison
    assert choice["chosen"] == name
    assert (choice["num_rows"], choice["num_held_out"]) == (3201, 800)
    values = choice["values"]
    assert abs(values["additive"] - values["dot"]) > (0.1 if pairs else 0)
    printed = capsys.readouterr().out
    line = "Compared models of 3,201 rows by the auc of the last 800 of the training"
    assert line in printed
    assert f"additive {values['additive']:.4f}, dot {values['dot']:.4f}" in printed
    assert f"Chosen: {name}." in printed


@pytest.mark.integration
def test_validation_rows_decide_if_there_are_any(tmp_path):
    train = write_log(tmp_path / "a.csv", 600, pairs=False)
    valid = write_log(tmp_path / "b.csv", 300, pairs=False, seed=1)
    config = dataclasses.replace(
        runs.get(None), monitor="log_loss", batch_size=64, shuffle=False
    )
    data = open_log(tmp_path, train, [valid], config)
    scores = {}

    def predict(candidates, data):
        choice = model_choice.choose(candidates, data)
        for name, config in candidates.items():
            run, _ = runs.train(config, train, [valid], tmp_path / name, schema=SCHEMA)
            parser = run.load_parser()
            model = run.load_model(parser)
            rows = pipelines.read([valid], parser)
            labels = np.concatenate([label.numpy() for _, label in rows])
            predictions = model.predict(rows.map(lambda x, _: x), verbose=0)[:, 0]
            scores[name] = log_loss(labels, predictions.astype(np.float64))
        return choice

    data.complete_config(predict)
    assert data.comparison["chosen"] == min(scores, key=scores.get)
    assert data.comparison["monitor"] == "log_loss"
    assert data.comparison["num_held_out"] == 0
    assert data.comparison["num_rows"] == 600
    assert data.comparison["values"] == pytest.approx(scores, abs=1e-4)


def test_rows_are_held_out_by_time():
    labels = np.arange(11) % 2
    batch = Batch(labels, np.arange(11.0)[:, None], np.arange(11)[:, None], None)
    train, held_out = Rows(batch).split()
    assert train.ids[:, 0].tolist() == [*range(9)]
    assert held_out.ids[:, 0].tolist() == [9, 10]
    times = np.array([9, 1, 2, 3, 4, 5, 6, 7, 8, 0, 9.0])
    train, held_out = Rows(batch, times).split()
    assert held_out.ids[:, 0].tolist() == [0, 10]
    assert sorted(train.ids[:, 0].tolist()) == [*range(1, 10)]


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_rows_in_memory_are_those_of_training(tmp_path, rate):
    schema = dataclasses.replace(SCHEMA, time="seconds")
    path = write_log(tmp_path / "a.csv", 900, False, time=True, extra=["x,bad,row,0"])
    config = dataclasses.replace(
        runs.get(None), negative_sampling_rate=rate, max_bad_share=0.1, shuffle=False
    )
    (tmp_path / "run").mkdir()
    data = open_log(tmp_path, path, config=config, schema=schema)
    rows = data.load_rows()
    data.complete_config()
    batches = [*data.train_dataset()]
    ids = np.concatenate([x["sparse_features"].to_tensor()[..., 0] for x, _ in batches])
    np.testing.assert_array_equal(rows.batch.ids, ids)
    labels = np.concatenate([label for _, label in batches])
    np.testing.assert_array_equal(rows.batch.labels, labels)
    assert len(rows.times) == len(labels) == data.num_rows
    assert (len(labels) == 900) == (rate == 1.0)
    assert len(np.unique(rows.times)) == len(labels)


def test_days_are_compared_on_the_first(tmp_path):
    days = [
        write_log(tmp_path / f"{i}.csv", 100 + i, pairs=False, seed=i) for i in range(3)
    ]
    folder = RunFolder(tmp_path / "run")
    data = DayData(runs.get(None), days, None, folder, schema=SCHEMA)
    assert len(data.load_rows().batch.labels) == 100
    assert data.dataset_to_compare() is None


@pytest.mark.parametrize("num_rows, compares", [(40_000, True), (40_001, False)])
def test_few_rows_are_compared(num_rows, compares):
    config = runs.get(None)
    names = [*defaults.make_candidates(config, num_rows, 39)]
    assert names == (["additive", "dot"] if compares else ["dot"])
    for options in ({"interaction": "cross"}, {"compare_models": False}):
        own = dataclasses.replace(config, **options)
        assert len(defaults.make_candidates(own, num_rows, 39)) == 1
    assert [*defaults.make_candidates(config, 20_000, 1_001)] == ["cat"]
    assert [*defaults.make_candidates(RunConfig(), num_rows, 39)] == ["dot"]
    large = defaults.make_candidates(config, 40_000, 39, num_values=10**9)
    assert [candidate.l2 for candidate in large.values()] == [0.0, 0.0]
    small = defaults.make_candidates(config, 1_000, 39, num_values=10**6)
    assert [candidate.l2 for candidate in small.values()] == [0.002, 0.0]


def test_options_that_were_passed_stay(tmp_path):
    config = dataclasses.replace(runs.get(None), epochs=7, batch_size=32, dropout=0.1)
    for candidate in defaults.make_candidates(config, 1000, 2).values():
        assert (candidate.epochs, candidate.batch_size) == (7, 32)
        assert candidate.dropout == 0.1
    single = defaults.make_candidates(runs.get(None), 30_000, 1)
    assert [c.interaction for c in single.values()] == ["cat", "cat"]


@pytest.mark.parametrize("monitor, best", [("auc", "b"), ("log_loss", "a")])
def test_a_value_that_is_not_finite_is_never_the_best(monitor, best):
    assert model_choice._best({"a": 0.5, "b": 0.6, "c": None}, monitor) == best
    assert model_choice._best({"a": None, "b": None}, monitor) == "b"


def parse(tmp_path, capsys, options):
    (tmp_path / "a.tsv").write_text("0" + 39 * "\t" + "\n")
    command = ["train", "--train", f"{tmp_path}/a.tsv", "--out", "o", "--dry-run"]
    assert cli.main([*command, *options.split()]) == 0
    printed = capsys.readouterr().out
    text = printed[printed.index("{") : printed.rindex("}") + 1]
    return RunConfig.from_json(text).compare_models


def test_a_model_that_was_named_is_not_compared(tmp_path, capsys):
    assert parse(tmp_path, capsys, "--epochs 3 --optimizer adam")
    for options in (
        "--interaction None",
        "--top-mlp-dims 64 1",
        "--initial-embedding-limit=0.1",
        "--l2 0",
        "--no-compare-models",
        "--run demo",
    ):
        assert not parse(tmp_path, capsys, options)


def stored_run(path, candidate="additive"):
    config = defaults.make_candidates(runs.get(None), 1000, 39)[candidate]
    folder = RunFolder(path)
    content = {"config": json.loads(config.to_json()), "vocabulary_digest": "0"}
    folder.config_path.write_text(json.dumps({**content, "data": {}}))
    for file in (folder.vocabulary_path, folder.model_path):
        file.touch()
    return folder, config


def test_a_resumed_run_keeps_the_model_that_it_chose(tmp_path):
    folder, config = stored_run(tmp_path)
    check_same(folder, runs.get(None), {})
    assert not compares_models(folder.read_config())
    other = dataclasses.replace(runs.get(None), compare_models=False)
    with pytest.raises(ValueError, match=r"`top_mlp_dims` was \(1,\), now \(128"):
        check_same(folder, dataclasses.replace(other, top_mlp_dims=(128, 1)), {})


def compares_models(config):
    return len(defaults.make_candidates(config, 1000, 39)) > 1


@pytest.mark.parametrize("candidate", ["additive", "dot"])
def test_a_warm_start_takes_the_model_that_was_chosen(tmp_path, candidate):
    _, before = stored_run(tmp_path, candidate)
    start = previous_run.find(tmp_path, runs.get(None), first_step=16)
    config = start.complete(runs.get(None))
    for option in defaults.CHOSEN:
        assert getattr(config, option) == getattr(before, option)
    assert not compares_models(config)


@pytest.mark.integration
@pytest.mark.parametrize("is_prepared", [False, True])
def test_a_run_equals_that_of_its_choice(tmp_path, is_prepared):
    data = write_log(tmp_path / "a.csv", 2000, pairs=False)
    options = {"schema": SCHEMA}
    if is_prepared:
        SCHEMA.save(tmp_path / "schema.json")
        command = ["prepare", "--input", data, "--out", tmp_path / "records"]
        command += ["--schema", tmp_path / "schema.json", "--valid-share", "0.2"]
        assert cli.main([str(word) for word in command]) == 0
        data, options = tmp_path / "records", {}
        opened = RecordData(runs.get(None), data)
        assert len(opened.load_rows().batch.labels) == opened.num_rows
    config = dataclasses.replace(runs.get(None), deterministic=True)
    run, _ = runs.train(config, data, None, tmp_path / "run", **options)
    chosen = run.read_config()
    facts = run.read_data()["comparison"]
    assert facts["chosen"] in ("additive", "dot")
    assert facts["num_held_out"] == (0 if is_prepared else 400)
    named = dataclasses.replace(chosen, compare_models=False)
    same, _ = runs.train(named, data, None, tmp_path / "same", **options)
    assert same.read_data()["comparison"] is None
    models = [each.load_model(each.load_parser()) for each in (run, same)]
    for weights in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(*weights)


class CutError(Exception):
    pass


class _Cut(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == 25:
            raise CutError


@pytest.mark.integration
def test_a_killed_run_resumes_with_the_model_that_it_chose(tmp_path, capsys):
    data = write_log(tmp_path / "a.csv", 2000, pairs=False)
    config = dataclasses.replace(runs.get(None), deterministic=True)

    def train(name, callbacks=(), resume=False):
        with contextlib.suppress(CutError):
            return runs.train(
                config,
                data,
                None,
                tmp_path / name,
                callbacks=callbacks,
                resume=resume,
                checkpoints={"every_steps": 10},
                schema=SCHEMA,
            )

    whole, _ = train("whole")
    assert train("cut", [_Cut()]) is None
    capsys.readouterr()
    cut, _ = train("cut", resume=True)
    assert "Compar" not in capsys.readouterr().out
    assert cut.read_config() == whole.read_config()
    assert cut.read_data()["comparison"] == whole.read_data()["comparison"]
    models = [each.load_model(each.load_parser()) for each in (whole, cut)]
    for weights in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(*weights)
