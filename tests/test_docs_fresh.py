"""The pages on fresh models and on split ones: their commands and blocks run."""

import pathlib

import pytest
from helpers import guide

import tf_dlrm
from pipelines import cli
from pipelines.synthetic import Planted

pytestmark = pytest.mark.integration

PAGE = "how_to/keep_fresh.md"


def test_the_commands_of_the_page(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("log").mkdir()
    for number in range(2):
        Planted().write(f"log/day_{number}", 1_000, 1_000 * number)
    commands = guide.all_commands(PAGE)
    names = [command[0] for command in commands]
    assert names == ["train", "follow-deltas", "rollback", "release"]
    train = commands[0]
    train[train.index("--hash-buckets") + 1] = "500"
    train[train.index("--publish-every-seconds") + 1] = "0.05"  # several, soon
    smaller = ["--embedding-dim", "4", "--bottom-mlp-dims", "8", "4", "--jit-compile"]
    train += [*smaller, "off", "--follow-settle-seconds", "0"]
    for command in commands:
        assert cli.main(command) in (0, None), command
    said = capsys.readouterr().out
    assert "day_1: 1,000 rows" in said and "replicas serve 1.0 from now on" in said
    assert tf_dlrm.serving.verify_saved_model("serving/ctr")["largest_difference"]
    assert tf_dlrm.serving.Replica("published/ctr").head().sequence > 0


def test_the_blocks_of_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = guide.run_page(PAGE, {})
    assert names["answer"].position == (1, 1)
    assert names["publish"].publications[-1].health in ("healthy", "suspect")
    folder = "published/shop"
    assert names["replica"].channel.read_base(1).layout.table_dtype == "int8"
    with pytest.raises(ValueError, match="`last` larger than `first`"):
        tf_dlrm.serving.compact(folder, 1, 1)


def test_a_split_model():
    names = guide.run_page("how_to/split_a_model.md", {})
    inputs = {"dense_features": [[0.3, 0.5]], "sparse_features": [[17, 1234]]}
    whole = names["model"].predict({k: names["np"].array(v) for k, v in inputs.items()})
    assert names["answer"]["probabilities"].numpy() == pytest.approx(whole, abs=1e-6)
