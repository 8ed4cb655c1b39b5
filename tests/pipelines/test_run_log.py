"""`steps.csv` and `times.jsonl`: what a killed and resumed run leaves in them."""

import json
from types import SimpleNamespace

import keras
import pytest

from pipelines.runs.folder import RunFolder
from pipelines.runs.run_files import RunFiles
from pipelines.runs.run_log import RunLog

EPOCH = 120  # steps


def make_log(files, step=0, seconds=1.0):
    checkpoint = SimpleNamespace(seconds=[])
    times = {
        "seconds": seconds,
        "training_seconds": 1.0,
        "waiting_seconds": None,
        "validation_seconds": 0.0,
        "num_rows": 10,
    }
    log = RunLog(files, checkpoint, lambda: times)
    log.set_model(SimpleNamespace(optimizer=keras.optimizers.SGD()))
    log.model.optimizer.iterations.assign(step)
    log.on_train_begin()
    return log, checkpoint


def train(log, first, last, begins=True):
    """The steps after `first`, of which each epoch has 120."""
    for step in range(first + 1, last + 1):
        epoch, batch = divmod(step - 1, EPOCH)
        if not batch or (begins and step == first + 1):
            log.on_epoch_begin(epoch)
        log.on_train_batch_begin(batch)
        log.model.optimizer.iterations.assign(step)
        log.on_train_batch_end(batch, {"loss": 1 / step, "auc": 0.5})
        if batch + 1 == EPOCH:
            log.on_test_end({"loss": 2 / step, "auc": 0.25})
            log.on_epoch_end(epoch, {"loss": 1 / step, "auc": 0.5, "val_auc": 0.25})


@pytest.mark.parametrize("resumed_at", [60, 100, 120, 170])
def test_a_killed_run_has_each_row_once(tmp_path, resumed_at):
    whole, killed = (RunFiles(tmp_path / name) for name in ("whole", "killed"))
    for files in (whole, killed):
        files.path.mkdir()
    train(make_log(whole)[0], 0, 240)
    lines = whole.steps_path.read_text().splitlines()
    assert lines[0] == "step,loss,auc,val_loss,val_auc"
    steps = [line.partition(",")[0] for line in lines[1:]]
    assert steps == ["50", "100", "120", "120", "170", "220", "240", "240"]
    assert lines[3:5] == [f"120,,,{2 / 120},0.25", f"120,{1 / 120},0.5,,"]
    train(make_log(killed, seconds=3.0)[0], 0, 175)
    for path in (killed.steps_path, killed.times_path):
        with open(path, "a") as file:
            file.write('{"1')  # half a line
    train(make_log(killed, resumed_at, seconds=4.0)[0], resumed_at, 240)
    assert killed.steps_path.read_text() == whole.steps_path.read_text()
    assert [process["seconds"] for process in killed.read_times()] == [3.0, 4.0]


def test_saves_count_by_where_they_are(tmp_path):
    files = RunFiles(tmp_path)
    log, checkpoint = make_log(files)
    train(log, 0, 60)
    checkpoint.seconds.append(1.0)
    train(log, 60, 120, begins=False)
    checkpoint.seconds.append(2.0)  # at the end of the epoch
    train(log, 120, 130)
    checkpoint.seconds.append(4.0)
    log.on_fit_exit()
    (times,) = files.read_times()
    assert times["checkpoint_seconds"] == 7.0
    assert times["checkpoint_seconds_within_epochs"] == 5.0


def test_a_metric_that_is_not_finite_is_null_in_the_results(tmp_path):
    folder = RunFolder(tmp_path)
    folder.model_path.write_bytes(b"a model")
    nan = float("nan")
    results = {"saved_model": "last", "metrics": {"val_loss": nan, "val_auc": 0.5}}
    results |= {"best": None, "evaluations_within_epochs": [{"val_loss": nan}]}
    folder.write_results({"loss": [0.5], "val_loss": [nan]}, results)
    written = json.loads(folder.metrics_path.read_text())
    assert written["metrics"] == {"val_loss": None, "val_auc": 0.5}
    assert written["evaluations_within_epochs"] == [{"val_loss": None}]
