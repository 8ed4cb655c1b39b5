"""Lines of progress in a log: rate, total and time left."""

import re

import keras
import pytest

from pipelines import cli, runs
from pipelines.progress import bar, bars
from pipelines.progress.fit import EvaluateProgress, FitProgress
from pipelines.runs.config import RunConfig


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(bars.time, "perf_counter", lambda: now[0])
    return now


def test_what_was_done_before_does_not_count_for_the_rate(clock, capsys):
    with bar("Scoring", first=1000) as update:
        clock[0] += 20
        update(3000, total=6000)
        clock[0] += 20
        update(5000)
    _, second, last = capsys.readouterr().out.splitlines()
    assert second == "Scoring: 5,000 of 6,000 rows, 100 rows/s, 10 s left"
    assert last == "Scoring: 5,000 rows, 100 rows/s, 40.0 s"


def test_the_time_until_the_first_units_does_not_count_for_the_time_left(clock, capsys):
    """A first batch takes seconds to compile; the next ones take milliseconds."""
    with bar("Training", 1_000_000) as update:
        clock[0] += 13
        update(1_000)
        clock[0] += 10
        update(101_000)
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "Training: 1,000 of 1,000,000 rows, 77 rows/s"
    assert second.endswith("4,391 rows/s, 90 s left")


def test_a_terminal_shows_rate_and_share(clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with bar("Scoring", first=1000) as update:
        clock[0] += 20
        update(3000, total=6000)
        update(3000, total=6010)  # nearly the same guess: the bar stays
        update(4000, total=8000)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert "150/s" in shown and "100%" in shown


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_the_line_fits_into_the_terminal(columns, clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    with bar("Training", 1_000_000) as update:
        clock[0] += 10
        update(678_912, "loss 0.4674  auc 0.7742  2 saved, last in 0.31 s")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert max(map(len, lines)) <= columns
    assert all(line.startswith("Training") for line in lines)
    assert ("saved, last in 0.31 s" in shown) == (columns >= 80)
    assert ("loss 0.4674  auc 0.7742" in shown) == (columns >= 60)
    assert "67,891" in shown


def steps(progress, num_batches):
    for batch in range(num_batches):
        progress.on_train_batch_end(batch)


@pytest.mark.parametrize(
    "num_rows, count, expected",
    [(250, None, 250), (None, 240, 240), (260, 240, 240), (1000, 1000, 300)],
    ids=["last batch", "length unknown", "bad rows", "ended early"],
)
def test_no_more_samples_are_counted_than_there_are(
    clock, capsys, num_rows, count, expected
):
    counted = None if count is None else (lambda: count)
    progress = FitProgress(100, num_rows, count=counted)
    progress.set_params({"epochs": 1})
    progress.set_model(keras.Model())
    with progress:
        progress.on_epoch_begin(0)
        steps(progress, 3)
        progress.on_epoch_end(0, {"loss": 0.5})
    assert progress.num_trained == expected
    assert f"Training: {expected} rows," in capsys.readouterr().out


def test_an_evaluation_counts_no_more_than_was_read(clock, capsys):
    """A file of 7 rows in a batch of 4,096, of which a terminal shows each update."""
    progress, counts = EvaluateProgress(4096, None, lambda: 7), []
    with progress:
        progress.on_test_begin()
        update = progress._update
        progress._update = lambda done, *rest: (counts.append(done), update(done))
        progress.on_test_batch_end(0)
        progress.on_test_end()
    assert counts == [7, 7]
    assert "Evaluating: 7 rows," in capsys.readouterr().out


@pytest.mark.integration
def test_a_run_counts_its_rows(tmp_path, capsys):
    """Bad rows are counted before the training, and not trained on."""
    path = tmp_path / "a.tsv"
    assert cli.main(["generate", "--output", str(path), "--rows", "230"]) == 0
    bad = b"2" + b"\t" * 39 + b"\n"
    path.write_bytes(bad * 20 + path.read_bytes())
    config = RunConfig(
        embedding_dim=4,
        bottom_mlp_dims=(4,),
        top_mlp_dims=(4, 1),
        hash_buckets=50,
        batch_size=100,
        epochs=2,
        jit_compile="off",
        max_bad_share=0.2,
    )
    capsys.readouterr()
    _, results = runs.train(config, str(path), None, tmp_path / "run")
    printed = capsys.readouterr().out
    assert "Epoch 1/2: 230 rows," in printed
    assert "Epoch 2/2: 230 rows," in printed
    assert results["num_rows"] == 230 and results["num_bad_rows"] == 20
    seconds = results["training_seconds"]
    assert results["samples_per_second"] * seconds == pytest.approx(460)
