"""The times and samples per second of a report, from the event files of a run."""

import json
import time

import pytest
from helpers.run_folders import BATCH, make_run, report, train_entries, write_events

from pipelines.progress.fit import FitProgress
from pipelines.reports import times
from pipelines.reports.comparison import make_report
from pipelines.reports.runs import read_runs


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


def test_an_epoch_counts_by_its_last_entry(tmp_path):
    run = make_run(tmp_path / "run", metrics=None)
    slow = train_entries((5, 4, 0.7), rate=100.0, share=0.9)
    whole = train_entries((6, 10, 0.6), rate=500.0, share=0.5)
    write_events(run / "logs" / "train", 1000, [*slow, *whole])
    spent = times.measure(*read_runs([run]))
    assert spent.trained == pytest.approx(2.0)
    assert spent.waited == pytest.approx(1.0)


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
