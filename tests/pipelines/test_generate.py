"""`tf-dlrm generate` and `profile-trace` as a person meets them."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from pipelines import cli
from pipelines.records import Manifest
from pipelines.synthetic import Planted, Profile, Random, Trace


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("generate")
    Planted(vocabulary_sizes=(40,) * 26).write(folder / "log.tsv", 2000)
    command = ["profile-trace", "--input", folder / "log.tsv"]
    assert run(*command, "--output", folder / "profile.json") == 0
    return folder


def run(*words):
    return cli.main([str(word) for word in words])


def fails(words, capsys):
    capsys.readouterr()
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error, error
    return error


def test_planted_is_the_default(tmp_path):
    assert run("generate", "--output", tmp_path / "a.tsv", "--rows", 300) == 0
    Planted().write(tmp_path / "b.tsv", 300)
    assert (tmp_path / "a.tsv").read_bytes() == (tmp_path / "b.tsv").read_bytes()


def test_random_text(tmp_path, capsys):
    path = tmp_path / "new" / "a.tsv.gz"
    options = ["--hotness", 2, "--no-fixed-hotness", "--distribution", "normal"]
    options += ["--vocabulary-sizes", *[9] * 26, "--seed", 4, "--first-row", 8]
    words = ["generate", "--source", "random", "--output", path, "--rows", 300]
    assert run(*words, *options, "--click-rate", 0.25) == 0
    source = Random(4, 13, (9,) * 26, "normal", 2, False, 0.25)
    source.write(tmp_path / "b.tsv", 300, first_row=8)
    assert gzip.decompress(path.read_bytes()) == (tmp_path / "b.tsv").read_bytes()
    report = json.loads((tmp_path / "new" / "a.tsv.gz.json").read_text())
    assert report["num_rows"] == 300 and report["best_auc"] == 0.5
    out = capsys.readouterr().out
    assert "best possible AUC 0.5000" in out and "Generating: 300 rows" in out


def test_random_records(tmp_path):
    words = ["generate", "--source", "random", "--format", "binary", "--rows", 300]
    words += ["--vocabulary-sizes", 5, 6, "--hotness", 3, 1, "--num-dense", 4]
    words += ["--rows-per-shard", 200, "--output", f"{tmp_path}/r/"]
    assert run(*words) == 0
    manifest = Manifest.load(tmp_path / "r")
    assert manifest.num_rows("train") == 300 and len(manifest.shards) == 2
    assert len(manifest.schema.dense) == 4
    assert manifest.schema.vocabulary_sizes == (5, 6)
    assert json.loads((tmp_path / "r.json").read_text())["num_rows"] == 300


def test_planted_records(tmp_path):
    words = ["generate", "--format", "binary", "--rows", 300]
    assert run(*words, "--output", tmp_path / "r") == 0
    assert Manifest.load(tmp_path / "r").num_rows("train") == 300
    assert json.loads((tmp_path / "r.json").read_text())["best_auc"] > 0.6


def test_a_log_is_measured_and_traced(data, tmp_path, capsys):
    measured = Profile.load(data / "profile.json")
    assert measured.num_rows == 2000
    words = ["generate", "--source", "trace", "--profile", data / "profile.json"]
    assert run(*words, "--output", tmp_path / "t.tsv", "--rows", 700) == 0
    Trace(measured).write(tmp_path / "u.tsv", 700)
    assert (tmp_path / "t.tsv").read_bytes() == (tmp_path / "u.tsv").read_bytes()
    sizes = ["--vocabulary-sizes", *[100] * 26, "--num-dense", 2]
    words += ["--format", "binary", "--rows", 700, "--output", tmp_path / "r"]
    assert run(*words, *sizes) == 0
    manifest = Manifest.load(tmp_path / "r")
    found = np.load(manifest.shards[0].path(tmp_path / "r", "sparse"))
    assert found.shape == (700, 26) and found.max() < 100
    capsys.readouterr()


def test_what_was_measured_is_told(data, tmp_path, capsys):
    words = ["profile-trace", "--input", data / "*.tsv", "--output"]
    assert run(*words, tmp_path / "new" / "p.json") == 0
    out = capsys.readouterr().out
    assert "2,000 rows" in out and "hit rate of a cache of 100 rows per table" in out
    assert Profile.load(tmp_path / "new" / "p.json").num_rows == 2000


def test_bad_rows_are_set_aside(data, tmp_path, capsys):
    path = tmp_path / "bad.tsv"
    path.write_bytes((data / "log.tsv").read_bytes() + b"no row\n")
    words = ["profile-trace", "--input", path, "--output", tmp_path / "p.json"]
    assert "bad.tsv:2001: " in fails(words, capsys)
    assert not (tmp_path / "p.json").exists()
    assert run(*words, "--max-bad-share", 0.01) == 0
    assert "1 bad rows in" in capsys.readouterr().out
    assert "\t2001\t" in (tmp_path / "p.json.bad_rows.tsv").read_text()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["generate", "--output", "{tmp}/a", "--rows", "9"], "rows 0 to 9 of seed 0"),
        (["generate", "--output", "{tmp}/r/", "--format", "binary"], "{tmp}/r.json"),
        (["generate", "--output", "{tmp}/a", "--source", "random",
          "--vocabulary-sizes", *["9"] * 26],
         "13 dense and 26 sparse features with 234 ids in total (source: random)"),
        (["generate", "--output", "{tmp}/a", "--source", "trace", "--profile",
          "{data}/profile.json"], "ids in total (source: trace)"),
        (["profile-trace", "--input", "{data}/log.tsv", "--output", "{tmp}/p.json"],
         "of 26 features"),
    ],
    ids=["planted", "binary", "random", "trace", "profile-trace"],
)  # fmt: skip
def test_a_dry_run_prints_and_does_nothing(command, says, data, tmp_path, capsys):
    words = [word.format(tmp=tmp_path, data=data) for word in command]
    assert run(*words, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "Dry run: nothing is written. The command would:\n- " in out
    assert says.format(tmp=tmp_path) in out
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_one_line(data, tmp_path, capsys):
    out = ["--output", tmp_path / "a"]
    generate = ["generate", *out]
    random, trace = ["--source", "random"], ["--source", "trace"]
    binary = ["--format", "binary"]
    done = tmp_path / "done"
    done.mkdir()
    (done / "manifest.json").write_text("{}")
    (tmp_path / "file").write_text("")
    (tmp_path / "x.json").mkdir()
    cases = [
        ([*generate, "--source", "real"], "--source"),
        ([*generate, "--hotness", 3], "--hotness has no effect with --source planted"),
        ([*generate, "--no-fixed-hotness"], "--no-fixed-hotness has no effect"),
        ([*generate, *random, "--profile", "p"], "--profile has no effect with"),
        ([*generate, *trace, "--distribution", "normal"], "--distribution has no"),
        ([*generate, *trace], "--source trace needs --profile"),
        ([*generate, *trace, "--profile", tmp_path / "no"], "No such file"),
        ([*generate, *trace, "--profile", data / "log.tsv"], "not a profile of"),
        ([*generate, "--rows-per-shard", 5], "no effect with --format tsv"),
        ([*generate, *random, "--rows", 0], "--rows must be"),
        ([*generate, *random, *binary, "--rows", 0], "--rows must be"),
        ([*generate, *random, "--hotness", 0], "--hotness must be"),
        ([*generate, *random, "--num-dense", 2], "13 dense and 26 sparse"),
        ([*generate, "--click-rate", 2], "--click-rate must"),
        ([*generate, "--vocabulary-sizes", 5], "must have 26 entries"),
        (["generate", *binary, "--output", done], "already contains finished records"),
        (["generate", *binary, "--output", tmp_path / "file"], "is a file"),
        (["generate", *binary, "--output", tmp_path / "x"], "is a directory"),
        (["generate", "--output", tmp_path], "is a directory"),
        (["profile-trace", "--input", "/no/such.tsv", *out], "no file '/no/such.tsv'"),
        (["profile-trace", "--input", data / "log.tsv", "--output", data / "log.tsv"],
         "is one of the input files"),
    ]  # fmt: skip
    for words, message in cases:
        assert message in fails(words, capsys), words
        assert message in fails([*words, "--dry-run"], capsys), words
    assert not (tmp_path / "a").exists()


@pytest.mark.integration
def test_generating_needs_no_tensorflow(data, tmp_path):
    code = (
        "import sys, pipelines.cli as c\n"
        "for words in sys.argv[1:]: assert c.main(words.split()) == 0\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    words = [
        f"profile-trace --input {data}/log.tsv --output {tmp_path}/p.json",
        f"generate --output {tmp_path}/t.tsv --source trace --profile "
        f"{tmp_path}/p.json --rows 50",
        f"generate --output {tmp_path}/r --format binary --rows 50",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
