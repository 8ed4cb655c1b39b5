"""Ctrl-C and SIGTERM, whatever a command is at."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from pipelines import cli

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seconds", [0.3, 1.0, 3.0])
def test_it_is_one_line_and_its_code(seconds, number, tmp_path):
    """In imports, before and after them."""
    command = [sys.executable, "-m", "pipelines.cli", "generate"]
    options = ["--output", str(tmp_path / "a.tsv"), "--rows", "100000000"]
    process = subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    started = time.monotonic()
    # Not before the interpreter itself has started: that is not ours.
    while not list(tmp_path.glob(".tf-dlrm.*")) and time.monotonic() - started < 30:
        time.sleep(0.01)
    time.sleep(seconds)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert error == f"tf-dlrm generate: error: {word}\n"
    left = [path.name for path in tmp_path.iterdir()]
    if number == signal.SIGINT:
        assert not left
    assert not [name for name in left if not name.startswith(".a.tsv.")]


def test_what_was_made_of_an_interrupt_is_one_all_the_same(monkeypatch, capsys):
    """As of an import that says that a module is missing."""

    def fail(command):
        monkeypatch.setattr(cli, "_interrupted", True)
        raise ImportError("half of a module")

    monkeypatch.setattr(cli, "_run", fail)
    assert cli.main(["runs"]) == 130
    assert capsys.readouterr().err == "tf-dlrm runs: error: interrupted\n"


@pytest.mark.integration
def test_an_interrupt_that_python_swallows_comes_again():
    code = """
import signal, sys, time
from pipelines import cli
signal.signal(signal.SIGINT, cli._interrupt)
sys.unraisablehook = cli._interrupt_again
class Lost:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
try:
    Lost()
    time.sleep(20)
except KeyboardInterrupt:
    print("seen")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == (b"seen\n", b"")
