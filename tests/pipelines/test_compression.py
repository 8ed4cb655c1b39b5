"""What a file is: read where a library here reads it, else said in one line."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import struct
import tarfile
import zipfile
import zlib

import pyarrow as pa
import pytest

from pipelines import compression, files

CONTENT = b"".join(b"%d\ta line\n" % i for i in range(5000))
TEXT = CONTENT.decode()


def arrow(codec, content=CONTENT):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, codec) as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def zipped(*names):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, CONTENT)
    return sink.getvalue()


def tar(mode):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:
        member = tarfile.TarInfo("day_0")
        member.size = len(CONTENT)
        archive.addfile(member, io.BytesIO(CONTENT))
    return sink.getvalue()


def skipped(size, content):
    return struct.pack("<II", 0x184D2A53, size) + bytes(size) + content


READ = {
    "gzip": gzip.compress(CONTENT),
    "gzip of two members": gzip.compress(CONTENT[:9]) + gzip.compress(CONTENT[9:]),
    "bzip2": bz2.compress(CONTENT),
    "xz": lzma.compress(CONTENT),
    "bzip2 of two streams": bz2.compress(CONTENT[:9]) + bz2.compress(CONTENT[9:]),
    "xz of two padded streams": lzma.compress(CONTENT[:9])
    + bytes(4)
    + lzma.compress(CONTENT[9:])
    + bytes(1 << 17),
    "xz after an empty stream": lzma.compress(b"") + lzma.compress(CONTENT),
    "xz of the older form": lzma.compress(CONTENT, lzma.FORMAT_ALONE),
    "zstd": arrow("zstd"),
    "zstd after a frame to skip": skipped(4, arrow("zstd")),
    "zstd after a long frame to skip": skipped(5000, arrow("zstd")),
    "lz4": arrow("lz4"),
    "lz4 after a frame to skip": skipped(4, arrow("lz4")),
    "zip": zipped("day_0"),
    "zip of a Mac": zipped("day_0", "__MACOSX/._day_0", ".DS_Store"),
    "day.br": arrow("brotli"),
}
REFUSED = {
    "gzip in gzip": (gzip.compress(READ["gzip"]), "is gzip data within gzip"),
    "zstd in xz": (lzma.compress(READ["zstd"]), "is zstd data within xz"),
    "tar": (tar("w"), "is a tar archive, not lines"),
    "tar.gz": (tar("w:gz"), "is a tar archive within gzip"),
    "no files in a zip": (zipped(), "a zip archive .* contains 0 files"),
    "two files in a zip": (zipped("a", "b"), "a zip archive .* contains 2 files"),
    "Parquet in gzip": (gzip.compress(b"PAR1\x15\0"), "is a Parquet file within gzip"),
    "ORC": (b"ORC\x08\0\1", "is an ORC file"),
    "Avro": (b"Obj\x01\x04\x14", "is an Avro file"),
    "Arrow stream": (b"\xff\xff\xff\xff\x90\3\0\0" + bytes(90), "is an Arrow stream"),
    "zlib": (zlib.compress(CONTENT), "is zlib data"),
    "pickle": (pickle.dumps(CONTENT, 2), "is a Python pickle"),
    "Excel": (zipped("[Content_Types].xml", "xl/workbook.xml"), "an Office document"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid a\n", "git lfs pull"),
    "zeros": (bytes(5000), "is zero bytes"),
    "UTF-16": (TEXT.encode("utf-16"), "is UTF-16LE text.* iconv -f UTF-16LE"),
    "UTF-16LE": (TEXT.encode("utf-16-le"), "is UTF-16LE text"),
    "UTF-16BE": (TEXT.encode("utf-16-be"), "is UTF-16BE text"),
    "UTF-32": (TEXT.encode("utf-32"), "is UTF-32LE text"),
    "UTF-16 in gzip": (gzip.compress(TEXT.encode("utf-16")), "is UTF-16LE text"),
    "cut bzip2": (READ["bzip2"][:-5], "is truncated or damaged"),
    "cut xz": (READ["xz"][:-5], "is truncated or damaged"),
    "junk after bzip2": (READ["bzip2"] + b"junk", "is truncated or damaged"),
    "junk after xz": (READ["xz"] + b"junk" * 9, "is truncated or damaged"),
    "cut lz4": (READ["lz4"][:-5], "is truncated or damaged"),
    "cut zip": (READ["zip"][:-30], "is truncated or damaged"),
    "text.bz2": (CONTENT, "named .bz2, but does not contain bzip2 data"),
}


@pytest.mark.parametrize("name", READ)
def test_compressed_files_are_read_from_any_offset(tmp_path, name):
    path = str(tmp_path / name)
    (tmp_path / name).write_bytes(READ[name])
    reader = files.BlockReader(4000)
    blocks = list(reader.blocks(path))
    assert b"".join(blocks) == CONTENT and len(blocks) > 9
    assert reader.stored_bytes(path) > 0
    first = len(blocks[0])
    assert files.BlockReader(4000).read(path, first) == blocks[1]
    assert compression.compression_of(path) == name.split()[0].replace(
        "day.br", "brotli"
    )


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_named(tmp_path, name):
    content, match = REFUSED[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}.*{match}") as error:
        list(files.BlockReader().blocks(str(tmp_path / name)))
    assert "\n" not in str(error.value)


def test_lines_with_odd_bytes_are_lines(tmp_path):
    """A few NULs, or a first field that looks like a magic, are not another format."""
    for content in (b"\0\0\n" * 9, b"ORC\tx\n", b"1\t\0\ta\0b\n", b"\xff\xfea\tb\n"):
        (tmp_path / "lines").write_bytes(content)
        assert files.BlockReader().read(str(tmp_path / "lines"), 0) == content


def test_what_is_no_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    for path, match in (
        (tmp_path / "pipe", "is a pipe, but input is read more than once"),
        ("/dev/zero", "is a device"),
        ("https://host/day_0.gz", "is a remote address that cannot be read"),
        ("file://host/day_0", "names the host 'host'"),
        ("file:///no/day_0", "There is no file '/no/day_0'"),
        (tmp_path / "link", "it is a link to 'nowhere', which does not exist"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            files.expand_paths(path)


@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_one_file_under_two_names(tmp_path, link):
    (tmp_path / "day").write_text("x")
    link(tmp_path / "day", tmp_path / "other")
    with pytest.raises(
        ValueError, match="listed twice: .*/day' and, .* link, .*/other'"
    ):
        files.expand_paths([tmp_path / "day", tmp_path / "other"])
    with pytest.raises(ValueError, match="listed twice: .*/day'.$"):
        files.expand_paths([str(tmp_path / "day")] * 2)


def test_folders_of_part_files(tmp_path):
    folder = tmp_path / "out"
    (folder / "_temporary").mkdir(parents=True)
    names = ("part-00001", "part-00000", ".part-00000.crc", "_SUCCESS", "_metadata")
    for name in (*names, "_temporary/part-00002"):
        (folder / name).write_bytes(b"" if name == "_SUCCESS" else b"x\n")
    parts = [str(folder / "part-00000"), str(folder / "part-00001")]
    for paths in (folder, f"{folder}/*", f"{tmp_path}/*", f"{tmp_path}/**/part*"):
        assert files.expand_paths(paths) == parts
    assert files.expand_paths(f"{folder}/_m*") == [str(folder / "_metadata")]
    (tmp_path / "days" / "date=1").mkdir(parents=True)
    (tmp_path / "days" / "_SUCCESS").touch()
    (tmp_path / "days" / "date=1" / "part-0").write_text("x")
    part = str(tmp_path / "days" / "date=1" / "part-0")
    assert files.expand_paths(tmp_path / "days") == [part]
    assert len(files.expand_paths(f"{tmp_path}/days/date=*")) == 1
    (tmp_path / "mine").mkdir()
    for name in ("train.tsv", "valid.tsv"):
        (tmp_path / "mine" / name).write_text("x")
    with pytest.raises(ValueError, match="is a directory, but not one of part files"):
        files.expand_paths(tmp_path / "mine")
