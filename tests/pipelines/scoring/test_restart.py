"""What was cut goes on, to the same bytes; nothing is overwritten without a word."""

import contextlib
import gzip
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from pipelines import scoring
from pipelines.files import stamp
from pipelines.schema import Schema
from pipelines.scoring import batches, unfinished

pytestmark = pytest.mark.integration


class Cut(Exception):
    """Stands for whatever ends a run."""


@contextlib.contextmanager
def cut_after(num_pieces):
    """Ends what runs inside after it wrote some pieces; the header is one."""
    write, written = unfinished.Unfinished.write, []

    def write_some(self, packed):
        if len(written) == num_pieces:
            raise Cut
        written.append(packed)
        write(self, packed)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Cut):
        patch.setattr(unfinished.Unfinished, "write", write_some)
        yield


@pytest.fixture
def always_noted(monkeypatch):
    monkeypatch.setattr(unfinished, "_SECONDS_BETWEEN_NOTES", 0.0)


@pytest.fixture
def log(lines, tmp_path):
    path = tmp_path / "log.gz"
    mixed = [*lines[:120], b"no row", *lines[120:]]
    path.write_bytes(gzip.compress(b"\n".join(mixed)))
    return path


def options(**more):
    return {"batch_size": 16, "max_bad_share": 1, **more}


@pytest.mark.parametrize("keep", [(), ("C2", "I1")])
@pytest.mark.parametrize("name", ["scores.csv", "scores.csv.gz"])
def test_a_cut_run_goes_on_to_the_same_bytes(
    exported, log, tmp_path, always_noted, capsys, name, keep
):
    whole, output = tmp_path / f"whole.{name}", tmp_path / name
    scoring.score_files(exported, log, whole, **options(keep=keep))
    for num_pieces in (0, 1, 5, 6, 1):
        with cut_after(num_pieces):
            scoring.score_files(exported, log, output, **options(keep=keep))
        assert not output.exists()
    # What was written after the last note is not there for a run that goes on.
    with open(f"{output}.unfinished", "ab") as file:
        file.write(b"half a li")
    with open(f"{output}.bad_rows.tsv", "ab") as file:
        file.write(b"half a li")
    with pytest.raises(ValueError, match="other options. It was started with `keep="):
        scoring.score_files(exported, log, output, **options(keep=["C3"]))
    capsys.readouterr()
    counts = scoring.score_files(exported, log, output, **options(keep=keep))
    assert counts == {"num_rows": 301, "num_bad_rows": 1}
    shown = capsys.readouterr().out
    assert "Resuming after " in shown
    assert output.read_bytes() == whole.read_bytes()
    bad_rows = pathlib.Path(f"{whole}.bad_rows.tsv").read_bytes()
    assert pathlib.Path(f"{output}.bad_rows.tsv").read_bytes() == bad_rows
    assert not list(tmp_path.glob("*.unfinished*"))


def test_a_finished_output_is_not_overwritten_unasked(exported, log, tmp_path):
    output = tmp_path / "scores.csv"
    output.write_text("of great value")
    with pytest.raises(FileExistsError, match="already exists.*`overwrite=True`"):
        scoring.score_files(exported, log, output, **options())
    assert output.read_text() == "of great value"
    with cut_after(2):
        scoring.score_files(exported, log, output, **options(overwrite=True))
    assert output.read_text() == "of great value"
    scoring.score_files(exported, log, output, **options(overwrite=True))
    assert output.read_text().count("\n") == 302


