"""Choices are read back by a later process; a damaged or absent file is as none."""

import json
import logging
import os

import pytest

from tf_dlrm.runtime import choices

KEY = {"processor": "P", "rows": 128, "dense": [[2, 3], [3]]}
FIGURES = {"parts": 0.5, "program": 0.25}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TF_DLRM_CACHE", str(tmp_path / "deep" / "cache"))
    return tmp_path / "deep" / "cache"


def test_figures_are_read_back_by_their_key(folder):
    choices.keep(KEY, FIGURES)
    choices.keep({**KEY, "rows": 64}, {"parts": 1.0})
    assert choices.find(KEY) == FIGURES
    assert choices.find({**KEY, "rows": 32}) is None
    choices.keep(KEY, {"parts": 2.0})
    assert choices.find(KEY) == {"parts": 2.0}
    assert choices.find({**KEY, "rows": 64}) == {"parts": 1.0}
    assert [path.name for path in folder.iterdir()] == ["choices.json"]


def test_the_newest_are_kept(folder):
    for rows in range(3):
        choices.keep({"rows": rows}, FIGURES)
    content = json.loads((folder / "choices.json").read_text())
    first = content["choices"][0]
    content["choices"] = [{**first, "key": {"old": i}} for i in range(500)]
    (folder / "choices.json").write_text(json.dumps(content))
    choices.keep(KEY, FIGURES)
    assert choices.find({"old": 499}) == choices.find(KEY) == FIGURES
    assert choices.find({"old": 0}) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "\xff",
        '{"format": 1}',
        '{"format": 2, "choices": [{"key": {"a": 1}, "figures": {"parts": 1}}]}',
        '{"format": 1, "choices": [3, {"key": {"a": 1}}]}',
        '{"format": 1, "choices": [{"key": {"a": 1}, "figures": {"parts": NaN}}]}',
        '{"format": 1, "choices": [{"key": {"a": 1}, "figures": {"parts": "1"}}]}',
        '{"format": 1, "choices": [{"key": {"a": 1}, "figures": {"parts": -1}}]}',
    ],
)
def test_a_damaged_file_is_ignored_and_replaced(folder, text):
    folder.mkdir(parents=True)
    (folder / "choices.json").write_text(text, encoding="latin-1")
    assert choices.find({"a": 1}) is None
    choices.keep(KEY, FIGURES)
    assert choices.find(KEY) == FIGURES


def test_a_folder_that_cannot_be_written_is_ignored(folder):
    folder.parent.mkdir()
    folder.write_text("a file, where a folder should be")
    choices.keep(KEY, FIGURES)
    assert choices.find(KEY) is None


def test_off_keeps_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TF_DLRM_CACHE", "off")
    choices.keep(KEY, FIGURES)
    assert choices.find(KEY) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_the_place_by_default(monkeypatch, tmp_path, variable):
    for name in ("TF_DLRM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    choices.keep(KEY, FIGURES)
    caches = tmp_path / ".cache" if variable == "HOME" else tmp_path
    assert (caches / "tf_dlrm" / "choices.json").is_file()


def test_a_machine_is_named_by_what_it_can_do():
    machine = choices.machine()
    assert json.loads(json.dumps(machine)) == machine == choices.machine()
    assert machine["processor"] and 0 < machine["cores"] <= os.cpu_count()


def test_what_is_told_is_logged_and_printed_if_asked(monkeypatch, caplog, capsys):
    monkeypatch.delenv("TF_DLRM_LOG", raising=False)
    with caplog.at_level(logging.INFO, "tf_dlrm"):
        choices.tell("a line")
    assert caplog.messages == ["a line"] and not capsys.readouterr().err
    monkeypatch.setenv("TF_DLRM_LOG", "1")
    choices.tell("a line")
    assert capsys.readouterr().err == "tf_dlrm: a line\n"
