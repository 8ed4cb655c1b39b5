"""Schemas of different kinds, and good and hostile lines of them."""

from pipelines.schema import Dense, Label, Schema, Sparse, Text

SCHEMAS = {
    "criteo": Schema.criteo(),
    "plain csv": Schema(
        "click",
        [
            Dense("price", "log1p"),
            Dense("age", "standardize"),
            Dense("n", integer=True),
        ],
        [
            "country",
            Sparse("item"),
            Sparse("history", separator="|", table="item", max_values=3),
        ],
    ),
    "label last, weight and time": Schema(
        Label("y", soft=True),
        [Dense("a", "signed_log1p", missing=2.5), Dense("b", "clip", low=-1, high=9)],
        [Sparse("c", separator=","), Sparse("d", buckets="width", width=0.75)],
        weight="w",
        time="t",
        format=Text(
            ";", False, ("a", "b", "c", "d", "w", "t", "y"), ("", "NULL", "-1")
        ),
    ),
    "quoted": Schema(
        Label("click", positive=("yes", "t,b"), negative=("no", "")),
        [Dense("x"), Dense("y", missing=-3)],
        [
            Sparse("c"),
            Sparse("d", separator=","),
            Sparse("e", separator='"', name="f"),
        ],
        group="user",
        format=Text(
            ",", False, ("x", "c", "click", "d", "e", "user", "y"), quoted=True
        ),
    ),
    "positions": Schema(
        2, [Dense(0, "log1p", name="x")], [Sparse(4, name="c")],
        format=Text("|", False),
    ),
    "weights": Schema(
        Label("stars", threshold=3.5),
        (),
        [
            Sparse("a", separator="|", weight_separator=":", max_values=2),
            Sparse("b"),
            Sparse("c", separator="; ", weight_separator="=>", combiner="mean"),
            Sparse("d", separator="|", table="a"),
        ],
        format=Text("\t"),
    ),
    "no missing cells": Schema(
        Label("y", positive=("1", "é"), negative=None),
        [Dense("x"), Dense("z", "log1p")],
        [Sparse("a", separator=" "), Sparse("b"), Sparse("c", separator="é")],
        format=Text(missing=()),
    ),
    "missing by other words": Schema(
        Label("y", negative=None),
        [Dense("x", missing=7)],
        [Sparse("a", separator="|"), Sparse("b"), Sparse("c", separator="N")],
        format=Text(missing=("NULL", "a|b")),
    ),
    "columns of several features": Schema(
        Label("y", threshold=0),
        [Dense("x"), Dense("x", "log1p", name="x2", missing=5), Dense("y", name="y2")],
        [
            Sparse("x", name="x3", buckets="log2"),
            Sparse("x", name="x4", buckets="quantile", table="q"),
            Sparse("c"),
            Sparse("c", separator="|", name="bag", table="c"),
            Sparse("c", separator=".", name="dots"),
            Sparse("x", name="text"),
        ],
    ),
    "wide": Schema(
        "y",
        [Dense(f"x{i}", integer=i % 3 == 0) for i in range(160)],
        [Sparse("a", separator="|"), Sparse("b")],
    ),
}  # fmt: skip

LEARNED = {
    "age": {"mean": 31.5, "deviation": 0.0},
    "x4": {"edges": [-1.0, 0.5, 2.0, 2.5, 1000.0]},
}

_NUMBERS = [
    b"", b"0", b"1", b"-1", b"2.5", b"1e3", b"+7", b".5", b"3.", b"1e38", b"-0", b"2",
    b"2.718281828459045", b"2.7182818284590455", b"20", b"-0.25", b"7", b"12", b"1234",
    b"100000", b"-99", b"0.1", b"3.4028234663852886e38", b"1E-7", b"1e-40",
    b"-1e-40", b"-1e-320", b"-3.5e+2", b"1e-400", b"123456789012345678",
]  # fmt: skip
_TEXTS = [b"", b"a", b"b", b"c", b"zz", b"a b", b"never"]
_TIMES = [
    b"1", b"2.5", b"2024-02-29", b"2000-02-29T23:59:59.123Z", b"1999-12-31 00:00+05:30",
    b"2023-02-29", b"1900-02-29", b"2024-13-01", b"2024-1-01", b"2024-01-01T24:00",
    b"2024-01-01T10", b"2024-01-01T10:10:60", b"0000-01-01", b"2024-01-01Z", b"1e39",
    b"", b"NULL",
]  # fmt: skip
_HOSTILE = [
    b"", b" ", b"-", b"--1", b"007", b"1e400", b"nan", b"inf", b"-inf", b"0x1F", b" 7",
    b"7 ", b"9" * 16, b"9" * 309, b"9" * 400, b"0" * 400 + b"7", b"1_000", b"1e", b"e5",
    b".", b"+", b"1.2.3", b"3.4028234663852887e38", b"3.5e38", b"1e39", b"-1e39",
    "\u0663".encode(), b",", b"|", b"a|b", b"|a||b|", b"a|b|c|d", b"a:2|b", b":2|a",
    b"a:|b", b"a:x", b"a:b:0.5", b"a:-1|b:1e39", b"a:1e39|b", b":", b"a=>2; b; =>1",
    b"; ", b"a,b", b"a;b", b"a b", b" ", b'"', b'""', b'"a"', b'"a,b"', b'"a""b"',
    b'"a"b', b'a"b', b'"a\nb"', b'"a\r\n"', b'"a|b"', b'"1"', b'",', b'"yes"',
    b"\x00", b"a\x00b", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf",
    "\u00e9".encode(), "a\u00e9b\u00e9".encode(), b"\xc3\xa9\xff", b"\r", b"\n",
    b"a\rb",
    b"NULL", b"a.b", b"aNb", b"NNULL", b"-1", b"-1.0", b"true", b"0.5", b"1.5", b"yes",
    b"\t", b"x" * 3000, b"\\N", b"\xe2\x80\xa8", b"\x7f", b"\x85", b"\xc2\x85",
]  # fmt: skip