def test_other_settings_do_not_go_on(exported, log, tmp_path, always_noted, capsys):
    output = tmp_path / "scores.csv"
    with cut_after(3):
        scoring.score_files(exported, log, output, **options())
    other = tmp_path / "other.gz"
    shutil.copy(log, other)
    notes = pathlib.Path(f"{output}.unfinished.json")
    before = notes.read_bytes()
    copy = tmp_path / "ctr" / "2"
    shutil.copytree(exported.source.path, copy)
    moved = scoring.Model(exported.score, scoring.find(copy))
    for model, path, size, message in (
        (exported, other, 16, "started with `paths=.*log.gz.*other.gz"),
        (exported, log, 32, "started with `batch_size=16`, not 32"),
        (moved, log, 16, "started with `model=.*1`, not .*2"),
    ):
        with pytest.raises(
            ValueError, match=f"a command with other options.*{message}"
        ):
            scoring.score_files(model, path, output, **options(batch_size=size))
        with pytest.raises(
            ValueError, match=f"a command with other options.*{message}"
        ):
            scoring.check(model.source, path, output, size)
        assert notes.read_bytes() == before
    assert scoring.check(exported.source, log, output, 16) >= 16
    capsys.readouterr()
    scoring.score_files(exported, other, output, **options(overwrite=True))
    shown = capsys.readouterr().out
    assert "restarting. It was started with `paths=" in shown
    assert "Going on" not in shown and "other.gz,1," in output.read_text()


@pytest.mark.parametrize("changed", ["input", "model"])
def test_changed_files_start_afresh(
    exported, log, lines, tmp_path, always_noted, capsys, changed
):
    copy, output = tmp_path / "1", tmp_path / "scores.csv"
    shutil.copytree(exported.source.path, copy)
    model = scoring.Model(exported.score, scoring.find(copy))
    with cut_after(3):
        scoring.score_files(model, log, output, **options())
    if changed == "input":
        log.write_bytes(gzip.compress(b"\n".join(lines[::-1])))
    else:
        os.utime(copy / "saved_model.pb", ns=(1, 1))
        model = scoring.Model(exported.score, scoring.find(copy))
    capsys.readouterr()
    scoring.score_files(model, log, output, **options())
    shown = capsys.readouterr().out
    name = "log.gz" if changed == "input" else "saved_model.pb"
    assert "restarting. " in shown and " has changed since " in shown and name in shown
    assert "Going on" not in shown
    again = tmp_path / "again.csv"
    scoring.score_files(model, log, again, **options())
    assert output.read_bytes() == again.read_bytes()


def test_an_input_that_changes_meanwhile_is_an_error(exported, log, tmp_path):
    def score(lines):
        os.utime(log, ns=(1, 1))
        return exported.score(lines)

    model = scoring.Model(score, exported.source)
    with pytest.raises(ValueError, match="log.gz: changed while it was read"):
        scoring.score_files(model, log, tmp_path / "scores.csv", **options())


def test_a_run_that_was_killed_while_cleaning_up(exported, log, tmp_path, capsys):
    output = tmp_path / "scores.csv"
    notes = tmp_path / "scores.csv.unfinished.json"
    scoring.score_files(exported, log, output, **options())
    content = output.read_bytes()
    output.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pathlib.Path, "unlink", lambda path, **_: path.name)
        scoring.score_files(exported, log, output, **options())
    assert notes.exists()
    # The same again, also with --overwrite, only cleans up.
    counts = scoring.score_files(exported, log, output, **options(overwrite=True))
    assert counts == {"num_rows": 301, "num_bad_rows": 1}
    assert output.read_bytes() == content
    assert not list(tmp_path.glob("*.unfinished*"))


def test_two_processes_do_not_write_one_output(exported, log, tmp_path):
    output = tmp_path / "scores.csv"

    def score(lines):
        with pytest.raises(ValueError, match="scores.csv is being written by process"):
            scoring.score_files(exported, log, output, **options())
        return exported.score(lines)

    model = scoring.Model(score, exported.source)
    scoring.score_files(model, log, output, **options(batch_size=400))
    assert output.exists()


