"""Flags as a user types and reads them: a change of one is a change for all scripts."""

import dataclasses
import re

import pytest

from pipelines import cli
from pipelines.commands import COMMANDS

TRAIN = """
train out valid schema progressive warm-start vocabulary run config devices plan resume
checkpoint-every-steps checkpoint-every-minutes keep-checkpoints dry-run
embedding-dim bottom-mlp-dims top-mlp-dims interaction compare-models dropout
initial-embedding-limit min-count max-vocabulary-size hash-buckets optimizer
learning-rate embedding-learning-rate initial-accumulator-value l2 learning-rate-decay
batch-size epochs shuffle negative-sampling-rate seed dtype-policy jit-compile
steps-per-execution deterministic max-skipped-batches monitor saved-model target-auc
patience max-minutes evaluate-every-steps max-bad-share bottom-dropout
batch-normalization cross-layers cross-rank shared-table adagrad-epsilon adam-epsilon
warmup-steps decay-start-step decay-steps reduce-after-epochs
gradient-norms touched-rows histograms projector-tables projector-rows profile-steps
follow follow-order follow-marker follow-settle-seconds follow-late follow-idle-seconds
publish publish-every-seconds publish-dtype publish-share publish-full-every
publish-max-hotness
"""
# --out is the folder of a run or of records, or a schema; --output what is made of a
# model.
PLACES = {
    "out": {
        "prepare",
        "train",
        "tune",
        "benchmark",
        "demo",
        "schema",
        "importance",
        "tables",
    },
    "output": {
        "generate",
        "profile-trace",
        "evaluate",
        "report",
        "predict",
        "export",
        "publish",
        "follow-deltas",
    },
}


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*words])
    assert not stopped.value.code
    return capsys.readouterr().out


def test_the_flags_of_train_are_known(capsys):
    text = help_of(capsys, "train", "--help-all")
    assert re.findall(r"(?m)^\W*?--([a-z][a-z0-9-]*)", text) == TRAIN.split()


def test_help_shows_the_common_flags_in_groups(capsys):
    text = help_of(capsys, "train", "--help")
    shown = re.findall(r"(?m)^  --([a-z0-9-]+)", text)
    assert shown[:2] == ["train", "valid"] and set(shown) < set(TRAIN.split())
    assert "\ndata\n" in text and "\ntraining\n" in text
    assert len(text.splitlines()) <= 55 and max(map(len, text.splitlines())) <= 80
    assert "  --batch-size               Rows in a batch\n" in text
    assert "tf-dlrm train --help-all shows all options" in text
    assert "`tf-dlrm prepare` wrote\n" in text  # in one line
    assert help_of(capsys, "train", "-h") == text


def test_help_names_each_default_once_and_has_no_broken_lines(capsys):
    text = " ".join(help_of(capsys, "train", "--help-all").replace("│", " ").split())
    assert "Maximum number of rows in a table; default: no limit. --hash" in text
    assert "(default: None)" not in text and "(default: )" not in text
    assert "--schema STR" in text and "--patience INT" in text
    text = " ".join(help_of(capsys, "generate", "--help").replace("│", " ").split())
    assert "for --format binary, a folder. (required)" in text


def test_underscores_are_read_as_hyphens(tmp_path, capsys):
    output = f"--output={tmp_path / 'a.tsv'}"
    words = [
        "generate",
        output,
        "--first_row",
        "3",
        "--vocabulary_sizes=1",
        "--dry_run",
    ]
    assert cli.main(words) == 2
    assert "--vocabulary-sizes must have 26 entries" in capsys.readouterr().err
    assert cli.main([*words[:4], "--dry_run"]) == 0
    assert "rows 3 to 100,003" in capsys.readouterr().out
    words = ["train", "--train", "x", "--out", "y", "--warm_start", str(tmp_path)]
    assert cli.main(words) == 2
    assert "is not the folder of a run" in capsys.readouterr().err


def test_places_have_one_name():
    for place, names in PLACES.items():
        with_it = {
            name
            for name, kind in COMMANDS.items()
            if place in {field.name for field in dataclasses.fields(kind)}
        }
        assert with_it == names
