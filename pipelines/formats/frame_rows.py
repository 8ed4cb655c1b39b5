"""Read the rows of a schema from data frames of raw columns, as from Parquet files.

A frame is read like the Parquet file written from it.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.formats.field_rules import read_rows
from pipelines.formats.layout import Layout, Rows, Wanted
from pipelines.formats.tables import BATCH_ROWS, TableBlock, check_types
from pipelines.runtime import UserError
from pipelines.schema import Schema

NAME = "the frame"


def is_frame(value: Any) -> bool:
    """Return whether a value is a pandas or polars `DataFrame`.

    Example:

    >>> import pandas
    >>> from pipelines.formats import frame_rows
    >>> frame_rows.is_frame(pandas.DataFrame()), frame_rows.is_frame(["day_0"])
    (True, False)
    """
    return any(
        kind.__name__ == "DataFrame" and _library(kind) in ("pandas", "polars")
        for kind in type(value).__mro__
    )


def frames_of(value: Any) -> list[Any] | None:
    """Return a frame, or a sequence of frames, as a list.

    Args:
        value: Any value.

    Returns:
        The frames; `None` if the value contains none.

    Raises:
        ValueError: If frames are mixed with other values.
    """
    if is_frame(value):
        return [value]
    if not isinstance(value, list | tuple) or not any(map(is_frame, value)):
        return None
    for other in value:
        if not is_frame(other):
            raise UserError(
                "Pass either paths or data frames. Received a frame together with "
                f"{str(other)[:100]!r}"
            )
    return list(value)


def read_frame(
    frame: Any, schema: Schema, wanted: Wanted, name: str = NAME
) -> Iterator[Rows]:
    """Yield the rows of a frame in batches; a bad row is an error.

    Args:
        frame: A pandas or polars `DataFrame`.
        schema: The columns, by name or position.
        wanted: The columns to read in addition to the features.
        name: Name of the frame, for errors.

    Raises:
        ValueError: If the frame has no rows, a column is missing, occurs twice or has
            a type that cannot be read, or a cell is invalid. The message names the
            column, and for a cell the row, counted from 0, and the rule.
    """
    if not len(frame):
        raise UserError(f"{name} has no rows.")
    # Names of Parquet columns are strings, so the frame's are converted.
    names = [str(column) for column in frame.columns]
    _check_index(frame, names, wanted.columns(schema), name)
    layout = Layout.of_table(schema, name, names, wanted)
    places = sorted(set(layout.positions.values()))
    table = _to_table(frame, names, places, name)
    check_types(name, table.schema, layout)
    for first in range(0, len(table), BATCH_ROWS):
        part = table.slice(first, BATCH_ROWS).combine_chunks()
        (batch,) = part.to_batches()
        block = TableBlock(batch, layout)
        every = np.ones(len(batch), bool)
        rows, good = read_rows(block, layout, wanted, every)
        if not good.all():
            row = int(np.argmin(good))
            _refuse(name, first + row, *block.faults[row])
        yield rows


def to_table(frame: Any, num_rows: int, name: str = NAME) -> pa.Table:
    """Return the first rows of a frame, with all of its columns.

    Raises:
        ValueError: If two columns have one name or a column mixes types.
    """
    names = [str(column) for column in frame.columns]
    return _to_table(frame.head(num_rows), names, range(len(names)), name)


def _check_index(frame, names, asked, name):
    index = getattr(frame, "index", None)
    hidden = [own for own in getattr(index, "names", []) if own in asked]
    hidden = [own for own in hidden if isinstance(own, str) and own not in names]
    if hidden:
        raise UserError(
            f"{name}: has {hidden} in its index, which is not read. Turn it into a "
            "column: frame.reset_index()."
        )


def _to_table(frame, names, places, name):
    """Return the columns at some places as a table."""
    chosen = [names[place] for place in places]
    repeated = sorted({column for column in chosen if chosen.count(column) > 1})
    if repeated:
        raise UserError(f"{name}: has several columns named {repeated}.")
    return pa.table(
        {
            names[place]: _to_arrow(_column(frame, place), names[place], name)
            for place in places
        }
    )


def _column(frame, place):
    is_polars = hasattr(frame, "to_series")
    return frame.to_series(place) if is_polars else frame.iloc[:, place]


def _to_arrow(series, column, name):
    try:
        return _convert(series)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        row, words = _first_fault(series, error)
    raise UserError(
        f"{name}: the column {column!r} must contain values of one type, as in a "
        f"Parquet file. Received in row {row}, counted from 0: {_cell(series, row)!r} "
        f"({words}). Convert the column first, in pandas with "
        'astype("string").'
    )


def _convert(series):
    if _library(type(series)) == "polars":
        if str(series.dtype) == "Object":
            return pa.array(series.to_list(), from_pandas=True)
        return series.to_arrow()
    return pa.array(series, from_pandas=True)


def _first_fault(series, error):
    """Return the first row that cannot be converted, and the reason."""
    good, bad = 0, len(series)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            _convert(series[:middle])
            good = middle
        except (pa.ArrowException, OverflowError, TypeError, ValueError) as reason:
            bad, error = middle, reason
    return bad - 1, str(error).rstrip(".")


def _cell(series, row):
    return series[row] if _library(type(series)) == "polars" else series.iloc[row]


def _refuse(name, row, column, reason):
    advice = ""
    if "or a line end" in reason:
        advice = " To allow it, set `format=pipelines.Text(quoted=True)` in the schema."
    raise UserError(
        f"{name}: the column {column!r} has an invalid cell in row {row}, counted from "
        f"0: {reason}.{advice}"
    )


def _library(kind):
    return kind.__module__.partition(".")[0]
