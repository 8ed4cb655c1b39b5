"""What happens to bad input, in reading and in preparing alike: nothing in silence."""

import gzip
import os

import pytest
import tensorflow as tf

from pipelines import criteo, prepare
from pipelines.formats import reading, scanning
from pipelines.quarantine import BadRowsError, Quarantine
from pipelines.vocabulary import HashVocabulary

PARSER = criteo.Parser(HashVocabulary(1000))
INTEGERS = [b"%d" % i for i in range(13)]
VALUES = [b"%08x" % i for i in range(26)]


def line(label=b"1", integers=(), values=()):
    """A good line, with some of its fields replaced."""
    fields = [*INTEGERS], [*VALUES]
    for place, field in integers:
        fields[0][place] = field
    for place, field in values:
        fields[1][place] = field
    return b"\t".join([label, *fields[0], *fields[1]])


# Lines that are set aside, and why.
BAD = {
    "too few columns": (b"1\t2", "expected 40 tab-separated columns, found 2"),
    "too many columns": (
        line() + b"\tx",
        "expected 40 tab-separated columns, found 41",
    ),
    "empty line": (b"", "empty line"),
    "1e400": (line(integers=[(0, b"1e400")]), "I1 must be an integer or empty"),
    "nan": (line(integers=[(1, b"nan")]), "I2 must be an integer or empty"),
    "0x1F": (line(integers=[(2, b"0x1F")]), "I3 must be an integer or empty"),
    "a blank": (line(integers=[(2, b" 7")]), "I3 must be an integer or empty"),
    "400 digits": (line(integers=[(3, b"9" * 400)]), "I4 is too large"),
    "label 2": (line(label=b"2"), "the label must be 0 or 1, found '2'"),
    "label 1.0": (line(label=b"1.0"), "the label must be 0 or 1"),
    "no label": (line(label=b""), "the label must be 0 or 1"),
    "carriage return inside": (line(values=[(0, b"a\rb")]), "carriage return inside"),
    "NUL alone": (b"\0", "expected 40 tab-separated columns, found 1"),
    "10 MB line": (b"x" * 10_000_000, "expected 40 tab-separated columns, found 1"),
}
# Lines that are rows all the same.
GOOD = {
    "CRLF": line() + b"\r",
    "byte-order mark": b"\xef\xbb\xbf" + line(),
    "quotes": line(values=[(0, b'"'), (1, b'"a'), (2, b'b"c')]),
    "invalid UTF-8": line(values=[(0, b"\xff\xfe"), (1, b"\xc3")]),
    "NUL": line(values=[(0, b"\0"), (1, b"a\0b")]),
    "negative integer": line(integers=[(0, b"-5"), (1, b"-999999999999")]),
    "leading zeros": line(integers=[(0, b"007")]),
    "10 MB value": line(values=[(0, b"x" * 10_000_000)]),
}


def read(path, quarantine, out):
    del out
    num_rows = 0
    try:
        for _, label in criteo.read(path, PARSER, 8, quarantine=quarantine):
            num_rows += len(label)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(error.message) from error
    return num_rows


def prepare_records(path, quarantine, out):
    options = prepare.Options(min_count=1, max_bad_share=quarantine.max_bad_share)
    manifest = prepare.prepare(path, out, options)
    return manifest.num_rows("train")


WAYS = pytest.mark.parametrize("way", [read, prepare_records], ids=["read", "prepare"])


@pytest.mark.breadth(7)
@WAYS
@pytest.mark.parametrize("kind", BAD)
def test_bad_lines_are_set_aside(tmp_path, way, kind):
    bad, reason = BAD[kind]
    path = tmp_path / "day_0"
    path.write_bytes(b"\n".join([line(), bad, line(), line()]) + b"\n")
    out = tmp_path / "out"
    out.mkdir()
    quarantine = Quarantine(out / "bad_rows.tsv", max_bad_share=0.5)
    assert way(path, quarantine, out) == 3
    (entry,) = (out / "bad_rows.tsv").read_text().splitlines()[1:]
    place, number, why, num_bytes, text = entry.split("\t")
    assert (place, number, num_bytes) == (str(path), "2", str(len(bad)))
    assert why.startswith(reason)
    kept = text.encode().decode("unicode_escape").encode("latin-1")
    assert kept == bad[:1024]


@pytest.mark.breadth(0)
@WAYS
@pytest.mark.parametrize("kind", GOOD)
def test_odd_lines_are_rows(tmp_path, way, kind):
    path = tmp_path / "day_0"
    path.write_bytes(b"\n".join([line(), GOOD[kind], line()]) + b"\n")
    assert way(path, Quarantine(max_bad_share=0), tmp_path / "out") == 3
    assert not (tmp_path / "out" / "bad_rows.tsv").exists()


@WAYS
@pytest.mark.parametrize("damage", ["cut", "checksum", "flipped bit"])
def test_damaged_gzip_stops(tmp_path, way, damage):
    path = tmp_path / "day_0.gz"
    lines = [line(integers=[(0, b"%d" % (i * i))]) for i in range(3000)]
    with gzip.open(path, "wb") as file:
        file.write(b"\n".join(lines))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "checksum":
        content[-6] ^= 1
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(ValueError, match="day_0.gz: .*(is truncated or damaged)"):
        way(path, Quarantine(max_bad_share=1), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


@WAYS
def test_files_that_are_none(tmp_path, way):
    quarantine = Quarantine()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for name, match in (
        ("nothing", "no file"),
        ("nothing_*", "No file matches"),
        ("empty", "files are empty"),
        ("folder", "is a directory"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=match):
            way(tmp_path / name, quarantine, tmp_path / "out")
    (tmp_path / "noise.gz").write_bytes(b"\1\2\3\4")
    with pytest.raises(ValueError, match="noise.gz: named .gz"):
        way(tmp_path / "noise.gz", quarantine, tmp_path / "out")


@WAYS
def test_a_file_that_changes_while_it_is_read(tmp_path, way, monkeypatch):
    path = tmp_path / "day_0"
    path.write_bytes(b"\n".join([line()] * 100) + b"\n")
    original, calls = Quarantine.record, []

    def record(self, *arguments):
        if not calls:
            os.utime(path, (1, 1))
        calls.append(arguments)
        return original(self, *arguments)

    monkeypatch.setattr(Quarantine, "record", record)
    monkeypatch.setattr(scanning, "BLOCK_BYTES", 4000)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 4000)
    with pytest.raises(ValueError, match="day_0: changed while it was"):
        way(path, Quarantine(), tmp_path / "out")


@pytest.mark.breadth(1)
@WAYS
def test_too_many_bad_rows_stop_with_a_summary(tmp_path, way):
    path = tmp_path / "day_0"
    path.write_bytes(b"\n".join([line()] * 9998 + [b"oops"] * 2) + b"\n")
    with pytest.raises(ValueError, match="(?s)2 of 10,000 rows.*day_0:9999: expected"):
        way(path, Quarantine(), tmp_path / "out")
    assert way(path, Quarantine(max_bad_share=2e-4), tmp_path / "other") == 9998
    assert issubclass(BadRowsError, ValueError)
