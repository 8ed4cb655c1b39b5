"""Defaults that go by the optimizer and the number of rows."""

import dataclasses
import json
import pathlib
import re

import pytest

from pipelines import cli, runs
from pipelines.runs import defaults, previous_run
from pipelines.runs.config import RunConfig
from pipelines.runs.folder import RunFolder
from pipelines.runs.resuming import check_same

DEMO = runs.get("demo")
ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    "num_rows, interaction, batch_size, num_epochs",
    [
        (0, "cat", 128, 2),
        (500, "cat", 128, 2),
        (20_000, "cat", 128, 2),
        (20_001, "dot", 128, 2),
        (39_000, "dot", 128, 2),
        (100_000, "dot", 256, 2),
        (100_001, "dot", 256, 1),
        (1_000_000, "dot", 1024, 1),
        (45_000_000, "dot", 1024, 1),
    ],
)
def test_defaults_go_by_the_rows(num_rows, interaction, batch_size, num_epochs):
    config = defaults.complete(runs.get(None), num_rows)
    assert config.interaction == interaction
    assert (config.batch_size, config.epochs) == (batch_size, num_epochs)
    # Without a choice in it, a config has the interaction that it always had.
    assert defaults.complete(RunConfig(), num_rows).interaction == "dot"
    assert RunConfig.from_json("{}").interaction == "dot"


def test_few_rows_come_with_a_hint():
    config = runs.get(None)
    for num_rows, hint in [(20_000, True), (20_001, False)]:
        line = defaults.describe(config, defaults.complete(config, num_rows), num_rows)
        interaction = "cat" if hint else "dot"
        assert line.startswith(f"Chosen for {num_rows:,} rows and adagrad: interaction")
        assert f"interaction {interaction}, batches of 128 rows, epochs: 2" in line
        assert ("a logistic regression may do as well" in line) == hint
    assert defaults.describe(DEMO, DEMO, 10) is None


def test_the_other_options_are_printed():
    config = dataclasses.replace(runs.get(None), dropout=0.25, l2=1e-5)
    completed = defaults.complete(config, 10**5)
    printed = defaults.describe(config, completed, 10**5, min_count=7)
    assert printed.splitlines()[1] == (
        "Other options: learning rate decay: linear, least count of a value: 7, "
        "embeddings of 16 values, bottom MLP 128-64-16, top MLP 128-64-1, "
        "dropout 0.25, L2 penalty 1e-05."
    )
    assert "least count" not in defaults.describe(config, completed, 10**5)


def test_the_page_has_the_defaults():
    page = (ROOT / "docs/reference/defaults.md").read_text(encoding="utf-8")
    rows = re.findall(r"(?m)^\| `--(\S+)` \| `?([^|]+?)`? \|$", page)
    table = {name.replace("-", "_"): text for name, text in rows}
    config = runs.get(None)
    for name in ("optimizer", "learning_rate_decay", "dropout", "min_count", "l2"):
        assert table.pop(name) == f"{getattr(config, name)}"
    for name in ("bottom_mlp_dims", "top_mlp_dims"):
        assert table.pop(name) == " ".join(map(str, getattr(config, name)))
    assert table.pop("embedding_dim") == str(config.embedding_dim)
    assert set(table) == {"batch_size", "epochs", "interaction"}
    assert {n for n in table if getattr(config, n) is not None} == set()
    for optimizer, rates in defaults.LEARNING_RATES.items():
        assert f"| `{optimizer}` | {rates[0]:g} | {rates[1]:g} |" in page


def test_an_interaction_to_be_chosen_is_checked_as_dot():
    with pytest.raises(ValueError, match="`bottom_mlp_dims` must end in embedding_dim"):
        RunConfig(interaction=None, embedding_dim=8, bottom_mlp_dims=(4,))


def test_the_default_bottom_mlp_ends_in_the_embedding_dim():
    assert RunConfig(embedding_dim=8).bottom_mlp_dims == (512, 256, 64, 8)
    assert RunConfig().bottom_mlp_dims == (512, 256, 64, 16)
    cat = RunConfig(interaction="cat", embedding_dim=8)
    assert cat.bottom_mlp_dims == (512, 256, 64, 16)


