"""The times and samples per second of a report, from the log of a run."""

import json
import time

import pytest
from helpers.run_folders import make_run, report, write_steps, write_times

from pipelines.progress.fit import FitProgress
from pipelines.reports import times
from pipelines.reports.comparison import make_report
from pipelines.reports.runs import read_runs


def test_processes_are_added_up(tmp_path):
    run = make_run(tmp_path / "run", metrics=None, epochs=3)
    write_steps(run, (5, 0.7), (10, 0.6), (15, 0.5), (20, 0.4), cut="2")
    killed = {"seconds": 4.0, "training_seconds": 1.5, "waiting_seconds": 0.15}
    killed |= {"checkpoint_seconds": 0.5, "checkpoint_seconds_within_epochs": 0.25}
    resumed = {"seconds": 3.0, "training_seconds": 0.8, "waiting_seconds": None}
    so_far = resumed | {"began": 7, "seconds": 1.0}  # not the last line of it
    write_times(run, killed, so_far, resumed | {"began": 7, "num_rows": 110_000})
    with open(run / "times.jsonl", "a") as file:
        file.write('{"began": 8')
    (found,) = read_runs([run])
    assert found.scalars("train", "loss") == {5: 0.7, 10: 0.6, 15: 0.5, 20: 0.4}
    spent = times.measure(found)
    assert spent.total == 4 + 3 and spent.num_processes == 2
    assert spent.trained == pytest.approx(1.5 + 0.8)
    assert spent.samples_per_second == pytest.approx(230_000 / 2.3)
    assert (spent.saved, spent.saved_amid) == (3.5, 0.25)
    assert spent.input_wait_share == pytest.approx(0.15 / 2.3)
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
    write_steps(run, (45, 0.5), (52, 0.4))
    (found,) = read_runs([run])
    assert (found.last_step, found.num_epochs) == (52, 1.7)
    (run / "metrics.json").unlink()  # as it was before its end
    (found,) = read_runs([run])
    assert (found.last_step, found.num_epochs) == (52, 1.7)
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
