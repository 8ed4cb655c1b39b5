"""A mistake of the user is one line that speaks of flags; a bug shows its traceback."""

import inspect
import subprocess
import sys

import pytest

from pipelines import cli
from pipelines.commands import COMMANDS
from pipelines.commands.flags import translate
from pipelines.quarantine import BadRowsError
from pipelines.runtime import UserError, disk, locks
from tf_dlrm.training import NotFiniteError


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError])
def test_a_bug_shows_its_traceback(error, monkeypatch):
    def run(self):
        raise error("of ours")

    monkeypatch.setattr(COMMANDS["runs"], "run", run)
    with pytest.raises(error, match="of ours"):
        cli.main(["runs"])


def test_a_bug_ends_the_process_with_its_traceback():
    code = (
        "import sys, pipelines.cli as cli; from pipelines.commands import COMMANDS\n"
        "COMMANDS['runs'].run = lambda self: 1 + None\n"
        "sys.argv = ['tf-dlrm', 'runs']; cli.entry()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "unsupported operand" in done.stderr
    assert done.stderr.endswith("tf-dlrm: this is a bug; please report it.\n")


@pytest.mark.parametrize(
    "error",
    [
        UserError("`epochs` must be"),
        BadRowsError("`epochs` must be"),
        locks.InUseError("`epochs` must be"),
        FileExistsError("`epochs` must be"),
        disk.WriteError(28, "`epochs` must be", "", ""),
        NotFiniteError("`epochs` must be"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_mistake_is_one_line_and_speaks_of_flags(
    error, tmp_path, monkeypatch, capsys
):
    def train(self, strategy, vocabulary):
        raise error

    monkeypatch.setattr(COMMANDS["train"], "_train", train)
    monkeypatch.setattr(COMMANDS["train"], "_check", lambda self: None)
    command = ["train", "--train", "a.tsv", "--out", tmp_path / "r"]
    assert cli.main([str(word) for word in command]) == 2
    line = capsys.readouterr().err
    assert line.startswith("tf-dlrm train: error: --epochs must be")
    assert line.count("\n") == 1


@pytest.mark.parametrize(
    "command, message, expected",
    [
        ("train", "Leave `epochs` and `resume=True` out.",
         "Leave --epochs and --resume out."),
        ("train", "`shared_table=False`, `hash_buckets=9`, `train_paths`",
         "--no-shared-table, --hash-buckets 9, --train"),
        ("train", "`placement` and `run_name`", "--plan and --run"),
        ("evaluate", "`min_rows` of `columns`", "--min-slice-rows of --slices"),
        ("runs", "`epochs`", "`epochs`"),
        ("train", "config.json is damaged: `epochs` must be int",
         "config.json is damaged: `epochs` must be int"),
    ],
)  # fmt: skip
def test_parameters_become_the_flags_of_the_command(command, message, expected):
    assert translate(message, COMMANDS[command]) == expected


def test_help_is_that_of_the_classes_and_imports_none_of_them():
    for name, kind in COMMANDS.items():
        assert COMMANDS.summary(name) == inspect.getdoc(kind).splitlines()[0]
    program = (
        "import sys; from pipelines import cli; cli.main(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('numpy', 'pyarrow', 'tyro')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0 and b"  predict " in done.stdout, done.stderr


def test_a_folder_without_a_run_cannot_be_resumed(tmp_path, capsys):
    assert cli.main(["train", "--resume", f"--out={tmp_path}"]) == 2
    assert "contains no run to resume. To start one, pass" in capsys.readouterr().err