def test_a_warm_start_takes_the_interaction_of_the_previous_run(tmp_path):
    previous = defaults.complete(runs.get(None), 1000)
    folder = RunFolder(tmp_path)
    content = {"config": json.loads(previous.to_json()), "data": {}}
    folder.config_path.write_text(json.dumps({**content, "vocabulary_digest": "0"}))
    for path in (folder.vocabulary_path, folder.model_path):
        path.touch()
    start = previous_run.find(tmp_path, runs.get(None), first_step=16)
    config = start.complete(runs.get(None))
    assert defaults.complete(config, 10**6).interaction == previous.interaction == "cat"
    assert start.complete(DEMO) == DEMO
    with pytest.raises(ValueError, match="`interaction` was cat, now dot"):
        previous_run.find(tmp_path, DEMO, first_step=16)
    assert previous_run.find(None, runs.get(None)).complete(DEMO) == DEMO


def test_a_million_rows_have_the_values_of_the_demo():
    demo = dataclasses.replace(DEMO, compare_models=True)
    assert defaults.complete(runs.get(None), 1_000_000) == demo


def test_rates_go_by_the_optimizer_and_what_is_given_stays():
    for optimizer, rates in defaults.LEARNING_RATES.items():
        config = defaults.complete(RunConfig(optimizer=optimizer), 99)
        assert (config.learning_rate, config.embedding_learning_rate) == rates
    given = {"learning_rate": 0.7, "batch_size": 17, "epochs": 5}
    config = defaults.complete(RunConfig(**given), 10**6)
    assert {name: getattr(config, name) for name in given} == given
    assert config.embedding_learning_rate is None  # that of the MLPs
    config = defaults.complete(RunConfig(embedding_learning_rate=0.7), 99)
    assert (config.learning_rate, config.embedding_learning_rate) == (0.02, 0.7)


def parse(tmp_path, capsys, options):
    (tmp_path / "a.tsv").write_text("0" + 39 * "\t" + "\n")
    command = ["train", "--train", f"{tmp_path}/a.tsv", "--out", "o", "--dry-run"]
    assert cli.main([*command, *options.split()]) == 0
    printed = capsys.readouterr().out
    text = printed[printed.index("{") : printed.rindex("}") + 1]
    return RunConfig.from_json(text)


@pytest.mark.integration
@pytest.mark.parametrize("run", ["", "--run demo "])
def test_another_optimizer_has_its_own_rates(tmp_path, capsys, run):
    config = parse(tmp_path, capsys, f"{run}--optimizer adam")
    assert (config.learning_rate, config.embedding_learning_rate) == (None, None)
    config = parse(tmp_path, capsys, f"{run}--optimizer=adam --learning-rate 0.5")
    assert (config.learning_rate, config.embedding_learning_rate) == (0.5, None)
    config = parse(tmp_path, capsys, f"{run}--batch-size 99 --optimizer adagrad")
    assert config.batch_size == 99
    assert config.learning_rate == (0.02 if run else None)


@pytest.mark.parametrize("name", runs.RUNS)
def test_named_runs_leave_nothing_to_be_chosen(name, tmp_path, capsys):
    config = runs.get(name)
    assert defaults.complete(config, 123) == config
    assert parse(tmp_path, capsys, f"--run {name}") == config
    same = f"--run {name} --optimizer {config.optimizer}"
    assert parse(tmp_path, capsys, same) == config


def test_a_resumed_run_keeps_what_was_chosen_for_it(tmp_path):
    folder = RunFolder(tmp_path)
    stored = defaults.complete(runs.get(None), 1000)
    content = {"config": json.loads(stored.to_json()), "vocabulary_digest": "0"}
    folder.config_path.write_text(json.dumps({**content, "data": {}}))
    check_same(folder, runs.get(None), {})
    check_same(folder, stored, {})
    assert defaults.complete(folder.read_config(), 10**6) == stored
    with pytest.raises(ValueError, match="`batch_size` was 128, now 64"):
        check_same(folder, dataclasses.replace(stored, batch_size=64), {})
