"""Frames of raw columns against the files that are written from them, bit for bit."""

import datetime
import math

import numpy as np
import pandas as pd
import polars as pl
import pytest
import tensorflow as tf

import pipelines
from pipelines import (
    Dense,
    Label,
    Parser,
    Quarantine,
    Schema,
    Sparse,
    Text,
    Vocabulary,
)
from pipelines.formats import frame_rows, tables
from pipelines.formats.layout import Wanted
from pipelines.formats.scanning import scan

NUM_ROWS, BATCH = 70, 16
LIBRARIES = pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])


def gaps(values, share=0.2, seed=0):
    drawn = np.random.default_rng(seed).random(len(values)) < share
    return [None if gap else v for gap, v in zip(drawn, values, strict=True)]


def columns_of(num_rows=NUM_ROWS):
    """Raw columns of Python values, of each kind that a schema reads."""
    rng = np.random.default_rng(7)
    integers = rng.integers(0, 9, num_rows).tolist()
    numbers = (rng.standard_normal(num_rows) * 10).tolist()
    words = ["red", "Grün", "", "a value of more than eight bytes", "x y"]
    texts = [words[i % len(words)] for i in integers]
    bags = [[f"t{v}" for v in rng.integers(0, 9, n)] for n in rng.integers(0, 4, 99)]
    bags = bags[:num_rows]
    begin = datetime.datetime(2026, 1, 1, 12)
    return {
        "click": [i % 2 for i in integers],
        "seen": [i % 3 == 0 for i in integers],
        "answer": [("no", "yes", "perhaps")[i % 3] for i in integers],
        "rating": [1 + i % 5 for i in integers],
        "share": [(i % 5) / 4 for i in integers],
        "weight": np.abs(numbers).tolist(),
        "time": [begin + datetime.timedelta(minutes=7 * i) for i in range(num_rows)],
        "number": numbers,
        "gappy": gaps(numbers),
        "count": gaps(integers, seed=1),
        "big": [2**53 + i for i in integers],
        "word": gaps(texts, seed=2),
        "flag": gaps([i % 2 == 0 for i in integers], seed=3),
        "tags": gaps(["|".join(bag) for bag in bags], seed=4),
        "list": gaps(bags, seed=5),
        "ids": gaps([[len(bag), 7] for bag in bags], seed=6),
        "weighed": [
            "|".join(f"{v}:{n}.5" if n else v for n, v in enumerate(bag))
            for bag in bags
        ],
        "nothing": [None] * num_rows,
    }


SCHEMAS = {
    "dense": Schema(
        "click",
        dense=[
            "number",
            Dense("gappy", "log1p"),
            Dense("gappy", "signed_log1p", missing=3, name="signed"),
            Dense("number", "standardize", name="standard"),
            Dense("gappy", "standardize", name="learned"),
            Dense("gappy", "clip", low=-1, high=2.5, name="clipped"),
            Dense("count", "log1p", integer=True),
            "flag",
            "nothing",
        ],
        sparse="word",
    ),
    "categories": Schema(
        "seen", sparse=["word", "count", "big", "flag", "click", "nothing"]
    ),
    "hashes": Schema(
        "click", sparse=[Sparse("word", hash_buckets=50), "count", Sparse("big")]
    ),
    "buckets": Schema(
        "click",
        dense="number",
        sparse=[
            Sparse("gappy", buckets="log2"),
            Sparse("number", name="width", buckets="width", width=2.5),
            Sparse("count", buckets="quantile", num_buckets=4),
        ],
    ),
    "bags": Schema(
        "click",
        sparse=[
            Sparse("tags", separator="|"),
            Sparse("list", separator="|", max_values=2, combiner="mean"),
            Sparse("ids", separator="|"),
            "word",
        ],
    ),
    "weights in bags": Schema(
        "click",
        sparse=[Sparse("weighed", separator="|", weight_separator=":"), "word"],
    ),
    "shared table": Schema(
        "click",
        sparse=[
            Sparse("tags", separator="|", table="tag"),
            "word",
            Sparse("list", separator="|", table="tag"),
        ],
    ),
    "soft label and weights": Schema(
        Label("share", soft=True), sparse="word", weight="weight"
    ),
    "threshold": Schema(Label("rating", threshold=4), sparse="word", time="time"),
    "texts as label": Schema(
        Label("answer", positive=("yes",), negative=None), sparse="word"
    ),
    "numbers as label": Schema(
        Label("rating", positive=("4", "5"), negative=None), sparse="word"
    ),
    "other missing": Schema(
        "click",
        dense="gappy",
        sparse=["word", Sparse("tags", separator="|")],
        format=Text(missing=("red",)),
    ),
    "group": Schema("click", sparse="word", time="time", group="count"),
}


