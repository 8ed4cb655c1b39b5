"""docs/tutorials/own_log.md: commands, edits and Python run and print what it shows."""

import contextlib
import io
import json
import pathlib
import re
import shlex

import numpy as np
import pandas as pd
import pytest
from helpers import guide

from pipelines import cli

pytestmark = pytest.mark.integration

PAGE = "tutorials/own_log.md"
TEXT = (guide.DOCS / PAGE).read_text()
SECTIONS = guide.sections(PAGE)
NUM_ROWS = 10_000


def run_command(command):
    """Run a command, and return its exit status and what it prints."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        with contextlib.redirect_stderr(printed):
            status = cli.main(command)
    return status or 0, printed.getvalue()


def edit(path, diff):
    """Replace the lines of a file that a block `diff` takes out by those it adds."""
    old, new = (
        "".join(line[1:] for line in diff.splitlines(True) if line[0] == sign)
        for sign in "-+"
    )
    content = path.read_text()
    if not content.endswith("\n"):
        content += "\n"
    assert content.count(old) == 1, old
    path.write_text(content.replace(old, new))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder after the page's sections for the shell; what its blocks name; what
    its commands print."""
    folder = tmp_path_factory.mktemp("own_log")
    names, printed = {}, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        guide.run("A log", names, PAGE)
        blocks = re.findall(
            r"```(bash|python|diff)\n(.*?)```", SECTIONS["From the shell"], re.S
        )
        assert [kind for kind, _ in blocks].count("diff") == 3
        for kind, block in blocks:
            if kind == "python":
                exec(compile(block, PAGE, "exec"), names)
            elif kind == "diff":
                edit(folder / "clicks.json", block)
            else:
                for line in block.splitlines():
                    program, *command = shlex.split(line)
                    assert program == "tf-dlrm"
                    status, printed[command[0]] = run_command(command)
                    assert status == 0, printed[command[0]]
    return folder, names, printed


@pytest.fixture
def at_place(place, monkeypatch):
    monkeypatch.chdir(place[0])
    return place


def test_the_table_of_the_schema_is_what_is_printed(place):
    (shown,) = re.findall(r"```\n(column .*?)```", TEXT, re.S)
    rows = [line.split() for line in place[2]["schema"].splitlines()]
    for line in shown.splitlines():
        assert line.split() in rows, line


def test_the_commands_train_and_predict(place):
    folder, _, printed = place
    written = json.loads((folder / "runs/mine/evaluation.json").read_text())
    assert 0.70 < written["auc"] < 0.80
    assert "GAUC by user" in printed["evaluate"]
    slices = pd.read_csv(
        folder / "runs/mine/evaluation_slices.csv", keep_default_na=False
    )
    assert set(slices["value"]) == {"DE", "FR", "IN", "NA", "US"}
    scores = pd.read_csv(folder / "scores.csv")
    assert len(scores) == NUM_ROWS and scores["probability"].between(0, 1).all()
    requests = folder / "saved_models/ctr/1/assets.extra/README.md"
    assert "serving_lines" in requests.read_text()


def test_the_python_of_the_page(at_place):
    names = dict(at_place[1])
    for title in ("In Python", "From a Parquet folder", "From a DataFrame"):
        guide.run(title, names, PAGE)
        if title == "In Python":
            assert 0.70 < names["result"]["auc"] < 0.80
            assert pathlib.Path(names["path"]).name == "2"
    of_line, of_example = names["of_line"].numpy(), names["of_example"].numpy()
    np.testing.assert_allclose(of_line, of_example, rtol=1e-6)
    # Users in NA like item 3: the true probability is 0.6, of others 0.1.
    for answer in ("of_line", "of_parquet", "of_frame"):
        assert 0.35 < names[answer].numpy()[0, 0] < 0.85, answer
    assert names["probabilities"].shape == (NUM_ROWS, 1)


def _write_mistakes(frame):
    """The files that the mistakes of the page's table read."""
    frame.drop(columns="country").to_csv("no_country.csv", index=False)
    frame.to_csv("semicolons.csv", index=False, sep=";")
    prices = frame["price"].astype(object)
    prices[::50] = "free"
    frame.assign(price=prices).to_csv("bad.csv", index=False)
    content = json.loads(pathlib.Path("clicks.json").read_text())
    content["dense"].pop()
    pathlib.Path("changed.json").write_text(json.dumps(content))
    content["dense"][0]["transform"] = "log"
    pathlib.Path("typo.json").write_text(json.dumps(content))


TRAIN = "train --train day_0.csv.gz --out runs/other"
MISTAKES = {
    "a column is missing": "evaluate --model runs/mine --input no_country.csv",
    "a file has another delimiter": "evaluate --model runs/mine --input semicolons.csv",
    "cells are invalid": "evaluate --model runs/mine --input bad.csv",
    "a typo in the schema": f"{TRAIN} --schema typo.json",
    "`--schema` is missing": TRAIN,
    "the schema changed, the vocabulary is old": (
        f"{TRAIN} --schema changed.json --vocabulary runs/mine/vocabulary.tsv"
    ),
    "the schema changed, but the run starts from an earlier one": (
        f"{TRAIN} --schema changed.json --warm-start runs/mine"
    ),
    "the folder already holds a run": (
        "train --schema clicks.json --train day_0.csv.gz --out runs/mine"
    ),
}


def test_every_mistake_of_the_table_is_tried():
    rows = re.findall(r"^\| (.+?) \| `", SECTIONS["What can go wrong"], re.M)
    assert rows == list(MISTAKES)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_says_what_the_page_shows(mistake, at_place):
    _write_mistakes(at_place[1]["days"][2])
    row = rf"^\| {re.escape(mistake)} \| (`+)(.+?)\1 \|"
    (_, shown), *_ = re.findall(row, SECTIONS["What can go wrong"], re.M)
    status, printed = run_command(MISTAKES[mistake].split())
    assert status == 2
    assert shown.removesuffix("...") in printed


def test_the_readme_shows_the_commands_of_the_page():
    readme = (guide.DOCS.parent / "README.md").read_text()
    (block,) = re.findall(r"```bash\n(tf-dlrm schema .*?)```", readme, re.S)
    typed = [shlex.split(line) for line in re.split(r" && |\n", block.strip())]
    page = guide.all_commands(PAGE)
    # The names of the log's files differ: clicks.csv there, a day of it here.
    shapes = [
        [
            [word for word in command if not word.endswith((".csv", ".gz"))]
            for command in c
        ]
        for c in ([command[1:] for command in typed], page)
    ]
    assert shapes[0] == shapes[1]
