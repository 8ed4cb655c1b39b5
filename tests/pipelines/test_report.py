"""Reports: hand-made run folders whose numbers are known, and one line for mistakes."""

import csv
import json
import math
import subprocess
import sys
import time

import pytest
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event

from pipelines import cli
from pipelines.benchmark import breakdown
from pipelines.progress.fit import FitProgress
from pipelines.reports import logs, times
from pipelines.reports.comparison import MOST_DRAWN, make_report
from pipelines.reports.runs import name_folders, read_runs, shorten
from pipelines.runs.config import RunConfig

ROWS, BATCH = 1000, 100  # ten steps an epoch
PNG = b"\x89PNG\r\n\x1a\n"
METRICS = {
    "loss": 0.41,
    "auc": 0.8,
    "val_loss": 0.45,
    "val_auc": 0.77,
    "val_log_loss": 0.45,
    "val_normalized_entropy": 0.81,
    "val_calibration": 0.98,
}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def make_run(folder, epochs=2, metrics=METRICS, data=None, results=None, **options):
    """The folder of a run; without metrics it is not finished."""
    config = RunConfig(batch_size=BATCH, epochs=epochs, **options)
    data = {"train": ["/far/a.tsv"], "valid": ["/far/v.tsv"], **(data or {})}
    content = {
        "tf_dlrm": "1.0",
        "config": json.loads(config.to_json()),
        "data": {"rows_by_epoch": [ROWS] * epochs, **data},
        "vocabulary_digest": "0",
    }
    write_json(folder / "config.json", content)
    if metrics is None:
        return folder
    known = {
        "metrics": metrics,
        "num_rows": ROWS,
        "num_valid_rows": 100,
        "seconds": 90.0,
        "training_seconds": 60.0,
        "validation_seconds": 20.0,
        "samples_per_second": 2000.0,
        "checkpoint_seconds": [1.0, 2.0],
    }
    write_json(folder / "metrics.json", known | (results or {}))
    lines = [",".join(["epoch", *metrics])]
    for epoch in range(1, epochs + 1):
        values = [value + 0.01 * (epochs - epoch) for value in metrics.values()]
        lines.append(",".join(map(str, [epoch, *values])))
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_events(folder, start, entries, cut=False):
    """An event file; `entries` are `(seconds after start, step, {tag: value})`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{start}.host.{start % 97}.0.v2"
    with tf.io.TFRecordWriter(str(path)) as writer:
        first = Event(wall_time=start, file_version="brain.Event:2")
        writer.write(first.SerializeToString())
        for seconds, step, values in entries:
            for tag, value in values.items():
                event = Event(wall_time=start + seconds, step=step)
                proto = event.summary.value.add(tag=tag)
                proto.tensor.ParseFromString(
                    tf.make_tensor_proto(value, tf.float32).SerializeToString()
                )
                writer.write(event.SerializeToString())
    if cut:
        path.write_bytes(path.read_bytes()[:-7])


def evaluate(folder, auc, rows=4000, calibration=1.02, bins=8):
    content = {"auc": auc, "calibration": calibration, "num_rows": rows}
    write_json(folder / "evaluation.json", content)
    names = ("num_rows", "predicted", "observed", "observed_low", "observed_high")
    with open(folder / "evaluation_reliability.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for i in range(bins):  # the first bin has no click
            rate = (i + 0.5) / (2 * bins)
            observed = rate if i else 0.0
            writer.writerow([rows / bins, rate, observed, 0.9 * observed, rate * 1.1])


def train_entries(*entries, rate=1000.0, share=0.1):
    return [
        (
            seconds,
            step,
            {
                "metrics/loss": loss,
                "metrics/auc": 1 - loss,
                "speed/samples_per_second": rate,
                "speed/input_wait_share": share,
            },
        )
        for seconds, step, loss in entries
    ]


def report(*words, code=0):
    assert cli.main(["report", *map(str, words)]) == code


def values_of(*folders):
    return make_report(folders).values


def size_of(path):
    """Width and height by the header of a PNG."""
    content = path.read_bytes()
    assert content.startswith(PNG)
    return int.from_bytes(content[16:20], "big"), int.from_bytes(content[20:24], "big")


def test_the_numbers_are_those_of_the_files(tmp_path, capsys):
    one = make_run(tmp_path / "one", learning_rate=0.02)
    two = make_run(
        tmp_path / "two",
        learning_rate=0.005,
        top_mlp_dims=(64, 1),
        metrics=METRICS | {"val_auc": 0.78, "val_calibration": 1.3, "loss": 0.415},
        results={"samples_per_second": 1500.0},
    )
    for folder, auc in ((one, 0.76), (two, 0.79)):
        evaluate(folder, auc)
        entries = train_entries((1, 5, 0.6), (2, 10, 0.5), (9, 20, 0.4))
        write_events(folder / "logs" / "train", 1000, entries)
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
        "No run has a profile of its steps: train with --profile-steps 100:110 for one."
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


def test_steps_that_are_there_twice_count_once(tmp_path):
    run = make_run(tmp_path / "run", metrics=None, epochs=3)
    train = run / "logs" / "train"
    before = train_entries((1, 5, 0.7), (2, 10, 0.6), (3, 15, 9.0), (4, 17, 9.0))
    save = {"speed/checkpoint_seconds": 0.25}
    before = [*before[:2], (2, 10, save), (2.2, 12, save), *before[2:]]
    write_events(train, 1000, before, cut=True)  # 17, in part
    write_events(train, 2000, train_entries((1, 15, 0.5), (3, 20, 0.4)))
    for start in (1000, 2000):
        write_events(run / "logs", start, [])
    (found,) = read_runs([run])
    assert found.scalars("train", "loss") == pytest.approx(
        {5: 0.7, 10: 0.6, 15: 0.5, 20: 0.4}
    )
    spent = times.measure(found)
    # 1,000 samples/s: 0.1 s a step. Until 17 (its speed was cut off: 15), then from
    # the checkpoint at 12: eight steps more.
    assert spent.trained == pytest.approx(1.5 + 0.8)
    assert spent.samples_per_second == pytest.approx(1000)
    assert (spent.saved, spent.saved_amid, spent.num_saved) == (0.5, 0.25, 2)
    assert spent.total == pytest.approx(4 + 3)
    assert spent.num_processes == 2
    assert spent.input_wait_share == pytest.approx(0.1)


def test_a_finished_run_that_was_resumed_has_the_time_of_both_processes(tmp_path):
    results = {"seconds": 10.0, "training_seconds": 4.0, "checkpoint_seconds": [1.0]}
    run = make_run(tmp_path / "run", results=results)
    for start, entries in ((1000, [(3, 10, 0.6)]), (2000, [(1, 20, 0.5)])):
        write_events(run / "logs", start, [])
        saved = [(start % 7, 10 * start // 1000, {"speed/checkpoint_seconds": 1.0})]
        entries = [*train_entries(*entries), *saved]
        write_events(run / "logs" / "train", start, entries)
    (found,) = read_runs([run])
    spent = times.measure(found)
    assert spent.total == pytest.approx(max(3, 1000 % 7) + 10)
    assert spent.trained == pytest.approx(1 + 4)
    assert spent.waited == pytest.approx(0.1 + 0.4)
    assert spent.saved == 2.0
    notes = make_report([run]).notes
    assert any(note.startswith("Interrupted and resumed: run.") for note in notes)


def test_days_of_a_warm_start_that_ended_early(tmp_path, capsys):
    """Days differ in rows, the last is not validated, steps count on from 40."""
    data = {
        "rows_by_epoch": [500, 1000, 300],
        "first_step": 40,
        "progressive": True,
        "warm_start": "/far/earlier",
    }
    stopped = {"stopped": "the AUC of 0.8 is reached", "num_rows": 1800}
    run = make_run(tmp_path / "days", epochs=3, data=data, results=stopped)
    (run / "metrics.csv").write_text("epoch,loss,val_auc\n1,0.5,0.7\n2,0.4,\n")
    (found,) = read_runs([run])
    assert found.epoch_ends == [45, 55, 58]
    assert found.scalars("validation", "auc") == {45: 0.7}
    assert (found.last_step, found.num_epochs) == (55, 2.0)
    entries = train_entries((1, 45, 0.5), (2, 52, 0.4), rate=500.0)
    saves = [(2, step, {"speed/checkpoint_seconds": 1.0}) for step in (45, 50, 52)]
    write_events(run / "logs" / "train", 1000, [*entries, *saves])
    (found,) = read_runs([run])
    assert (found.last_step, found.num_epochs) == (52, 1.7)
    assert times.measure(found).saved_amid == 1.0  # at its end it was done
    (run / "metrics.json").unlink()  # as it was before its end
    (found,) = read_runs([run])
    assert (found.last_step, found.num_epochs) == (52, 1.7)
    spent = times.measure(found)
    assert spent.trained == pytest.approx((5 + 7) * BATCH / 500)
    assert spent.saved_amid == 2.0
    other = make_run(tmp_path / "other")
    out = tmp_path / "out"
    report(run, other, "--output", out)
    printed = capsys.readouterr().out
    assert "days is not finished: its logs end at step 52 of 58." in printed
    content = json.loads((out / "report.json").read_text())
    expected = {"epochs", "train", "valid", "progressive", "warm_start"}
    assert set(content["differing"]) <= expected
    assert content["runs"][0]["values"]["rows"] == 1800
    again = make_run(tmp_path / "again", data=data, results=stopped)
    note = "again ended early: the AUC of 0.8 is reached."
    assert note in make_report([again]).notes


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


def test_an_epoch_counts_by_its_last_entry(tmp_path):
    run = make_run(tmp_path / "run", metrics=None)
    slow = train_entries((5, 4, 0.7), rate=100.0, share=0.9)
    whole = train_entries((6, 10, 0.6), rate=500.0, share=0.5)
    write_events(run / "logs" / "train", 1000, [*slow, *whole])
    spent = times.measure(*read_runs([run]))
    assert spent.trained == pytest.approx(2.0)
    assert spent.waited == pytest.approx(1.0)


def test_runs_are_shown_with_what_they_have(tmp_path, capsys):
    whole = make_run(tmp_path / "whole")
    bare = make_run(tmp_path / "bare", metrics={"loss": 0.43, "auc": 0.7})
    cut = make_run(tmp_path / "cut", metrics=None)
    write_events(cut / "logs" / "train", 1000, train_entries((1, 8, 0.55)))
    lost = make_run(tmp_path / "lost", metrics=None)
    write_events(lost / "logs" / "train", 1000, train_entries((1, 8, math.nan)))
    begun = make_run(tmp_path / "begun", metrics=None)
    evaluate(whole, 0.7)
    out = tmp_path / "out"
    report(whole, bare, cut, lost, begun, "--output", out)
    printed = capsys.readouterr().out
    for words in (
        "cut is not finished: its logs end at step 8 of 20.",
        "lost is not finished: its loss became not a number.",
        "begun is not finished, and its logs hold no step yet.",
        "No validation: bare, cut, lost, begun.",
        "Not evaluated (tf-dlrm evaluate --model RUN --input FILE): bare, cut, lost,",
        "so no curve but by epochs, and no wait for input: whole, bare, begun.",
        "--profile-steps 100:110",
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
    for words in ("validated on the same rows", "evaluated on the same", "losses are"):
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


def test_profiles_are_found_and_bad_ones_named(tmp_path, capsys):
    runs = [make_run(tmp_path / name) for name in ("good", "short", "bad")]
    place = "logs/train/plugins/profile/2026"
    make_trace(runs[0] / place)
    make_trace(runs[1] / place, num_steps=2)
    (runs[2] / place).mkdir(parents=True)
    (runs[2] / place / "host.xplane.pb").write_bytes(b"\xff no trace")
    report(*runs, "--output", tmp_path / "out")
    printed = capsys.readouterr().out
    assert "short: its profile is left out. The trace holds 2 steps" in printed
    assert "bad: its profile is left out. The trace is damaged." in printed
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
    write_events(run / "logs" / "train", 1000, train_entries((1, 5, 0.5)))
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
    odd = make_run(tmp_path / "odd")
    write_json(odd / "config.json", {"config": {}, "vocabulary_digest": "0"})
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for words, message in (
        ([], "name the folder of a run"),
        ([tmp_path / "none"], "There is no folder"),
        ([tmp_path / "empty"], "is not the folder of a run"),
        ([tmp_path / "runs"], "but holds some: give"),
        ([run, tmp_path / "runs" / ".." / "runs" / "one"], "is listed twice"),
        ([damaged], "metrics.json is damaged: no JSON text"),
        ([less], "it has no seconds"),
        ([torn], "metrics.csv is damaged."),
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


def test_the_time_of_validation_is_measured(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    progress = FitProgress(10, 100)
    progress.set_params({"epochs": 2})
    progress.on_epoch_begin(0)
    progress._done = 0
    now[0] += 5
    progress.on_test_begin()
    now[0] += 2
    progress.on_test_end()
    progress.on_epoch_end(0)
    assert (progress.seconds, progress.validation_seconds) == (5.0, 2.0)


def test_scalars_of_both_versions_of_summaries_are_read(tmp_path):
    path = tmp_path / "events.out.tfevents.1.host"
    with tf.io.TFRecordWriter(str(path)) as writer:
        event = Event(wall_time=1.5, step=3)
        event.summary.value.add(tag="metrics/auc", simple_value=0.5)
        event.summary.value.add(tag="rows/C1", simple_value=0.5)
        writer.write(event.SerializeToString())
    (tmp_path / "events.out.tfevents.2.host").write_bytes(b"")
    (found,) = logs.read_folder(tmp_path)
    assert found.scalars == {"metrics/auc": [logs.Entry(1.5, 3, 0.5)]}
    assert logs.read_folder(tmp_path / "none") == []