def frame_of(library, schema=None, columns=None, **changed):
    columns = {**(columns or columns_of()), **changed}
    if schema is not None:
        columns = {name: columns[name] for name in schema.columns}
    return library.DataFrame(columns)


def write(frame, path):
    if hasattr(frame, "to_parquet"):
        frame.to_parquet(path)
    else:
        frame.write_parquet(path)
    return str(path)


def parser_of(source, schema):
    return Parser(Vocabulary.build(source, min_count=2, schema=schema))


def assert_equal(found, expected):
    found, expected = list(found), list(expected)
    assert len(found) == len(expected) > 0
    for batch, other in zip(found, expected, strict=True):
        tf.nest.assert_same_structure(batch, other)
        parts = zip(tf.nest.flatten(batch), tf.nest.flatten(other), strict=True)
        for part, other_part in parts:
            assert part.dtype == other_part.dtype and part.shape == other_part.shape
            pieces = [part], [other_part]
            if isinstance(part, tf.RaggedTensor):
                pieces = [
                    [p.flat_values, *p.nested_row_splits] for p in (part, other_part)
                ]
            for piece, other_piece in zip(*pieces, strict=True):
                assert piece.numpy().tobytes() == other_piece.numpy().tobytes()


@pytest.mark.breadth(4, 26)
@LIBRARIES
@pytest.mark.parametrize("name", SCHEMAS)
def test_batches_equal_those_of_the_file(tmp_path, library, name):
    schema = SCHEMAS[name]
    frame = frame_of(library)
    path = write(frame, tmp_path / "log.parquet")
    parser = parser_of(path, schema)
    found = pipelines.from_dataframe(frame, parser, batch_size=BATCH)
    expected = pipelines.read(path, parser, batch_size=BATCH)
    assert found.element_spec == expected.element_spec
    assert_equal(found, expected)
    features = frame_of(library, Schema("number", schema.dense, schema.sparse))
    found = pipelines.from_dataframe(features, parser, label=None, batch_size=BATCH)
    expected = pipelines.read(path, parser, batch_size=BATCH, labelled=False)
    assert found.element_spec == expected.element_spec
    assert_equal(found, expected)
    own = parser_of(frame, schema).vocabulary
    assert own.digest == parser.vocabulary.digest
    for table in schema.sparse_features:
        assert own.values(table) == parser.vocabulary.values(table)
        assert own.counts(table) == parser.vocabulary.counts(table)


@LIBRARIES
def test_batches_equal_those_of_text(tmp_path, library):
    """Of columns that look alike in both: all but integers with gaps, and lists."""
    schema = Schema(
        "click",
        dense=["number", Dense("gappy", "log1p"), Dense("count", integer=True)],
        sparse=["word", "big", "seen", Sparse("tags", separator="|")],
        weight="weight",
        format=Text(quoted=True),
    )
    columns = columns_of()
    columns["count"] = [7 if cell is None else cell for cell in columns["count"]]
    columns["word"][:2] = ["New York, NY", 'a "word"']
    frame, path = frame_of(library, schema, columns), tmp_path / "log.csv"
    if library is pd:
        frame.to_csv(path, index=False)
    else:
        seen = pl.col("seen").cast(pl.String).str.to_titlecase()  # else "true"
        frame.with_columns(seen).write_csv(path)
    parser = parser_of(str(path), schema)
    assert parser.vocabulary.digest == parser_of(frame, schema).vocabulary.digest
    assert_equal(
        pipelines.from_dataframe(frame, parser, batch_size=BATCH),
        pipelines.read(path, parser, batch_size=BATCH),
    )


SMALL = {
    "click": [True, False, True],
    "price": [0.5, None, 7.0],
    "age": [20, 30, None],
    "item": ["b", "a", "a"],
    "bag": ["x:2|y", None, "|z:0.5|"],
    "w": [1.0, 2.5, 0.0],
}
SMALL_SCHEMA = Schema(
    "click",
    dense=[Dense("price", "log1p", missing=1.0), Dense("age", "standardize")],
    sparse=[
        "item",
        Sparse("age", name="decade", buckets="width", width=10),
        Sparse("bag", separator="|", weight_separator=":"),
    ],
    weight="w",
)


