"""Reports: hand-made run folders whose numbers are known, and one line for mistakes."""

import csv
import json
import math
import subprocess
import sys

import pytest
from helpers.run_folders import (
    METRICS,
    evaluate,
    make_run,
    report,
    size_of,
    write_json,
    write_steps,
    write_times,
)

from pipelines.benchmark import breakdown
from pipelines.reports.comparison import MOST_DRAWN, make_report
from pipelines.reports.runs import name_folders, read_runs, shorten


def test_the_numbers_are_those_of_the_files(tmp_path, capsys):
    one = make_run(tmp_path / "one", learning_rate=0.02)
    two = make_run(
        tmp_path / "two",
        learning_rate=0.005,
        top_mlp_dims=(64, 1),
        metrics=METRICS | {"val_auc": 0.78, "val_calibration": 1.3, "loss": 0.415},
        results={"samples_per_second": 1500.0},
    )
    for folder, auc, num_rows in ((one, 0.76, 120_000), (two, 0.79, 90_000)):
        evaluate(folder, auc)
        write_steps(folder, (5, 0.6), (10, 0.5), (20, 0.4))
        write_times(folder, {"num_rows": num_rows})
    out = tmp_path / "out"
    report(one, two, "--output", out)
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines()[:12])) <= 120
    lines = printed.splitlines()
    assert lines[0].split() == ["What", "differs", "top_mlp_dims", "learning_rate"]
    assert lines[1].split() == ["one", "512-256-1", "0.02"]
    assert lines[2].split() == ["two", "64-1", "0.005"]
    quality = [line.split() for line in lines if line.startswith(("one", "two"))][2:4]
    assert quality == [
        ["one", "0.4100*", "0.7700", "0.4500", "0.8100", "0.980*", "0.7600"],
        ["two", "0.4150", "0.7800*", "0.4500", "0.8100", "1.300", "0.7900*"],
    ]
    with open(out / "report.csv") as file:
        first, second = csv.DictReader(file)
    assert (first["run"], first["finished"]) == ("one", "true")
    assert json.loads(second["config.top_mlp_dims"]) == [64, 1]
    assert float(second["config.learning_rate"]) == 0.005
    content = json.loads((out / "report.json").read_text())
    expected = {
        "training_loss": 0.41,
        "validation_auc": 0.77,
        "validation_log_loss": 0.45,
        "validation_normalized_entropy": 0.81,
        "validation_calibration": 0.98,
        "test_auc": 0.76,
        "rows": 1000,
        "epochs": 2,
        "minutes": 1.5,
        "samples_per_second": 2000.0,
        "input_wait_share": pytest.approx(0.1),
        "checkpoint_seconds": 3.0,
    }
    assert content["runs"][0]["values"] == expected
    for name, value in content["runs"][1]["values"].items():
        assert float(second[name]) == value
    assert content["differing"] == ["top_mlp_dims", "learning_rate"]
    assert content["best"] == {
        "training_loss": ["one"],
        "validation_auc": ["two"],
        "validation_calibration": ["one"],
        "test_auc": ["two"],
        "samples_per_second": ["one"],
    }
    assert content["runs"][0]["seconds"] == pytest.approx(
        {
            "steps": 54.0,
            "waiting for input": 6.0,
            "validation": 20.0,
            "checkpoints": 3.0,
            "rest": 7.0,
        }
    )
    assert content["notes"] == [
        "No run has a profile of its steps: train with the option `profile_steps` "
        "to get one."
    ]
    pictures = ["learning_curves.png", "calibration.png", "step_breakdown.png"]
    assert content["pictures"] == pictures
    markdown = (out / "report.md").read_text()
    assert "**0.7800**" in markdown and "| one | 512-256-1 | 0.02 |" in markdown
    for name in pictures:
        assert f"({name})" in markdown
        width, height = size_of(out / name)
        assert width > 1000 and height > 300
        assert (out / name).stat().st_size > 10_000


def test_a_run_of_an_earlier_version_has_the_options_of_its_time(tmp_path):
    old, new = make_run(tmp_path / "old"), make_run(tmp_path / "new", learning_rate=0.5)
    content = json.loads((old / "config.json").read_text())
    for name in ("cross_layers", "patience"):
        del content["config"][name]
    content["data"]["num_rows"] = content["data"].pop("rows_by_epoch")[0]
    write_json(old / "config.json", content)
    found = make_report([old, new])
    assert found.differing == ["learning_rate"]
    assert found.runs[0].epoch_ends == found.runs[1].epoch_ends == [10, 20]


