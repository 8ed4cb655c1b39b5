"""Frames that do not fit their schema: each error names the column and the rule."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

import pipelines
from pipelines import Dense, Parser, Schema, Sparse, Vocabulary

LIBRARIES = pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])
BAD_SCHEMA = Schema(
    "y",
    dense=["x", Dense("n", integer=True)],
    sparse=["c", Sparse("b", separator="|", weight_separator=":")],
    weight="w",
    time="t",
)
GOOD = {"y": [1, 0], "x": [1.5, None], "n": [1, 2], "c": ["u", "v"], "b": ["p", "q:2"]}
GOOD |= {"w": [1, 2], "t": [0, 1]}
BAD = {
    "label": (
        {"y": [1, 2]},
        "'y' has an invalid cell in row 1.*the label must be 0, 1, .*2",
    ),
    "no label": (
        {"y": [1, None]},
        "'y' has an invalid cell in row 1.*the label must be",
    ),
    "text": (
        {"x": ["1", "one"]},
        "'x' has an invalid cell in row 1.*x must be a number.*'one'",
    ),
    "infinite": (
        {"x": [1, np.inf]},
        "'x' has an invalid cell in row 1.*x must be a number",
    ),
    "fraction": (
        {"n": [0.5, 1]},
        "'n' has an invalid cell in row 0.*n must be an integer",
    ),
    "category": (
        {"c": [1.0, 2.5]},
        "'c' has an invalid cell in row 1.*c must contain integers",
    ),
    "delimiter": (
        {"c": ["u", "a, b"]},
        "'c' has an invalid cell in row 1.*Text.quoted=True.",
    ),
    "line end": ({"c": ["u", "a\nb"]}, "'c' has an invalid cell in row 1.*a line end"),
    "bag": (
        {"b": ["p:x", "q"]},
        "'b' has an invalid cell in row 0.*numbers as weights",
    ),
    "separator": (
        {"b": [["p|q"], []]},
        "'b' has an invalid cell in row 0.*not contain its separ",
    ),
    "weight": (
        {"w": [-1, 1]},
        "'w' has an invalid cell in row 0.*w must be a weight.*-1",
    ),
    "time": ({"t": ["2026-01-01", "1.5."]}, "'t' has an invalid cell in row 1.*a time"),
    "lists": ({"c": [["a"], ["b"]]}, "'c' contains lists: give the feature a `separ"),
    "structs": ({"c": [{"a": 1}] * 2}, "'c' must contain strings, bytes, integers"),
    "mixed": ({"c": [1, "a"]}, "'c' must contain .* of one type. .* row 1, .* 'a' "),
    "mixed list": ({"b": [["a"], [1]]}, "'b' must contain .* of one type. .* row 1, "),
    "large": ({"c": [1, 2**70]}, "'c' must contain .* row 1, .*: 11805916"),
    "complex": ({"x": [1j, 2j]}, "'x' must contain values of one type"),
    "dates": ({"x": pd.date_range("2026", periods=2)}, "'x' must contain numbers"),
}


@pytest.mark.parametrize("changed, match", BAD.values(), ids=BAD.keys())
def test_bad_cells_are_named(changed, match):
    parser = Parser(Vocabulary.build(pd.DataFrame(GOOD), 1, schema=BAD_SCHEMA))
    frame = pd.DataFrame({**GOOD, **changed})
    with pytest.raises(ValueError, match=match):
        pipelines.from_dataframe(frame, parser)
    with pytest.raises(ValueError, match=match):
        Vocabulary.build(frame, schema=BAD_SCHEMA)


@LIBRARIES
def test_frames_without_the_columns_or_rows_are_refused(library):
    good = library.DataFrame(GOOD)
    parser = Parser(Vocabulary.build(good, 1, schema=BAD_SCHEMA))
    with pytest.raises(
        ValueError, match=r"lacks the columns \['x', 'w'\]. It has \['y"
    ):
        pipelines.from_dataframe(good[["y", "n", "c", "b", "t"]], parser)
    with pytest.raises(ValueError, match="the frame has no row"):
        pipelines.from_dataframe(good[:0], parser)
    pipelines.from_dataframe(good[["x", "n", "c", "b"]], parser, label=None)
    with pytest.raises(TypeError, match="must be a pandas or polars DataFrame"):
        pipelines.from_dataframe(GOOD, parser)


def test_names_that_come_twice_and_the_index_are_refused():
    good = pd.DataFrame(GOOD)
    parser = Parser(Vocabulary.build(good, 1, schema=BAD_SCHEMA))
    with pytest.raises(ValueError, match=r"several columns named \['c'\]"):
        pipelines.from_dataframe(pd.concat([good, good[["c"]]], axis=1), parser)
    with pytest.raises(ValueError, match=r"has \['c'\] in its index"):
        pipelines.from_dataframe(good.set_index("c"), parser)
    by_place = Schema(0, sparse=[Sparse(1, name="a"), Sparse(2, name="b")])
    twice = pd.DataFrame([[1, "u", "v"]], columns=["y", "c", "c"])
    with pytest.raises(ValueError, match=r"several columns named \['c'\]"):
        Vocabulary.build(twice, schema=by_place)


@pytest.mark.parametrize(
    "options, match",
    [
        (
            {"label": "c"},
            "`label` must be that of its schema, 'y'. Received: label='c'",
        ),
        (
            {"weight": "x"},
            "`weight` must be that of its schema, 'w'. Received: weight='x'",
        ),
        ({"label": None, "weight": "w"}, "`weight` needs a `label`"),
        ({"batch_size": 0}, "`batch_size` must be a positive integer"),
    ],
)
def test_the_schema_names_label_and_weight(options, match):
    frame = pd.DataFrame(GOOD)
    parser = Parser(Vocabulary.build(frame, 1, schema=BAD_SCHEMA))
    with pytest.raises(ValueError, match=match):
        pipelines.from_dataframe(frame, parser, **options)
    ((_, label, weight),) = pipelines.from_dataframe(frame, parser, "y", weight="w")
    assert (label.numpy().tolist(), weight.numpy().tolist()) == ([1, 0], [1, 2])
