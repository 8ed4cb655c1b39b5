"""An independent reader of Criteo lines: bytes, int, math.log and dicts only."""

import gzip
import math
from pathlib import Path

import numpy as np
import pytest

_MASK = 2**64 - 1
_DATA = Path(__file__).parents[3] / "shared" / "data"

REAL_FILES = {
    "kaggle": ("criteo_kaggle_sample.tsv.gz", 14_017, True),
    "terabyte": ("criteo_terabyte_sample.tsv.gz", 1_000, True),
    "unlabelled": ("criteo_kaggle_unlabelled.tsv.gz", 6_000, False),
}


def real_path(name):
    path = _DATA / REAL_FILES[name][0]
    if not path.exists():
        pytest.skip(f"the real Criteo sample {path.name} is not here")
    return str(path)


def real_lines(name):
    with gzip.open(real_path(name)) as file:
        return file.read().split(b"\n")[:-1]


def parse(line, ids, labelled=True):
    """Returns (label, 13 float32, 26 bags), or None for a bad row.

    `ids(feature, value)` numbers a value that is not empty.
    """
    if line[:3] == bytes([0xEF, 0xBB, 0xBF]):
        line = line[3:]
    if line[-1:] == b"\n":
        line = line[:-1]
        if line[-1:] == b"\r":
            line = line[:-1]
    elif line[-1:] == b"\r":
        line = line[:-1]
    if 13 in line or 10 in line:
        return None
    columns = line.split(b"\t")
    if len(columns) == 39 and not labelled:
        columns = [b"0", *columns]
    if len(columns) != 40 or columns[0] not in (b"0", b"1"):
        return None
    dense = []
    for text in columns[1:14]:
        digits = text[1:] if text[:1] == b"-" else text
        if text and (not digits or any(c not in b"0123456789" for c in digits)):
            return None
        try:
            number = float(int(digits.lstrip(b"0")[:4000] or b"0"))
        except OverflowError:
            return None
        number = 0.0 if text[:1] == b"-" else number
        dense.append(np.float32(math.log(number + 1.0)))
    bags = []
    for feature, text in enumerate(columns[14:]):
        pieces = [piece for piece in text.split(b",") if piece]
        bags.append([ids(feature, piece) for piece in pieces] if text else [0])
    return int(columns[0]), dense, bags


def table_ids(vocabulary):
    tables = [
        {v: i for i, v in enumerate(vocabulary.values(f"C{k}"), start=1)}
        for k in range(1, 27)
    ]
    return lambda feature, value: tables[feature].get(value, 0)


def siphash(key, message):
    """SipHash-2-4 as its paper describes it; key: two 64-bit words."""

    def rotate(x, bits):
        return ((x << bits) | (x >> (64 - bits))) & _MASK

    v = [
        key[0] ^ 0x736F6D6570736575,
        key[1] ^ 0x646F72616E646F6D,
        key[0] ^ 0x6C7967656E657261,
        key[1] ^ 0x7465646279746573,
    ]

    def rounds(count):
        for _ in range(count):
            v[0] = (v[0] + v[1]) & _MASK
            v[1] = rotate(v[1], 13) ^ v[0]
            v[0] = rotate(v[0], 32)
            v[2] = (v[2] + v[3]) & _MASK
            v[3] = rotate(v[3], 16) ^ v[2]
            v[0] = (v[0] + v[3]) & _MASK
            v[3] = rotate(v[3], 21) ^ v[0]
            v[2] = (v[2] + v[1]) & _MASK
            v[1] = rotate(v[1], 17) ^ v[2]
            v[2] = rotate(v[2], 32)

    padded = message + bytes(-(len(message) + 1) % 8) + bytes([len(message) % 256])
    for start in range(0, len(padded), 8):
        word = int.from_bytes(padded[start : start + 8], "little")
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def hash_ids(sizes):
    def ids(feature, value):
        hashed = siphash((feature + 1, 0x646C726D), value)
        return 1 + hashed % (sizes[feature] - 1)

    return ids


def make_line(rng, label=b"1", num_columns=40):
    """A good line with some of everything, labelled unless 39 columns are wanted."""
    integers = [
        b"" if rng.random() < 0.2 else b"%d" % int(rng.pareto(1) * 3 - 2)
        for _ in range(13)
    ]
    fields = [
        b"" if rng.random() < 0.1 else b"%08x" % int(rng.integers(40) ** 3)
        for _ in range(26)
    ]
    columns = [label, *integers, *fields]
    return b"\t".join(columns[40 - num_columns :])


_HOSTILE = [
    b"", b" ", b"-", b"--1", b"-0", b"007", b"+3", b"1.0", b"1e400", b"nan", b"inf",
    b"0x1F", b" 7", b"7 ", b"9" * 15, b"9" * 16, b"9" * 19, b"9" * 308, b"9" * 309,
    b"1" + b"0" * 308, b"-" + b"9" * 400, b"0" * 400 + b"7", b"1_000",
    "\u0663".encode(),
    b",", b",,", b"a,b", b"a,,b", b",a", b"a,", b"a,a", b'"', b'"a\tb"', b"a\"b", b"'",
    b"\x00", b"a\x00b", b"\x00\x00", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80",
    b"\xef\xbb\xbf", "\u00e9".encode(), "\U0001f600,b".encode(), b"\r", b"\n", b"a\rb",
    b"a\nb", b"\t", b"\x0b\x0c\x1c\x85", b"\xe2\x80\xa8", b"x" * 3000, b"#", b"\\N",
    b"\\t", b"2", b"0", b"1", b"0c1e8f72", b"\x7f", b"-" * 20, b"1" * 5000, b"\xff,a",
]  # fmt: skip


def hostile_lines(rng, count):
    """Good lines of 39 or 40 columns with up to two pieces of malice."""
    lines = []
    for _ in range(count):
        label = [b"0", b"1"][int(rng.integers(2))]
        line = make_line(rng, label, int(rng.choice([39, 40, 40, 40])))
        columns = line.split(b"\t")
        for _ in range(rng.integers(3)):
            malice = _HOSTILE[int(rng.integers(len(_HOSTILE)))]
            position = int(rng.integers(len(columns)))
            kind = rng.integers(16)
            if kind == 0:
                columns.insert(position, malice)
            elif kind == 1 and len(columns) > 1:
                columns.pop(position)
            elif kind == 2:
                columns[position] += malice
            else:
                columns[position] = malice
        line = b"\t".join(columns)
        ends = [b"", b"", b"", b"\n", b"\r\n", b"\r", b"\r\r\n", b"\n\n", b"\n\r"]
        line += ends[int(rng.integers(len(ends)))]
        starts = [b"", b"", b"", b"", b"\xef\xbb\xbf", b"\xef\xbb\xbf\xef\xbb\xbf"]
        line = starts[int(rng.integers(len(starts)))] + line
        lines.append(line)
    lines += [b"", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\t" * 39, b"\t" * 38, b"\t" * 40]
    lines += [b"1" + b"\t" * 39, b"\x00", b"1" + b"\t" * 39 + b"\r\n"]
    return lines
