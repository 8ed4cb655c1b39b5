"""The pages on schemas: their examples run, and what they show is printed."""

import re
import shlex

from helpers import guide

from pipelines import cli
from pipelines.schema import Schema

PAGE = "how_to/write_a_schema.md"
REFERENCE = "reference/schema.md"


def test_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (guide.DOCS / PAGE).read_text()
    names = guide.run_page(REFERENCE, guide.run_page(PAGE, {}))
    capsys.readouterr()
    (command,) = guide.all_commands(PAGE)
    assert cli.main([*command, "--overwrite"]) == 0, shlex.join(command)
    printed = capsys.readouterr().out
    (shown,) = re.findall(r"```\n(column .*?)```", text, re.S)
    for line in shown.splitlines():
        assert line.split() in [row.split() for row in printed.splitlines()], line
    (written,) = re.findall(r"```json\n(.*?)```", text, re.S)
    assert Schema.from_json(written) == names["by_hand"]
    guessed = Schema.load("clicks.json")
    assert guessed.dense == names["by_hand"].dense
    assert set(guessed.sparse) == set(names["by_hand"].sparse)
    assert (guessed.time, guessed.group) == ("time", "user")
