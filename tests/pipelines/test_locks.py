"""One writer at a time, whatever becomes of the one before."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading

import pytest
from helpers.lock_holder import holding

from pipelines import records
from pipelines.runtime import disk, locks
from pipelines.whole_files import replacing


def note_of(folder):
    return json.loads((folder / ".lock").read_text())


def test_the_second_is_told_who_holds_it_and_a_killed_one_does_not_block(tmp_path):
    folder = tmp_path / "run"
    with holding(folder) as process:
        before = (folder / ".lock").read_bytes()
        with pytest.raises(locks.InUseError) as error:
            with locks.locked(folder):
                pass
        message = str(error.value)
        assert f"{folder} is being written by process {process.pid}" in message
        assert (
            f"on {socket.gethostname()} (-c {folder} 'an option'), since 2" in message
        )
        assert (folder / ".lock").read_bytes() == before
    assert (folder / ".lock").exists()  # and yet:
    with locks.locked(folder):
        assert note_of(folder)["pid"] == os.getpid()
    assert not folder.exists() or not list(folder.iterdir())


def test_a_lock_of_another_host_is_refused_with_what_to_remove(tmp_path):
    with locks.locked(tmp_path):
        note = note_of(tmp_path)
    path = tmp_path / ".lock"
    text = json.dumps({**note, "host": "elsewhere", "boot": "another"})
    path.write_text(text)
    with pytest.raises(locks.InUseError, match=f"cannot tell .* remove {path} and"):
        with locks.locked(tmp_path):
            pass
    assert path.read_text() == text
    # A container of this machine, and this host before it was started again.
    for other in ({"host": "container"}, {"boot": "before"}):
        path.write_text(json.dumps({**note, **other}))
        with locks.locked(tmp_path):
            pass
        assert not path.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 5000, '{"pid": "\\u0000"}', "\xff", "9" * 9999]
)
def test_a_lock_file_that_says_nothing_is_taken_over(text, tmp_path):
    (tmp_path / ".lock").write_text(text)
    with locks.locked(tmp_path):
        assert note_of(tmp_path)["pid"] == os.getpid()


def test_where_there_are_no_locks_the_note_counts(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(38, "not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with locks.locked(tmp_path):
        note = note_of(tmp_path)
        with pytest.raises(locks.InUseError):
            locks.take(tmp_path / ".lock", tmp_path)
    # The same number, but a process that was started at another time.
    for other in ({"start": "1"}, {"pid": 2**22 + 1}):
        (tmp_path / ".lock").write_text(json.dumps({**note, **other}))
        with locks.locked(tmp_path):
            pass


def test_it_nests_but_not_for_threads_and_children(tmp_path):
    found = []

    def try_it():
        try:
            with locks.locked(tmp_path):
                found.append("both")
        except locks.InUseError:
            found.append("refused")

    with locks.locked(tmp_path):
        with locks.locked(tmp_path / "."):
            pass
        assert (tmp_path / ".lock").exists()
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
        child = os.fork()
        if not child:
            try_it()
            os._exit(found[-1] != "refused")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert (tmp_path / ".lock").exists()
    assert found == ["refused"]


def test_a_child_does_not_keep_the_lock_of_its_parent(tmp_path):
    with locks.locked(tmp_path):
        child = os.fork()
        if not child:
            signal.pause()
    try:
        with locks.locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_folder_of_which_nothing_came_is_not_left(tmp_path):
    with pytest.raises(KeyError), locks.locked(tmp_path / "a" / "b"):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_records_are_written_by_one(tmp_path):
    schema = records.Schema(["d"], ["a"], [3])
    with holding(tmp_path), pytest.raises(locks.InUseError):
        with records.Writer(tmp_path, schema):
            pass
    with records.Writer(tmp_path, schema) as writer:
        writer.append([1], [[1.0]], [[2]])
        with pytest.raises(FileNotFoundError):
            records.Manifest.load(tmp_path)
    assert not (tmp_path / ".lock").exists()


def test_what_a_killed_process_left_is_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    name = disk.temporary_name("a.json")
    mine = str(os.getpid())
    dead, other = name.replace(mine, str(process.pid)), f".a.json.00000000.{mine}.tmp"
    for each in (name, dead, other, ".a.tmp", "a.json"):
        (tmp_path / each).write_text("")
    with replacing(tmp_path / "b"):
        assert not (tmp_path / dead).exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        name, other, ".a.tmp", "a.json", "b"
    }  # fmt: skip
