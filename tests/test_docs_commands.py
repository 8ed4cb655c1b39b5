"""The commands on the pages of docs/, on few rows and in small tables."""

import json
import pathlib
import re
import shlex
import shutil
import sys

import pytest
from helpers import guide

import pipelines
from pipelines import cli
from pipelines.runs.folder import RunFolder
from pipelines.synthetic import Planted

pytestmark = pytest.mark.integration

# Smaller than on the pages.
SMALLER = {
    "--days": "2",
    "--rows": "2500",
    "--hash-buckets": "1000",
    "--min-slice-rows": "300",
}
FILES = ("day_0.gz", "day_1.gz", "day_2.gz", "today.gz", "day_23.gz")
NUM_ROWS = 2_500


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with days of logs; the tests add to it what the pages speak of."""
    folder = tmp_path_factory.mktemp("pages")
    for number, name in enumerate(FILES):
        Planted().write(folder / name, NUM_ROWS, number * NUM_ROWS)
    return folder


@pytest.fixture
def run(place, monkeypatch, capsys):
    """Runs the commands of a page that have these names; returns what they print."""
    monkeypatch.chdir(place)

    def run_page(page, *names):
        typed = [c for c in guide.all_commands(page) if c[0] in names]
        assert [command[0] for command in typed] == list(names)
        printed = []
        for command in typed:
            for option in SMALLER.keys() & set(command):
                command[command.index(option) + 1] = SMALLER[option]
            if command[0] == "train" and "--resume" not in command:
                _move_away(command[command.index("--out") + 1])
            assert cli.main(command) in (0, None), shlex.join(command)
            printed.append(capsys.readouterr().out)
        return printed

    return run_page


def _move_away(out):
    """What a folder holds is the run of yesterday."""
    if pathlib.Path(out).exists():
        shutil.rmtree("runs/yesterday", ignore_errors=True)
        shutil.move(out, "runs/yesterday")


@pytest.fixture(scope="module")
def mine(place):
    """The run that several pages go on with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (command, *_) = guide.all_commands("how_to/resume.md")
        assert cli.main(command) == 0
    return RunFolder(place / "runs/mine")


def test_evaluation(mine, run):
    (printed,) = run("how_to/evaluate.md", "evaluate")
    assert "gauc" in printed and "C3" in printed


def test_features_and_tables(mine, run):
    printed = run("how_to/find_important_features.md", "importance", "importance")
    assert "counts" in printed[0] and "numbers" in printed[1]
    (printed,) = run("how_to/shrink_tables.md", "tables")
    assert "stable rank" in printed


def test_serving(mine, place, run):
    exported, _ = run("how_to/export.md", "export", "export")
    run("how_to/score_files.md", "predict")
    assert "saved_models/ctr/1" in exported
    assert cli.main(["verify", "saved_models/ctr"]) == 0
    header, *rows = (place / "scores.csv").read_text().splitlines()
    assert header == "file,line,label,probability" and len(rows) == NUM_ROWS


def test_corrections(mine, run):
    for printed in run("how_to/correct_probabilities.md", "export", "export"):
        assert "log loss" in printed and "Correction (platt) of 2,500 rows" in printed


def test_watching(mine, run):
    for name in ("cross", "dot_adagrad", "dot_adam"):
        shutil.copytree(mine.path, f"runs/{name}")
    (printed,) = run("how_to/compare_runs.md", "report")
    assert "dot_adagrad" in printed
    assert pathlib.Path("runs/report/report.md").exists()


def test_training(mine, place, run):
    """From here on `runs/mine` is another."""
    _, resumed = run("how_to/resume.md", "train", "train")
    (progressive,) = run("how_to/progressive_validation.md", "train")
    (warm,) = run("how_to/warm_start.md", "train")
    assert "this run is already finished" in resumed
    assert re.search(r"^day_2\.gz +2,500 ", progressive, re.M)
    assert "kept" in warm
    stored = json.loads((place / "runs/mine/metrics.json").read_text())
    assert [day["day"] for day in stored["days"]] == ["day_1.gz", "day_2.gz"]


def test_data(place, run):
    run("how_to/prepare.md", "prepare", "train", "evaluate")
    run("how_to/sample_negatives.md", "prepare", "train")
    pipelines.Schema("click", ["price"], ["country"]).save("clicks.json")
    names = ["generate", "generate", "profile-trace", "generate"]
    run("how_to/generate_logs.md", *names)
    pathlib.Path("clicks.json").unlink()  # another page writes it
    assert json.loads((place / "data/clicks.csv.gz.json").read_text())["best_auc"] > 0.6
    written = json.loads((place / "runs/mine/metrics.json").read_text())
    assert written["num_negatives_left_out"] > 0
    assert len((place / "data/like_day_0.tsv").read_text().splitlines()) == 2_500


def plan(page, names):
    """Let each of the commands of a page say what it would do."""
    commands = [c for c in guide.all_commands(page) if c[0] in names]
    assert {command[0] for command in commands} == set(names)
    for command in commands:
        if "--peer-python" in command:
            command[command.index("--peer-python") + 1] = sys.executable
        assert cli.main([*command, "--dry-run"]) == 0, shlex.join(command)


def test_commands_that_take_minutes_are_planned(place, monkeypatch):
    monkeypatch.chdir(place)
    plan("results/speed.md", ["benchmark"])
    plan("how_to/tune.md", ["tune"])


def test_examples_of_the_commands_are_planned(mine, place, monkeypatch):
    """`predict`, `verify` and `runs` are run by other tests."""
    monkeypatch.chdir(place)
    Planted().write("clicks.csv", 300)
    for name in ("one", "two"):
        shutil.copytree(mine.path, f"runs/{name}")
    shutil.move("runs/mine", "runs/not_yet")
    try:
        plan(
            "reference/commands.md", ["generate", "schema", "prepare", "train", "tune"]
        )
    finally:
        shutil.move("runs/not_yet", "runs/mine")
    names = ["profile-trace", "evaluate", "importance", "tables", "report"]
    names += ["export", "benchmark"]
    plan("reference/commands.md", names)