def test_runs_are_shown_with_what_they_have(tmp_path, capsys):
    whole = make_run(tmp_path / "whole")
    bare = make_run(tmp_path / "bare", metrics={"loss": 0.43, "auc": 0.7})
    cut = make_run(tmp_path / "cut", metrics=None)
    write_steps(cut, (8, 0.55))
    lost = make_run(tmp_path / "lost", metrics=None)
    write_steps(lost, (8, math.nan))
    begun = make_run(tmp_path / "begun", metrics=None)
    evaluate(whole, 0.7)
    out = tmp_path / "out"
    report(whole, bare, cut, lost, begun, "--output", out)
    printed = capsys.readouterr().out
    for words in (
        "cut is not finished: its logs end at step 8 of 20.",
        "lost is not finished: its loss became NaN.",
        "begun is not finished, and its logs contain no steps yet.",
        "No validation: bare, cut, lost, begun.",
        "Not evaluated (tf-dlrm evaluate --model RUN --input FILE): bare, cut, lost,",
        "so only one point per epoch and no wait for input: whole, bare, begun.",
        "the option `profile_steps`",
    ):
        assert words in printed
    content = json.loads((out / "report.json").read_text())
    values = {run["name"]: run["values"] for run in content["runs"]}
    assert values["cut"]["training_loss"] == pytest.approx(0.55)
    assert values["cut"]["epochs"] == 0.8
    assert values["cut"]["validation_auc"] is None
    assert values["lost"]["training_loss"] is None
    assert values["begun"]["minutes"] is None
    assert values["begun"]["rows"] == 1000
    assert values["bare"]["validation_auc"] is None
    assert values["whole"]["test_auc"] == 0.7
    assert [run["finished"] for run in content["runs"]] == [True, True, *[False] * 3]
    assert len(content["pictures"]) == 3
    # By epochs, from metrics.csv.
    (found,) = read_runs([whole])
    assert found.scalars("validation", "auc") == pytest.approx({10: 0.78, 20: 0.77})


def test_pictures_of_an_earlier_report_do_not_stay(tmp_path, capsys):
    begun = make_run(tmp_path / "begun", metrics=None)
    out = tmp_path / "out"
    out.mkdir()
    (out / "calibration.png").write_text("old")
    report(begun, "--output", out)
    assert {path.name for path in out.iterdir()} == {
        "report.md", "report.csv", "report.json",
    }  # fmt: skip


def test_what_cannot_be_compared_is_said(tmp_path):
    runs = [
        make_run(tmp_path / "a", negative_sampling_rate=0.5),
        make_run(
            tmp_path / "b",
            metrics=METRICS | {"loss": 0.3},
            data={"valid": ["/else/w.tsv"], "negative_sampling_rate": 0.1},
        ),
    ]
    for run, rows in zip(runs, (4000, 5000)):
        evaluate(run, 0.7, rows=rows)
    found = make_report(runs)
    assert found.differing == ["negative_sampling_rate", "valid"]
    assert "training_loss" not in found.best
    for words in (
        "validated on the same rows",
        "evaluated on the same",
        "losses cannot",
    ):
        assert any(words in note for note in found.notes)
    same = make_report([make_run(tmp_path / "c"), make_run(tmp_path / "d")])
    assert "The runs do not differ in any option." in same.notes
    assert same.best == {}


@pytest.mark.integration
def test_only_some_of_many_runs_are_drawn(tmp_path):
    folders = []
    for i in range(MOST_DRAWN + 3):
        name = f"_very_$long_name_that_no_table_has_room_for_{i}$"
        metrics = METRICS | {"val_log_loss": 0.5 + 0.01 * ((7 * i) % 11)}
        folders.append(make_run(tmp_path / name, metrics=metrics, seed=i))
        evaluate(folders[-1], 0.7)
    found = make_report(folders)
    losses = [values["validation_log_loss"] for values in found.values]
    best = sorted(range(len(losses)), key=losses.__getitem__)[:MOST_DRAWN]
    assert found.drawn() == sorted(best)
    text = found.to_text(80)
    assert max(map(len, text.splitlines()[:40])) <= 80
    assert "_very_$long_na…s_room_for_0$" in text
    found.write(tmp_path / "out")
    assert any(f"show {MOST_DRAWN} of" in note for note in found.notes)
    assert size_of(tmp_path / "out" / "calibration.png")


def test_names_are_as_long_as_they_must_be(tmp_path):
    folders = [tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "z"]
    assert name_folders(folders[1:]) == ["run", "z"]
    assert name_folders(folders)[:2] == ["x/run", "y/run"]
    assert shorten("abcdefghij", 5) == "ab…ij"
    assert shorten("abc", 5) == "abc"
    alike = [f"{'long' * 5}_{letter}_{'long' * 5}" for letter in "ab"]
    runs = read_runs([make_run(tmp_path / name) for name in alike])
    assert [run.label for run in runs] == alike


