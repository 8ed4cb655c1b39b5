"""`tf-dlrm tune`: it finds what is good, ends what is not, and survives interrupts."""

import csv
import dataclasses
import json
import math
import pathlib
import resource

import keras
import numpy as np
import pytest
from helpers import event_files
from helpers.lock_holder import holding

import pipelines
from pipelines import cli
from pipelines.runs.config import RunConfig
from pipelines.runtime import UserError
from pipelines.tuning import search, space

pytest.importorskip("optuna")
import optuna  # noqa: E402

BASE = RunConfig(
    embedding_dim=4,
    bottom_mlp_dims=(4,),
    top_mlp_dims=(4, 1),
    interaction="cat",
    optimizer="sgd",
    learning_rate=0.3,
    embedding_learning_rate=10.0,
    batch_size=100,
    epochs=1,
    min_count=1,
)
ONE_RATE = "--space optimizer --optimizer sgd --learning-rate 0.3 --batch-size 100"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A log whose clicks depend on one column, its schema, and a config."""
    folder = tmp_path_factory.mktemp("tune")
    rng = np.random.default_rng(0)
    effects = rng.normal(0, 2, 20)
    for name, num_rows in (("train", 1800), ("valid", 900)):
        items = rng.integers(0, 20, num_rows)
        clicks = rng.random(num_rows) < 1 / (1 + np.exp(-effects[items]))
        rows = (f"{c:d},{i / 20},i{i}\n" for c, i in zip(clicks, items))
        (folder / f"{name}.csv").write_text("click,age,item\n" + "".join(rows))
    text = pipelines.Text(",", header=True)
    schema = pipelines.Schema("click", ["age"], ["item"], format=text)
    schema.save(folder / "schema.json")
    config = json.loads(BASE.to_json()) | {"batch_size": None}  # by the rows
    (folder / "base.json").write_text(json.dumps({"config": config}))
    return folder


@pytest.fixture
def tune(folder, monkeypatch):
    """Runs the command in the folder of the log."""
    monkeypatch.chdir(folder)

    def run(out, trials, options=ONE_RATE):
        command = "tune --train train.csv --valid valid.csv --schema schema.json"
        words = f"{command} --config base.json --trials {trials} {options}".split()
        return cli.main([*words, "--out", str(out)])

    return run


@pytest.mark.slow
def test_the_best_rate_of_a_planted_log_is_found(tune, tmp_path):
    """In 18 steps, tables learn the 20 effects only at rates of ten or more."""
    options = f"{ONE_RATE} --l2 0 --monitor log_loss --config wide.json"
    config = dataclasses.replace(BASE, embedding_learning_rate=2.0)
    content = {"config": json.loads(config.to_json())}
    pathlib.Path("wide.json").write_text(json.dumps(content))
    assert tune(tmp_path / "out", 12, options) == 0
    trials = read_trials(tmp_path / "out")
    best = json.loads((tmp_path / "out/best.json").read_text())
    assert best["config"]["embedding_learning_rate"] > 7
    assert sum(t["state"] == "pruned" for t in trials) >= 5
    for trial in trials:
        is_slow = float(trial["embedding_learning_rate"]) < 1
        assert not is_slow or float(trial["log_loss"]) > best["value"] + 0.02


def read_trials(out):
    """Return the rows of `trials.csv`, without the seconds."""
    with open(out / "trials.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


class Judged:
    """Instead of a training: a score of the config, best at a rate of 40."""

    interrupts = set()  # trials and shares at which they are interrupted, once each

    def __init__(self, config, inputs, folder, watching, checkpoints):
        self.config, self.trial = config, watching.trial

    def run(self):
        rate = self.config.embedding_learning_rate
        score = 0.9 - 0.1 * math.log(rate / 40) ** 2
        if self.config.dropout == 0.5:
            raise UserError("Training diverged.")
        for share in (1, 3):
            place = (self.trial.number, share)
            if place in self.interrupts:
                self.interrupts.remove(place)
                raise KeyboardInterrupt
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(optuna.trial._trial, "optuna_warn", lambda *_: None)
                self.trial.report(score - 0.1 / share, share)
            if self.trial.should_prune():
                raise optuna.TrialPruned
        return None, {"metrics": {"val_loss": 1.0, "val_auc": score}}


@pytest.fixture
def judged(monkeypatch):
    monkeypatch.setattr(search, "TrainingJob", Judged)
    monkeypatch.setattr(keras.utils, "clear_session", lambda: None)  # is slow


@pytest.mark.integration
def test_the_best_region_is_found_and_others_are_stopped(tune, judged, tmp_path):
    assert tune(tmp_path / "out", 30) == 0
    trials = read_trials(tmp_path / "out")
    assert len(trials) == 30 and float(trials[0]["embedding_learning_rate"]) == 10
    complete = [t for t in trials if t["state"] == "complete"]
    pruned = [t for t in trials if t["state"] == "pruned"]
    assert len(complete) + len(pruned) == 30 and len(pruned) > 10
    assert {t["rows"] for t in pruned} <= {"1/9", "1/3"}
    assert {t["rows"] for t in complete} == {"all"}
    rates = [float(t["embedding_learning_rate"]) for t in trials]
    assert min(rates) >= 1 and max(rates) <= 100
    best = json.loads((tmp_path / "out/best.json").read_text())
    assert 30 < best["config"]["embedding_learning_rate"] < 50
    assert best["value"] == max(float(t["auc"]) for t in complete)
    # Trials after the random ones are nearer to the best.
    distances = np.abs(np.log(np.array(rates) / 40))
    assert np.median(distances[15:]) < 0.7 * np.median(distances[:10])
    assert (tmp_path / "out/trials.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.integration
def test_an_interrupted_search_ends_as_the_whole_one(tune, judged, tmp_path):
    whole, cut, options = tmp_path / "whole", tmp_path / "cut", "--space recipe"
    assert tune(whole, 9, options) == 0
    trials = read_trials(whole)
    assert {t["state"] for t in trials} == {"complete", "pruned", "failed"}
    failed = [t for t in trials if t["state"] == "failed"]
    assert {t["reason"] for t in failed} == {"Training diverged."}
    Judged.interrupts |= {(0, 3), (4, 1)}
    assert tune(cut, 9, options) == 130
    assert tune(cut, 9, options) == 130
    assert not Judged.interrupts
    assert tune(cut, 6, options) == 0  # some of what is left
    assert read_trials(cut) == trials[:6]
    assert tune(cut, 9, options) == 0
    assert read_trials(cut) == trials
    best = [json.loads((out / "best.json").read_text()) for out in (cut, whole)]
    assert best[0]["config"] == best[1]["config"]


@pytest.mark.integration
def test_another_search_in_the_folder_is_refused(
    tune, judged, folder, tmp_path, capsys
):
    out = tmp_path / "out"
    assert tune(out, 1) == 0
    for options, message in (
        (ONE_RATE.replace("0.3", "0.2"), "--learning-rate was 0.3, now 0.2"),
        ("--space network", "--space was optimizer, now network"),
        (f"{ONE_RATE} --monitor log_loss", "--monitor was auc, now log_loss"),
        (f"{ONE_RATE} --embedding-learning-rate 10 --space all", "--space was"),
        (ONE_RATE.replace("--batch-size 100", ""), "that do not vary were batch_size"),
    ):
        capsys.readouterr()
        assert tune(out, 2, options) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
        assert "Repeat its command, or choose another --out" in error
    with holding(out):
        assert tune(out, 2) == 2
        assert "is being written by process" in capsys.readouterr().err
    text = (folder / "valid.csv").read_text()
    (folder / "valid.csv").write_text(text.replace("i1", "i2"))
    assert tune(out, 2) == 2
    assert "valid.csv of --valid" in capsys.readouterr().err
    (folder / "valid.csv").write_text(text)
    assert tune(out, 2) == 0
    (out / "config.json").write_text("{}")
    assert tune(out, 2) == 2
    assert "contains a run. Choose another --out" in capsys.readouterr().err


@pytest.mark.integration
def test_a_full_disk_is_one_line_and_the_search_goes_on(tune, tmp_path, capsys):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        assert tune(tmp_path / "t", 1) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    error = capsys.readouterr().err
    assert "t/study.db: the list of trials cannot be written: " in error
    assert "then run it again to continue the search." in error
    assert error.count("\n") == 1
    assert tune(tmp_path / "t", 1) == 0


@pytest.mark.integration
def test_mistakes_are_one_line(tune, judged, tmp_path, capsys, monkeypatch):
    (tmp_path / "list.json").write_text('{"config": []}')
    (tmp_path / "typo.json").write_text('{"config": {"epoch": 2}}')
    cases = (
        ("--dropout 0.5", "All 2 trials failed. The first: Training diverged."),
        ("--space tables --min-count 1 --embedding-dim 4 --l2 0 "
         "--embedding-learning-rate 1", "--space tables has no option that may vary"),
        ("--trials 0", "--trials must be at least 1"),
        ("--run demo", "--config and --run both set the defaults"),
        (f"--config {tmp_path}/no.json", "No such file or directory"),
        (f"--config {tmp_path}/list.json", "it has no `config`"),
        (f"--config {tmp_path}/typo.json", "There is no option 'epoch'"),
    )  # fmt: skip
    for number, (options, message) in enumerate(cases):
        capsys.readouterr()
        assert tune(tmp_path / f"{number}", 2, options) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert read_trials(tmp_path / "0")[1]["state"] == "failed"
    command = "tune --train train.csv --schema schema.json --config base.json --out o"
    assert cli.main(command.split()) == 2
    assert (
        "needs validation rows: name their files in --valid" in capsys.readouterr().err
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(command.split()) == 2
    assert "pip install optuna" in capsys.readouterr().err


def test_a_dry_run_names_what_varies(tune, tmp_path, capsys):
    assert tune(tmp_path / "out", 3, "--l2 0.001 --dry-run") == 0
    printed = capsys.readouterr().out
    assert "vary learning_rate, embedding_learning_rate, learning_rate_decay" in printed
    assert "decay, dropout\n" in printed and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", space.SPACES)
def test_each_choice_of_a_space_is_a_config(name):
    """Also around a base whose values are none of the choices."""
    base = dataclasses.replace(
        BASE,
        interaction="cross",
        cross_layers=2,
        embedding_dim=6,
        bottom_mlp_dims=(24, 6),
        batch_size=300,
    )
    tried = space.Space.make(name, base, ())
    assert tried.choose(lambda name, **_: tried.start()[name]) == base
    rng, seen = np.random.default_rng(0), {option: set() for option in tried.names}

    def suggest(name, choices=None, low=None, high=None):
        if choices is None:
            assert high == pytest.approx(100 * low)
            return float(np.exp(rng.uniform(np.log(low), np.log(high))))
        return choices[rng.integers(len(choices))]

    for _ in range(60):
        config = tried.choose(suggest)
        changed = {k for k, v in vars(config).items() if v != vars(base)[k]}
        allowed = {*tried.names, "bottom_mlp_dims", "cross_layers"}
        assert changed <= allowed
        assert RunConfig.from_json(config.to_json()) == config
        for option in tried.names:
            seen[option].add(getattr(config, option))
    for option, values in seen.items():
        assert len(values) >= len(space.CHOICES.get(option, range(60))), option
    kept = space.Space.make(name, base, ("l2", "learning_rate", "bottom_mlp_dims"))
    varies = {"l2", "learning_rate", "bottom_mlp_dims", "embedding_dim"}
    assert not varies & set(kept.names)


def test_fixed_rates_stay_where_the_optimizer_varies():
    tried = space.Space.make("optimizer", BASE, ("learning_rate", "batch_size"))
    config = tried.choose(
        lambda name, **o: o["choices"][2] if "choices" in o else o["low"]
    )
    assert config.optimizer == "adam" and config.learning_rate == BASE.learning_rate
    assert config.embedding_learning_rate == pytest.approx(0.0004)


@pytest.mark.integration
def test_trials_are_trained_stopped_resumed_and_repeated(
    tune, folder, tmp_path, monkeypatch, capsys
):
    options = f"{ONE_RATE} --deterministic --seed 5"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert tune(whole, 2, options) == 0
    printed, trials = capsys.readouterr().out, read_trials(whole)
    best = json.loads((whole / "best.json").read_text())
    assert "Trials: 1 complete, 1 pruned, 0 failed" in printed
    # The models of other trials are removed; what remains can be compared.
    models = [path.parent.name for path in whole.glob("trials/*/model.keras")]
    assert models == [f"{best['trial']:03d}"]
    for number, trial in enumerate(trials, start=1):
        logs = whole / f"trials/{number:03d}/logs"
        values, _, status = event_files.hyperparameters(logs)
        rate = values["embedding_learning_rate"]
        assert rate == pytest.approx(float(trial["embedding_learning_rate"]))
        written = event_files.read(logs / "validation")["metrics/auc"]
        assert list(written) == {"complete": [2, 6, 18], "pruned": [2]}[trial["state"]]
        assert written[max(written)] == pytest.approx(float(trial["auc"]), abs=1e-6)

    real = search._Rungs._report

    def interrupt(rungs, results):
        if rungs._trial.number == 1:
            raise KeyboardInterrupt
        real(rungs, results)

    with monkeypatch.context() as patch:
        patch.setattr(search._Rungs, "_report", interrupt)
        assert tune(cut, 2, options) == 130
    assert tune(cut, 2, options) == 0
    assert read_trials(cut) == trials

    # A loss that is not finite is a failure, also where an AUC can be computed.
    diverging = "--space recipe --learning-rate 1e12 --embedding-learning-rate 1e12"
    diverging += " --max-skipped-batches 99 --optimizer sgd --epochs 1"
    assert tune(tmp_path / "failed", 1, diverging) == 2
    assert "The first: Training diverged: val_loss is" in capsys.readouterr().err

    command = best["command"].split()
    assert command[:2] == ["tf-dlrm", "train"] and best["command"] in printed
    assert cli.main(command[1:]) == 0
    results = json.loads((whole / "best/metrics.json").read_text())["metrics"]
    assert results["val_auc"] == pytest.approx(best["value"], abs=1e-7)
    assert cli.main([*command[1:], "--resume"]) == 0
    assert "already finished" in capsys.readouterr().out