def test_notes_that_are_no_notes(exported, log, tmp_path):
    output = tmp_path / "scores.csv"
    notes = tmp_path / "scores.csv.unfinished.json"
    for text in ("{", "[]", json.dumps({"version": 99})):
        notes.write_text(text)
        with pytest.raises(ValueError, match="not the state of an unfinished output"):
            scoring.score_files(exported, log, output, **options())


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_batches_are_the_same_wherever_reading_begins(tmp_path, monkeypatch, suffix):
    rng = np.random.default_rng(0)
    lengths = np.concatenate([rng.integers(0, 60, 200), [900, 3, 700]])
    lines = [bytes(rng.integers(97, 123, n, dtype=np.uint8)) for n in lengths]
    paths = [str(tmp_path / f"{name}{suffix}") for name in "abc"]
    contents = [b"\n".join(lines), b"", b"\n".join(lines[50:120]) + b"\n"]
    openers = {
        "": open,
        ".gz": gzip.open,
        ".zst": lambda path, mode: pa.CompressedOutputStream(path, "zstd"),
    }
    for path, content in zip(paths, contents):
        with openers[suffix](path, "wb") as file:
            file.write(content)
    stamps = [stamp(path) for path in paths]
    monkeypatch.setattr(batches, "_MAX_BATCH_BYTES", 300)
    seen = None
    for block_bytes in (40, 1000, 1 << 20):
        monkeypatch.setattr(batches, "_BLOCK_BYTES", block_bytes)
        reader = batches.make_reader(Schema.criteo())
        found = list(batches.read_batches(reader, paths, stamps, 11))
        kept = [batch[:5] for batch in found]
        assert seen is None or kept == seen
        seen = kept
        for i in range(0, len(found), 3):
            rest = batches.read_batches(reader, paths, stamps, 11, found[i].end)
            assert [batch[:5] for batch in rest] == kept[i + 1 :]
        stored = [batch.stored_bytes for batch in found]
        assert stored[-1] == sum(size for size, *_ in stamps) == max(stored)
    for path, content in zip(paths, contents):
        own = [batch for batch in found if batch.path == path]
        assert b"".join(batch.content for batch in own) == content
        lines_read = [line for b in own for line in b.content.splitlines()]
        assert lines_read == content.splitlines()
        first = 0
        for batch in own:
            assert batch.first_line == first
            assert batch.num_lines == len(batch.content.splitlines()) <= 11
            # A line may take it past the limit, but only the last one.
            *others, _ = batch.content.splitlines(keepends=True)
            assert sum(map(len, others)) < 300
            first += batch.num_lines


def num_killed(num_kills, lines, tmp_path):
    """Runs that were killed, and outputs that equal those never cut."""
    text = [b"\n".join([*lines[:120], b"no row", *lines[120:]]), b"\n".join(lines)]
    (tmp_path / "a.log").write_bytes(text[0])
    (tmp_path / "b.log.gz").write_bytes(gzip.compress(text[1] * 2))
    (tmp_path / "c.log.zst").write_bytes(pa.compress(text[0], "zstd", asbytes=True))
    (tmp_path / "model").write_bytes(b"")
    script = pathlib.Path(__file__).with_name("kill_cases.py")
    command = [sys.executable, str(script), str(num_kills), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    return counts["kills"], counts["equal outputs"]


def test_killed_at_random_moments(lines, tmp_path):
    kills, outputs = num_killed(6, lines, tmp_path)
    assert kills >= 6 and outputs > 0


@pytest.mark.slow
def test_killed_two_hundred_times(lines, tmp_path):
    kills, outputs = num_killed(200, lines, tmp_path)
    assert kills >= 200 and outputs > 0


def test_a_model_is_resumed_to_the_last_bit(exported, log, tmp_path, always_noted):
    """The last bits of a probability depend on the rows it is computed with."""
    whole, output = tmp_path / "whole.csv", tmp_path / "scores.csv"
    scoring.score_files(exported, log, whole, **options(batch_size=37))
    for _ in range(8):
        with cut_after(1):
            scoring.score_files(exported, log, output, **options(batch_size=37))
    scoring.score_files(exported, log, output, **options(batch_size=37))
    assert output.read_bytes() == whole.read_bytes()