@LIBRARIES
def test_batches_equal_what_a_person_works_out(library):
    frame = library.DataFrame(SMALL)
    vocabulary = Vocabulary.build(frame, schema=SMALL_SCHEMA, min_count=1)
    assert vocabulary.values("item") == [b"a", b"b"]
    assert vocabulary.counts("item") == [2, 1]
    assert vocabulary.values("decade") == [b"2", b"3"]
    assert vocabulary.values("bag") == [b"x", b"y", b"z"]
    assert vocabulary.learned == {"age": {"mean": 25.0, "deviation": 5.0}}
    assert (vocabulary.num_rows, vocabulary.num_bad_rows) == (3, 0)
    (batch,) = pipelines.from_dataframe(frame, Parser(vocabulary))
    features, label, weight = batch
    assert label.numpy().tolist() == [1, 0, 1]
    assert weight.numpy().tolist() == [1, 2.5, 0]
    expected = [[math.log(1.5), -1], [math.log(2), 1], [math.log(8), 0]]
    dense = features["dense_features"].numpy()
    assert dense.tolist() == np.array(expected, np.float32).tolist()
    assert features["sparse_features"].to_list() == [
        [[2], [1], [1, 2]],
        [[1], [2], [0]],
        [[1], [0], [3]],
    ]
    assert features["sparse_weights"].to_list() == [
        [[1], [1], [2, 1]],
        [[1], [1], [1]],
        [[1], [1], [0.5]],
    ]
    # A value that was not counted has no row of its own.
    new = library.DataFrame({"price": [0.0], "age": [20], "item": ["z"], "bag": ["z"]})
    (features,) = pipelines.from_dataframe(new, Parser(vocabulary), label=None)
    assert features["sparse_features"].to_list() == [[[0], [1], [3]]]


COLUMNS = {
    "category": (pd.Categorical(["b", None, "a"], ["q", "a", "b"]), ["b", "", "a"]),
    "category of integers": (pd.Categorical([3, None, 1]), ["3", "", "1"]),
    "object": (pd.Series(["b", np.nan, pd.NA], dtype=object), ["b", "", ""]),
    "string": (pd.array(["b", pd.NA, "a"], "string[python]"), ["b", "", "a"]),
    "arrow": (pd.array([1, None, 3], "int64[pyarrow]"), ["1", "", "3"]),
    "bytes": ([b"\xff", None, b"a"], [b"\xff", "", "a"]),
    "integers with gaps": ([1, None, 3], ["1", "", "3"]),
    "Int64": (pd.array([2**63 - 1, pd.NA, 3], "Int64"), [str(2**63 - 1), "", "3"]),
    "uint64": (np.array([2**64 - 1, 1, 3], np.uint64), [str(2**64 - 1), "1", "3"]),
    "float32": (np.array([1, np.nan, 3], np.float32), ["1", "", "3"]),
    "objects with gaps": (pd.Series([1, None, 3.0], dtype=object), ["1", "", "3"]),
    "boolean": (pd.array([True, pd.NA, False], "boolean"), ["True", "", "False"]),
    "nothing": ([None] * 3, ["", "", ""]),
    "polars categorical": (pl.Series(["b", None, "a"]).cast(pl.Categorical), "b,,a"),
    "polars enum": (pl.Series(["b", None], dtype=pl.Enum(["q", "b"])), ["b", ""]),
    "polars integers": (pl.Series([1, None, 3], dtype=pl.UInt8), ["1", "", "3"]),
    "polars objects": (pl.Series(["b", None], dtype=pl.Object), ["b", ""]),
}


@pytest.mark.parametrize("cells, texts", COLUMNS.values(), ids=COLUMNS.keys())
def test_categories_of_any_type(cells, texts):
    texts = texts.split(",") if isinstance(texts, str) else texts
    texts = [text if isinstance(text, bytes) else text.encode() for text in texts]
    library = pl if isinstance(cells, pl.Series) else pd
    frame = library.DataFrame({"y": [1] * len(texts), "c": cells})
    vocabulary = Vocabulary.build(frame, min_count=1, schema=Schema("y", sparse="c"))
    assert sorted(vocabulary.values("c")) == sorted(set(texts) - {b""})
    (batch,) = pipelines.from_dataframe(frame, Parser(vocabulary))
    ids = batch[0]["sparse_features"].flat_values.numpy()
    values = [b"", *vocabulary.values("c")]
    assert [values[i] for i in ids] == texts


TIMES = {
    "aware": pd.date_range("2026-01-01", periods=2, tz="Europe/Berlin"),
    "naive": pd.date_range("2026-01-01", periods=2),
    "dates": [datetime.date(2026, 1, 1)] * 2,
    "texts": ["2026-01-01", "2026-01-01T00:00:01+02:00"],
    "seconds": [1.5, 2],
}


@pytest.mark.parametrize("cells", TIMES.values(), ids=TIMES.keys())
def test_times_of_any_type(tmp_path, cells):
    schema = Schema("y", sparse="c", time="t")
    frame = pd.DataFrame({"y": [1, 0], "c": ["a", "b"], "t": cells})
    (rows,) = frame_rows.read_frame(frame, schema, Wanted())
    path = write(frame, tmp_path / "log.parquet")
    (block,) = scan([path], Quarantine(), schema)
    assert rows.times.tolist() == block.rows.times.tolist()
    assert np.isfinite(rows.times).all()


