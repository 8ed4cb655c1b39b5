"""`prepare --negative-sampling-rate`: fewer training rows, and nothing else changes."""

import json
import os

import numpy as np
import pytest
from helpers.prepared_rows import (
    Cut,
    assert_rows,
    make_lines,
    rows_of,
    tree,
    write_lines,
)

from pipelines import cli, prepare
from pipelines import vocabulary as vocabularies
from pipelines.sampling import NegativeSampling
from pipelines.vocabulary import Vocabulary

OPTIONS = {"min_count": 3, "valid_share": 0.1, "test_share": 0.2, "seed": 9}


@pytest.fixture
def logs(tmp_path):
    lines = make_lines(900, bags=True)
    lines[5] = b"no row"
    paths = [
        write_lines(tmp_path / "day_0", lines[:400]),
        write_lines(tmp_path / "day_1.gz", lines[400:]),
    ]
    return paths, lines[:5] + lines[6:]


def options(**kwargs):
    return prepare.Options(**OPTIONS, max_bad_share=0.1, rows_per_shard=60, **kwargs)


@pytest.mark.integration
def test_only_negatives_of_the_training_are_left_out(tmp_path, logs):
    paths, lines = logs
    manifest = prepare.prepare(
        paths, tmp_path / "out", options(negative_sampling_rate=0.3)
    )
    # Rows are numbered through the files, bad ones left out; 629 are to train on.
    labels = np.array([line[:1] == b"1" for line in lines])
    sampling, numbers = NegativeSampling(0.3, 9), np.arange(899)
    kept = np.where(
        numbers < 399,
        sampling.keep(0, numbers, labels),
        sampling.keep(1, numbers, labels),
    )
    train = [line for line, keep in zip(lines[:629], kept) if keep]
    assert sum(labels[:629]) < len(train) < 500
    built = vocabularies.load(tmp_path / "out" / "vocabulary.tsv")
    for split, part in (
        ("train", train),
        ("valid", lines[629:719]),
        ("test", lines[719:]),
    ):
        assert_rows(rows_of(tmp_path / "out", split), part, built)
    # Values are counted in all rows to train on, as without sampling.
    text = write_lines(tmp_path / "train", lines[:629])
    assert built == Vocabulary.build(text, min_count=3)
    assert built.num_rows == 629
    assert manifest.origin["options"]["negative_sampling_rate"] == 0.3
    assert manifest.origin["num_negatives_left_out"] == 629 - len(train)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["negative_sampling"] == {
        "rate": 0.3,
        "num_left_out": 629 - len(train),
        "click_rate_before": pytest.approx(labels[:629].mean()),
    }
    assert report["splits"]["train"]["num_rows"] == len(train)
    column = report["columns"][13]
    missing = np.mean([line.split(b"\t")[14] == b"" for line in lines[:629]])
    assert column["missing_share"] == pytest.approx(missing)
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"{629 - len(train):,} training rows without a click are left out" in page


def test_a_rate_of_one_keeps_all(tmp_path, logs):
    manifest = prepare.prepare(logs[0], tmp_path / "out", options())
    assert manifest.num_rows("train") == 629
    assert manifest.origin["num_negatives_left_out"] == 0
    assert "left out" not in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.breadth(0)
@pytest.mark.parametrize("after", [2, 9, 17, 25])
def test_a_cut_run_keeps_the_same_rows(tmp_path, logs, monkeypatch, after):
    wanted = options(negative_sampling_rate=0.2)
    prepare.prepare(logs[0], tmp_path / "whole", wanted)
    left, replace = [after], os.replace

    def cutting(*arguments):
        if not left[0]:
            raise Cut
        left[0] -= 1
        replace(*arguments)

    monkeypatch.setattr(os, "replace", cutting)
    with pytest.raises(Cut):
        prepare.prepare(logs[0], tmp_path / "cut", wanted)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    prepare.prepare(logs[0], tmp_path / "cut", wanted)
    assert tree(tmp_path / "cut") == tree(tmp_path / "whole")


def test_the_command_says_how_many(tmp_path, logs, capsys):
    command = ["prepare", "--input", *logs[0], "--out", str(tmp_path / "out")]
    command += ["--negative-sampling-rate", "0.5", "--max-bad-share", "0.1"]
    assert cli.main([*command, "--dry-run"]) == 0
    assert (
        "keep a share of 0.5 of the training rows without a click"
        in capsys.readouterr().out
    )
    assert cli.main(command) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    left_out = manifest["origin"]["num_negatives_left_out"]
    assert f"Left out {left_out:,} training rows" in capsys.readouterr().out
    assert cli.main([*command[:-3], "0"]) == 2
    assert "--negative-sampling-rate must be above 0" in capsys.readouterr().err
