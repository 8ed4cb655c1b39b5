import gzip
import os

import numpy as np
import pandas
import pyarrow as pa
import pytest

from pipelines import files
from pipelines.runtime import disk


def open_zstd(path, mode):
    return pa.CompressedOutputStream(str(path), "zstd")


OPENERS = {"": open, ".gz": gzip.open, ".zst": open_zstd}


def test_expand_paths_sorts_globs_and_keeps_order(tmp_path):
    for name in ("b", "a", "c[1]"):
        (tmp_path / name).write_text("x")
    assert files.expand_paths([tmp_path / "c[1]", f"{tmp_path}/[ab]"]) == [
        str(tmp_path / name) for name in ("c[1]", "a", "b")
    ]
    with pytest.raises(ValueError, match="listed twice: .*/b'"):
        files.expand_paths([tmp_path / "b", f"{tmp_path}/[ab]"])
    assert files.expand_paths(tmp_path / "c[1]") == [str(tmp_path / "c[1]")]


def test_expand_paths_refuses_what_cannot_be_read(tmp_path):
    with pytest.raises(TypeError, match="data frame: read it with `pipelines.from_d"):
        files.expand_paths(pandas.DataFrame({"click": [1]}))
    (tmp_path / "empty").write_text("")
    with pytest.raises(FileNotFoundError, match="no file .*nowhere"):
        files.expand_paths(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"pattern .*day_\*"):
        files.expand_paths(f"{tmp_path}/day_*")
    with pytest.raises(ValueError, match="is a directory"):
        files.expand_paths(tmp_path)
    with pytest.raises(ValueError, match="at least one file"):
        files.expand_paths([])
    with pytest.raises(ValueError, match="files are empty: .*empty"):
        files.expand_paths(tmp_path / "empty")
    with pytest.raises(TypeError, match="must be text"):
        files.expand_paths([b"path"])


@pytest.mark.parametrize("block_bytes", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_blocks_are_whole_lines_from_any_offset(tmp_path, block_bytes, suffix):
    content = b"one\n\ntwo\r\n\n\nlast\x00"
    path = str(tmp_path / f"lines{suffix}")
    with OPENERS[suffix](path, "wb") as file:
        file.write(content)
    reader = files.BlockReader(block_bytes)
    blocks = list(reader.blocks(path))
    assert b"".join(blocks) == content
    assert all(block.endswith(b"\n") for block in blocks[:-1])
    offset = 0
    for block in blocks:
        assert files.BlockReader(block_bytes).read(path, offset) == block
        offset += len(block)


def test_gzip_is_known_by_its_content(tmp_path):
    with gzip.open(tmp_path / "packed", "wb") as file:
        file.write(b"text\n")
    assert list(files.BlockReader().blocks(str(tmp_path / "packed"))) == [b"text\n"]
    (tmp_path / "plain.gz").write_bytes(b"text\n")
    with pytest.raises(ValueError, match="plain.gz: named .gz, but"):
        files.BlockReader().read(str(tmp_path / "plain.gz"), 0)


@pytest.mark.parametrize(
    ("suffix", "damage"), [(".gz", "cut"), (".gz", "changed"), (".zst", "cut")]
)
def test_damaged_file_is_refused(tmp_path, suffix, damage):
    path = tmp_path / f"lines{suffix}"
    with OPENERS[suffix](path, "wb") as file:
        file.write(b"line\n" * 100_000)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[-1:]
    else:
        content[-6] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"lines{suffix}: .*truncated or damaged"):
        list(files.BlockReader().blocks(str(path)))


def test_line_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100)
    (tmp_path / "binary").write_bytes(b"x" * 1000)
    with pytest.raises(ValueError, match="binary: a line is longer than 100 bytes"):
        files.BlockReader(10).read(str(tmp_path / "binary"), 0)
    (tmp_path / "returns").write_bytes(b"1\t2\r" * 100)
    with pytest.raises(ValueError, match="end in a carriage return only"):
        files.BlockReader(10).read(str(tmp_path / "returns"), 0)


def test_open_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_MAX_OPEN_FILES", 2)
    reader = files.BlockReader(4)
    for i in range(5):
        (tmp_path / str(i)).write_bytes(b"one\ntwo\n")
        assert reader.read(str(tmp_path / str(i)), 0) == b"one\n"
    assert len(reader._open_files) == 2
    assert reader.read(str(tmp_path / "0"), 4) == b"two\n"


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_how_much_of_the_stored_file_was_read(tmp_path, suffix):
    path = str(tmp_path / f"lines{suffix}")
    rng = np.random.default_rng(0)
    with OPENERS[suffix](path, "wb") as file:
        file.write(b"\n".join(b"%d" % i for i in rng.integers(0, 1 << 60, 200_000)))
    reader, size = files.BlockReader(1 << 18), os.path.getsize(path)
    assert reader.stored_bytes(path) == 0
    seen, offset = [], 0
    while block := reader.read(path, offset):
        offset += len(block)
        seen.append(reader.stored_bytes(path))
    assert seen == sorted(seen) and seen[-1] == size
    half = seen[len(seen) // 2] / size
    assert 0.4 < half < 0.95  # a reader is ahead by some buffers


def test_fingerprints_tell_content(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"x" * 5_000_000)
    ((name, whole),) = disk.fingerprints([path])
    assert name == "a" and whole.startswith("5000000:whole:")
    ((_, blocks),) = disk.fingerprints([path], most_bytes=1 << 20)
    assert blocks.startswith("5000000:blocks of 16384:")
    for place in (0, 4_999_999, 20_000, 2_540_000):
        content = bytearray(b"x" * 5_000_000)
        content[place] = 0
        path.write_bytes(content)
        assert disk.fingerprints([path]) != [["a", whole]]
        seen = disk.fingerprints([path], most_bytes=1 << 20) != [["a", blocks]]
        assert seen == (place != 20_000)  # between two blocks, as it says
    path.write_bytes(b"x" * 5_000_000)
    os.rename(path, tmp_path / "moved")
    (tmp_path / "b").mkdir()
    os.rename(tmp_path / "moved", tmp_path / "b" / "a")
    assert disk.fingerprints([tmp_path / "b" / "a"]) == [["a", whole]]