def make_trace(folder, step_ms=4.0, num_steps=5):
    """A trace in which half of each step is the top MLP."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    plane = space.planes.add(name="/host:CPU")
    line = plane.lines.add(timestamp_ns=0)
    names = ("EagerLocalExecute: __inference_one_step_on_iterator_1", "a/top_mlp/M:Mul")
    for number, name in enumerate(names, start=1):
        plane.event_metadata[number].name = name
    for step in range(num_steps):
        begin = int(step * step_ms * 1e9)
        for number in (1, 2):
            line.events.add(
                metadata_id=number, offset_ps=begin, duration_ps=int(step_ms / 2 * 1e9)
            )
    folder.mkdir(parents=True)
    (folder / "host.xplane.pb").write_bytes(space.SerializeToString())


@pytest.mark.integration
def test_profiles_are_found_and_bad_ones_named(tmp_path, capsys):
    runs = [make_run(tmp_path / name) for name in ("good", "short", "bad")]
    place = "logs/train/plugins/profile/2026"
    make_trace(runs[0] / place)
    make_trace(runs[1] / place, num_steps=2)
    (runs[2] / place).mkdir(parents=True)
    (runs[2] / place / "host.xplane.pb").write_bytes(b"\xff no trace")
    report(*runs, "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "short: its profile cannot be read. The trace must contain" in printed
    assert "bad: its profile cannot be read. The trace is damaged." in printed
    assert "--profile-steps" not in printed
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    found = content["runs"][0]["ms_per_step"]
    assert set(found) == set(breakdown.CATEGORIES)
    assert found["top MLP"] == found["input and Python"] == pytest.approx(2.0)
    assert "ms_per_step" not in content["runs"][1]
    with_steps = size_of(tmp_path / "out" / "step_breakdown.png")[1]
    report(runs[1], "--output", tmp_path / "out")
    assert size_of(tmp_path / "out" / "step_breakdown.png")[1] < with_steps


@pytest.mark.integration
def test_without_tensorflow(tmp_path):
    run = make_run(tmp_path / "run")
    write_steps(run, (5, 0.5))
    make_trace(run / "logs/train/plugins/profile/2026")
    program = (
        "import sys\n"
        "from pipelines import cli\n"
        f"code = cli.main(['report', {str(run)!r}, '--output', 'out'])\n"
        "assert 'tensorflow' not in sys.modules, 'TensorFlow was imported'\n"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "out" / "report.json").read_text())
    assert "step_breakdown.png" in content["pictures"]
    assert content["runs"][0]["ms_per_step"]["top MLP"] == pytest.approx(2.0)
    assert len(list((tmp_path / "out").glob("*.png"))) == len(content["pictures"])


def test_mistakes_are_one_line(tmp_path, capsys):
    run = make_run(tmp_path / "runs" / "one")
    make_run(tmp_path / "runs" / "two")
    damaged = make_run(tmp_path / "damaged")
    (damaged / "metrics.json").write_text('{"metrics": ')
    less = make_run(tmp_path / "less")
    write_json(less / "metrics.json", {"metrics": {}, "num_rows": 5})
    torn = make_run(tmp_path / "torn")
    (torn / "metrics.csv").write_text("epoch,loss\n1,0.5\n2\n")
    steps = make_run(tmp_path / "steps")
    (steps / "steps.csv").write_text("step,loss\n1,few\n")
    times = make_run(tmp_path / "times")
    (times / "times.jsonl").write_text('{"began": 1.0}\n')
    odd = make_run(tmp_path / "odd")
    write_json(odd / "config.json", {"config": {}, "vocabulary_digest": "0"})
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([], "no run to compare: name at least one folder"),
        ([tmp_path / "none"], "There is no folder"),
        ([tmp_path / "empty"], "is not the folder of a run"),
        ([tmp_path / "runs"], "but contains runs: name"),
        ([run, tmp_path / "runs" / ".." / "runs" / "one"], "is listed twice"),
        ([damaged], "metrics.json is damaged: it is not JSON"),
        ([less], "it has no seconds"),
        ([torn], "metrics.csv is damaged."),
        ([steps], "steps.csv is damaged."),
        ([times], "times.jsonl is damaged."),
        ([odd], "it has no batch_size"),
        ([run, "--output", tmp_path / "file"], "is a file; name a folder"),
    ):
        capsys.readouterr()
        report(*words, code=2)
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error, error


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    out = tmp_path / "out"
    report(make_run(tmp_path / "run"), "--output", out, "--dry-run")
    assert "report.md" in capsys.readouterr().out and not out.exists()
