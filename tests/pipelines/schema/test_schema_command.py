"""`tf-dlrm schema`, by its `run` and as typed."""

import json

import pytest
from helpers import generated_logs

from pipelines import cli
from pipelines.commands import COMMANDS
from pipelines.schema import Schema

Command = COMMANDS["schema"]


@pytest.fixture
def log(tmp_path):
    (path,) = generated_logs.write_booleans(tmp_path, 500, 0)
    return path


def test_it_prints_why_and_writes_a_schema(log, tmp_path, capsys):
    out = str(tmp_path / "clicks.json")
    Command(input=[log], out=out).run()
    printed = capsys.readouterr().out
    assert "500 rows read" in printed and "taken as" in printed
    assert f"Next: tf-dlrm train --schema {out} --train {log}" in printed
    assert Schema.load(out) == Schema.guess(log)
    assert json.load(open(out))["label"] == "converted"


def test_without_out_it_only_prints(log, tmp_path, capsys):
    Command(input=[log]).run()
    assert "add --out clicks.json" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]


def test_a_file_is_replaced_only_if_asked(log, tmp_path, capsys):
    out = tmp_path / "clicks.json"
    out.write_text("mine")
    words = ["schema", "--input", log, "--out", str(out)]
    assert cli.main(words) == 2
    assert "already exists" in capsys.readouterr().err and out.read_text() == "mine"
    assert cli.main([*words, "--overwrite"]) == 0
    assert Schema.load(out).weight == "weight"


def test_patterns_and_several_files(tmp_path, capsys):
    for day in range(3):
        generated_logs.write_pipes(tmp_path / f"day{day}", 300, day)
    assert cli.main(["schema", "--input", f"{tmp_path}/day*/log.txt"]) == 0
    assert "column_5" in capsys.readouterr().out


def test_dry_run(log, tmp_path, capsys):
    out = str(tmp_path / "s.json")
    assert cli.main(["schema", "--input", log, "--out", out, "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "read at most 100,000 rows" in printed and f"write {out}" in printed
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize(
    "options, message",
    [
        (["--label", "nothing"], "There is no column 'nothing'"),
        (["--label", "plan"], "cannot be read as the label"),
        (["--num-rows", "0"], "--num-rows must be at least 1"),
        (["--out", "{log}"], "is one of the input files"),
        (["--out", "{folder}"], "is a directory"),
        (["--input", "/no/such.csv"], "There is no file"),
    ],
)
def test_mistakes_are_one_line(options, message, log, tmp_path, capsys):
    options = [o.format(log=log, folder=tmp_path) for o in options]
    assert cli.main(["schema", "--input", log, *options]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_it_says_how_to_name_the_label(tmp_path, capsys):
    path = tmp_path / "log.csv"
    path.write_text("a,b,c\n" + "x,1,0\ny,0,1\nx,1,1\nz,1,0\n" * 20)
    assert cli.main(["schema", "--input", str(path)]) == 2
    error = capsys.readouterr().err
    assert "with two values: 'b', 'c'" in error and "with --label." in error