def line_columns(schema):
    """The columns of a line: names, or positions."""
    columns = list(schema.text.columns) or list(schema.columns)
    if all(isinstance(column, int) for column in columns):
        columns = list(range(max(columns) + 1))
    return columns


def hostile_lines(rng, schema, count):
    """Good lines of a schema, with up to two pieces of malice."""
    return [_line(rng, schema) for _ in range(count)]


def good_cell(rng, schema, column):
    """A cell that is usually good."""
    label = schema.label
    if column == label.column:
        if label.is_number:
            return _pick(rng, [b"0", b"1", b"0.5", b"4", b"0.25", b"1.0"])
        texts = [*label.positive, *(label.negative or ("other",))]
        return _pick(rng, [text.encode() for text in texts])
    if column == schema.weight:
        return _pick(rng, [b"0", b"1", b"2.5", b"1e2", b"-0", b"-1", b"7"])
    if column == schema.time:
        return _pick(rng, _TIMES[:5] if rng.random() < 0.7 else _TIMES)
    features = [f for f in (*schema.dense, *schema.sparse) if f.column == column]
    missing = [*schema.missing, *schema.missing]
    if any(isinstance(f, Dense) and f.integer for f in features):
        return _pick(rng, [b"%d" % rng.integers(-9, 10**6), b"12", b"-3", *missing])
    if any(isinstance(f, Dense) or f.buckets for f in features):
        pool = _NUMBERS if b"" in schema.missing else _NUMBERS[1:]
        return _pick(rng, [*pool, *missing])
    texts = [*_TEXTS, *missing]
    bags = [f for f in features if f.is_bag]
    if not bags:
        return _pick(rng, texts)
    feature = _pick(rng, bags)
    pieces = [_pick(rng, texts) for _ in range(rng.integers(1, 5))]
    if feature.weight_separator and rng.random() < 0.7:
        mark = feature.weight_separator.encode()
        weights = [b"2", b"0.5", b"-1", b"1e2", b"0.1"]
        pieces = [
            p + mark + _pick(rng, weights) if rng.random() < 0.6 else p for p in pieces
        ]
    return feature.separator.encode().join(pieces)


def _line(rng, schema):
    columns = line_columns(schema)
    cells = [good_cell(rng, schema, column) for column in columns]
    delimiter = schema.text.delimiter.encode()
    if schema.text.quoted:
        cells = [_quote(rng, cell, delimiter) for cell in cells]
    if rng.random() < 0.25:
        cells.pop(columns.index(schema.label.column))
    for _ in range(rng.integers(3)):
        malice = _pick(rng, _HOSTILE)
        position = int(rng.integers(len(cells)))
        kind = rng.integers(16)
        if kind == 0:
            cells.insert(position, malice)
        elif kind == 1 and len(cells) > 1:
            cells.pop(position)
        elif kind == 2:
            cells[position] += malice
        else:
            cells[position] = malice
    ends = [b"", b"", b"", b"\n", b"\r\n", b"\r", b"\r\r\n", b"\n\n", b"\n\r"]
    starts = [b""] * 6 + [b"\xef\xbb\xbf", b"\xef\xbb\xbf" * 2]
    return _pick(rng, starts) + delimiter.join(cells) + _pick(rng, ends)


def _quote(rng, cell, delimiter):
    needs = b'"' in cell or delimiter in cell
    if (needs and rng.random() < 0.95) or rng.random() < 0.2:
        return b'"%s"' % cell.replace(b'"', b'""')
    return cell


def _pick(rng, pool):
    return pool[int(rng.integers(len(pool)))]
