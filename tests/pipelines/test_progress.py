"""Lines of progress in a log: rate, total and time left."""

import re

import pytest

from pipelines.progress import bar, bars


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(bars.time, "perf_counter", lambda: now[0])
    return now


def test_what_was_done_before_does_not_count_for_the_rate(clock, capsys):
    with bar("Scoring", first=1000) as update:
        clock[0] += 20
        update(3000, total=5000)
        clock[0] += 20
        update(5000)
    first, _, last = capsys.readouterr().out.splitlines()
    assert first == "Scoring: 3,000 of 5,000 rows, 100 rows/s, 20 s left"
    assert last == "Scoring: 5,000 rows, 100 rows/s, 40.0 s"


def test_a_terminal_shows_rate_and_share(clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with bar("Scoring", first=1000) as update:
        clock[0] += 20
        update(3000, total=6000)
        update(3000, total=6010)  # nearly the same guess: the bar stays
        update(4000, total=8000)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    assert "150 rows/s" in shown and "100%" in shown


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_the_line_fits_into_the_terminal(columns, clock, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", str(columns))
    with bar("Training", 1_000_000, "samples") as update:
        clock[0] += 10
        update(678_912, "loss 0.4674  auc 0.7742  2 saved, last in 0.31 s")
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out)
    lines = [line for line in re.split(r"[\r\n]+", shown) if line.strip()]
    assert max(map(len, lines)) <= columns
    assert all(line.startswith("Training") for line in lines)
    assert ("saved" in shown) == (columns >= 120)
    assert ("loss 0.4674  auc 0.7742" in shown) == (columns >= 60)
    assert "67,891" in shown
