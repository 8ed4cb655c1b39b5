"""Cells of tables whose meaning a schema says, read from Parquet files."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines import Dense, Label, Quarantine, Schema, Sparse, Text
from pipelines.formats.scanning import scan


def rows_of(tmp_path, schema, **columns):
    path = str(tmp_path / "log.parquet")
    pq.write_table(pa.table(columns), path)
    quarantine = Quarantine(tmp_path / "bad.tsv", max_bad_share=1)
    (block,) = scan([path], quarantine, schema)
    return block.rows


LABELS = {
    "integers, several are clicks": (
        Label("y", ("4", "5"), None),
        [5, 3, 4],
        [1, 0, 1],
    ),
    "integers of other names": (Label("y", ("2",), ("1",)), [1, 2, 1], [0, 1, 0]),
    "floats": (Label("y", ("2",), ("1",)), [1.0, 2.0, 1.0], [0, 1, 0]),
    "negative ones": (Label("y", ("1",), ("-1",)), [-1, 1, -1], [0, 1, 0]),
    "booleans": (Label("y"), [True, False, True], [1, 0, 1]),
    "booleans by one name": (
        Label("y", ("False",), ("True",)),
        [True, False, True],
        [0, 1, 0],
    ),
}


@pytest.mark.parametrize("label, cells, expected", LABELS.values(), ids=LABELS.keys())
def test_labels_are_compared_as_numbers(tmp_path, label, cells, expected):
    rows = rows_of(tmp_path, Schema(label, sparse="c"), y=cells, c=["a", "b", "c"])
    assert rows.labels.tolist() == expected and not rows.bad


@pytest.mark.parametrize("kind", [pa.string_view(), pa.binary_view(), pa.binary(1)])
def test_views_and_bytes_of_one_size_are_texts(tmp_path, kind):
    cells = pa.array([b"1", None, b"0", b"1"], pa.binary())
    kind_of_times = kind if kind != pa.binary(1) else pa.binary()
    schema = Schema("y", sparse=["c"], time="t")
    rows = rows_of(
        tmp_path, schema, y=cells.cast(kind), c=cells.cast(kind),
        t=pa.array([b"5", b"6", b"7", None], pa.binary()).cast(kind_of_times),
    )  # fmt: skip
    assert [position for position, *_ in rows.bad] == [1, 3]
    assert rows.labels.tolist() == [1, 0] and rows.times.tolist() == [5, 7]


@pytest.mark.parametrize("labels", [["1", None, "0", "NULL"], [1, None, 0, None]])
def test_null_is_missing_whatever_texts_are(tmp_path, labels):
    """Also where an empty text is a value, or an empty bag."""
    schema = Schema(
        Label("y", ("1",), None),
        dense=["number", Dense("text", missing=7.0)],
        sparse=[Sparse("bag", separator="|"), Sparse("list", separator="|")],
        format=Text(missing=("NULL",)),
    )
    rows = rows_of(
        tmp_path,
        schema,
        y=labels,
        number=[None, 1.0, 2.0, 3.0],
        text=["NULL", "1", None, "3"],
        bag=[None, "a", "", "b"],
        list=[None, ["a"], [], ["b", "c"]],
    )
    assert [position for position, *_ in rows.bad] == [1, 3]  # without a label
    assert rows.labels.tolist() == [1, 0]
    for numbers, expected in zip(rows.numbers, [[np.nan, 2], [np.nan] * 2]):
        np.testing.assert_array_equal(numbers, expected)
    assert [v.lengths.tolist() for v in rows.values] == [[1, 0], [1, 0]]


def test_reasons_name_the_rule_of_the_cell(tmp_path):
    """Names of several words, and rules that differ from row to row."""
    bag = Sparse("my tags", separator="|", weight_separator=":")
    rows = rows_of(
        tmp_path,
        Schema("y", sparse=[bag]),
        y=[1, 1, 0, 1],
        **{"my tags": ["a:x", "a:1", "a\nb", "b:"]},
    )
    assert [(position, reason) for position, _, reason in rows.bad] == [
        (0, "my tags must have numbers as weights, found 'a:x'"),
        (2, "my tags must not contain ',' or a line end, found 'a\\nb'"),
        (3, "my tags must have numbers as weights, found 'b:'"),
    ]


def test_columns_by_position(tmp_path):
    schema = Schema(2, dense=Dense(0, name="x"), sparse=Sparse(3, name="c"))
    rows = rows_of(
        tmp_path, schema, a=[1.5, 2.5], other=[{"k": 1}] * 2, y=[1, 0], c=["u", "v"]
    )
    assert rows.numbers[0].tolist() == [1.5, 2.5] and rows.labels.tolist() == [1, 0]
    assert len(rows.values[0].keys) == 2 and not rows.bad
