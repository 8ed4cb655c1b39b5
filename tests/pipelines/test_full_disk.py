"""A disk that is full, a folder that cannot be written to: one line that says all."""

import contextlib
import errno
import os
import resource
import shutil
import sys

import numpy as np
import pyarrow as pa
import pytest

from pipelines import cli, prepare, records
from pipelines.formats.fields import Values
from pipelines.quarantine import Quarantine
from pipelines.runtime import disk
from pipelines.synthetic import Planted
from pipelines.vocabulary import Vocabulary
from pipelines.vocabulary.counting import Counter
from pipelines.whole_files import write_text


@contextlib.contextmanager
def largest_file(num_bytes):
    """What a full disk is to one file, wherever it lies."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def save_vocabulary(folder):
    values = [b"%d" % i for i in range(2000)]
    Vocabulary([values] + [[]] * 25).save(folder / "vocabulary.tsv")


def write_records(folder):
    with records.Writer(folder, records.Schema(["d"], ["a"], [3])) as writer:
        rows = np.ones(20_000)
        writer.append(rows, rows[:, None], rows[:, None].astype(int))


def list_bad_rows(folder):
    quarantine = Quarantine(folder / "bad_rows.tsv", 1.0)
    quarantine.record("a", 0, 9, [(i, b"x" * 1000, "reason") for i in range(9)])


def spill_keys(folder):
    counter = Counter(folder, "C1")
    keys, texts = np.arange(1, 9000, dtype=np.uint64), pa.array([], pa.large_binary())
    counter.add(Values(None, None, keys, texts), np.ones(len(keys), np.int64))
    counter.spill()


def spill_texts(folder):
    counter = Counter(folder, "C1")
    texts = pa.array([b"a long text %d" % i for i in range(9000)], pa.large_binary())
    keys = np.zeros(0, np.uint64)
    counter.add(Values(None, None, keys, texts), np.ones(9000, np.int64))
    counter.spill()


WRITERS = {
    "file": (lambda folder: write_text(folder / "a.json", "x" * 9999), "a.json"),
    "vocabulary": (save_vocabulary, "vocabulary.tsv: the vocabulary"),
    "records": (write_records, "a shard of records"),
    "bad_rows": (list_bad_rows, "bad_rows.tsv: the list of bad rows"),
    "keys": (spill_keys, "C1-keys-0000: counts of values"),
    "texts": (spill_texts, "C1-texts-0000: counts of values"),
    "rows": (lambda folder: Planted().write(folder / "a.tsv", 500), "a.tsv: the file"),
}


@pytest.mark.parametrize("write, message", WRITERS.values(), ids=WRITERS)
def test_a_failed_write_names_what_where_why_and_how_to_go_on(write, message, tmp_path):
    with largest_file(4096), pytest.raises(disk.WriteError) as error:
        write(tmp_path)
    text = str(error.value)
    assert text.startswith(str(tmp_path)) and "\n" not in text
    assert message in text and "cannot be written: File too large." in text
    assert text.endswith("Raise the largest allowed file size (ulimit -f), then start "
                         "again.")  # fmt: skip
    assert error.value.errno == errno.EFBIG
    names = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert not [name for name in names if name.endswith((".tmp", ".json", ".tsv"))
                and name != "bad_rows.tsv"]  # fmt: skip


def test_a_file_that_was_there_is_kept(tmp_path):
    (tmp_path / "a.json").write_text("before")
    with (
        largest_file(4096),
        pytest.raises(disk.WriteError, match="existing a.json is unch"),
    ):
        write_text(tmp_path / "a.json", "x" * 9999)
    assert (tmp_path / "a.json").read_text() == "before"


def test_a_preparation_goes_on_after_a_full_disk(tmp_path):
    log, whole, out = tmp_path / "a.tsv", tmp_path / "whole", tmp_path / "out"
    Planted().write(log, 3000)
    prepare.prepare(log, whole)
    with largest_file(100_000), pytest.raises(disk.WriteError) as error:
        prepare.prepare(log, out)
    assert f"is kept in {out}/unfinished. Raise" in str(error.value)
    assert str(error.value).endswith("then run it again to resume.")
    prepare.prepare(log, out)
    for path in whole.rglob("*.npy"):
        other = out / path.relative_to(whole)
        assert path.read_bytes() == other.read_bytes(), path


def test_words_of_other_libraries_and_what_is_not_of_writing(tmp_path):
    hdf5 = RuntimeError(
        "Can't write data (time = Sun\n, errno = 28, error message = 'No space')"
    )
    assert disk.find_reason(hdf5) == (errno.ENOSPC, "No space left on device")
    assert disk.find_reason(ValueError("of space")) is None
    sqlite = disk.find_reason(RuntimeError("(x) database or disk is full\n[SQL: y]"))
    assert sqlite == (errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError):  # a file that was read, elsewhere
        with disk.explaining("it", tmp_path / "a" / "b"):
            open("/proc/none/c").close()
    with pytest.raises(BrokenPipeError), disk.explaining("it", tmp_path / "a"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_commands_name_a_folder_that_cannot_be_written(tmp_path, capsys):
    log = tmp_path / "a.tsv"
    Planted().write(log, 100)
    path = "/proc/a"  # where root cannot write either
    assert cli.main(["prepare", "--input", str(log), "--out", path]) == 2
    error = capsys.readouterr().err
    assert f"{path}: the folder cannot be written: No such file" in error
    assert error.count("\n") == 1
    folder = "/proc/sys/a.json"
    assert cli.main(["profile-trace", "--input", str(log), "--output", folder]) == 2
    assert "cannot be written: " in (error := capsys.readouterr().err)
    assert error.count("\n") == 1 and "/proc/sys" in error


@pytest.mark.integration
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_standard_output_on_a_full_disk(tmp_path):
    import subprocess

    command = [sys.executable, "-m", "pipelines.cli", "--help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    assert done.stderr == "tf-dlrm: error: standard output: No space left on device\n"


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("mount"), reason="not root")
def test_a_disk_that_is_full(tmp_path):
    """The system's own error, where a small disk may be mounted."""
    import subprocess

    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a disk may not be mounted here")
    try:
        for write, message in WRITERS.values():
            with pytest.raises(
                disk.WriteError, match="No space left on device. Free"
            ) as e:
                (tmp_path / "filler").write_bytes(b"x" * 64_000)
                write(tmp_path)
            assert message in str(e.value)
            for path in tmp_path.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