def test_columns_by_position_and_the_index_is_none():
    schema = Schema(2, dense=Dense(0, name="x"), sparse=Sparse(1, name="c"))
    frame = pd.DataFrame([[0.5, "a", 1], [1.5, "b", 0]], index=[9, 9])
    frame.index.name = "c"
    for names in ([0, 1, 2], ["x", "x2", "y"], [2, 1, 0]):
        frame.columns = names
        parser = parser_of(frame, schema)
        ((features, label),) = pipelines.from_dataframe(frame, parser)
        assert features["dense_features"].numpy().tolist() == [[0.5], [1.5]]
        assert label.numpy().tolist() == [1, 0]


def test_long_frames_are_read_part_by_part(monkeypatch, tmp_path):
    monkeypatch.setattr(frame_rows, "BATCH_ROWS", 9)
    monkeypatch.setattr(tables, "BATCH_ROWS", 9)
    schema = SCHEMAS["weights in bags"]
    frame = frame_of(pd)
    parts = []
    parser = Parser(Vocabulary.build(frame, 2, progress=parts.append, schema=schema))
    assert parts == [9, 18, 27, 36, 45, 54, 63, 70]
    path = write(frame, tmp_path / "log.parquet")
    assert_equal(
        pipelines.from_dataframe(frame, parser, batch_size=BATCH),
        pipelines.read(path, parser, batch_size=BATCH),
    )
    frame.loc[31, "click"] = 2
    with pytest.raises(ValueError, match="'click' has an invalid cell in row 31,"):
        pipelines.from_dataframe(frame, parser)


def test_one_row():
    frame = pd.DataFrame({"y": [1], "c": [None]})
    parser = parser_of(frame, Schema("y", sparse="c"))
    ((features, label),) = pipelines.from_dataframe(frame, parser)
    assert features["sparse_features"].to_list() == [[[0]]] and label.shape == (1,)


def test_shuffled_rows_stay_whole():
    frame = frame_of(pd, number=range(NUM_ROWS), weight=range(NUM_ROWS))
    schema = Schema("click", dense="number", sparse=["word", "count"], weight="weight")
    parser = parser_of(frame, schema)
    plain, shuffled = (
        next(iter(pipelines.from_dataframe(frame, parser, batch_size=99, **options)))
        for options in ({}, {"shuffle": True, "seed": 3})
    )
    order = shuffled[2].numpy().astype(int)
    assert sorted(order) == list(range(NUM_ROWS)) and order[0] + order[1] != 1
    ids = [
        batch[0]["sparse_features"].to_tensor().numpy() for batch in (plain, shuffled)
    ]
    np.testing.assert_array_equal(ids[0][order], ids[1])
    assert shuffled[0]["dense_features"].numpy()[:, 0].tolist() == order.tolist()


def test_an_expander_makes_bags_of_ids():
    schema = Schema("click", sparse=["word", "count"])
    frame = frame_of(pd)
    vocabulary = Vocabulary.build(frame, 1, schema=schema)
    expander = pipelines.MultiHot(vocabulary.sizes, hotness=(3, 2), seed=0)
    ((plain, _),) = pipelines.from_dataframe(frame, Parser(vocabulary), batch_size=99)
    parser = Parser(vocabulary, expander=expander)
    ((features, _),) = pipelines.from_dataframe(frame, parser, batch_size=99)
    expected = expander.expand(plain)["sparse_features"]
    assert features["sparse_features"].to_list() == expected.to_list()
    assert {len(bag) for bag, _ in expected.to_list()} == {3}


def test_batches_come_back_as_a_frame():
    frame = pd.DataFrame({"y": [1, 0, 1], "c": ["a", "b", "a"]})
    parser = parser_of(frame, Schema("y", sparse="c"))
    batches = pipelines.from_dataframe(frame, parser)
    back = pipelines.to_dataframe(batches, parser.spec())
    assert back.to_dict("list") == {"label": [1, 0, 1], "c": [1, 0, 1]}


def test_vocabularies_of_several_frames():
    schema, frame = SCHEMAS["bags"], frame_of(pd)
    whole = Vocabulary.build(frame, 2, schema=schema)
    parts = Vocabulary.build([frame[:20], frame[20:]], 2, schema=schema)
    assert parts.digest == whole.digest
    assert parts.num_rows == NUM_ROWS
    bad = frame[20:].assign(click=[3, *frame["click"][21:]])
    with pytest.raises(ValueError, match=r"^frame 1 \(counted from 0\): .* row 0,"):
        Vocabulary.build([frame[:20], bad], 2, schema=schema)
    with pytest.raises(ValueError, match="either paths or data frames. .*'day_0'"):
        Vocabulary.build([frame, "day_0"], schema=schema)
    with pytest.raises(ValueError, match="`quarantine` collects bad rows of files"):
        Vocabulary.build(frame, schema=schema, quarantine=Quarantine())
