"""The first rows of a Parquet file, as columns of strings or lists of strings."""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipelines.formats.cells import decode, is_list, is_number, is_text
from pipelines.formats.tables import Opened
from pipelines.runtime import UserError
from pipelines.schema.columns import Parquet
from pipelines.schema.first_rows import FirstRows

_BATCH_ROWS = 1 << 13
_MAX_CELLS = 1 << 23


def read_parquet(path: str, num_rows: int) -> FirstRows:
    """Read the first rows of a Parquet file.

    Columns become large binaries, null where missing, or lists of large binaries. A
    column whose type cannot be written as text stays as it is.
    """
    batches: list[pa.RecordBatch] = []
    with Opened(path) as file:
        schema = file.schema_arrow
        for name in schema.names:
            if schema.names.count(name) > 1:
                raise UserError(
                    f"{path}: has several columns named {name!r}. Give each column its "
                    "own name."
                )
        num_rows = min(num_rows, max(100, _MAX_CELLS // max(1, len(schema.names))))
        for batch in file.iter_batches(_BATCH_ROWS):
            batches.append(batch)
            if sum(map(len, batches)) >= num_rows:
                break
    return of_table(path, pa.Table.from_batches(batches, schema).slice(0, num_rows))


def of_table(path: str, table: pa.Table) -> FirstRows:
    """Return the rows of a table as `read_parquet` returns those of a file."""
    if not len(table):
        raise UserError(f"{path}: contains no rows.")
    columns = [_to_texts(column.combine_chunks()) for column in table.columns]
    return FirstRows(path, Parquet(), tuple(table.column_names), columns, [])


def read_parquet_names(path: str) -> list[str]:
    """Return the names of the columns of a Parquet file."""
    with Opened(path) as file:
        return list(file.schema_arrow.names)


def _to_texts(column: pa.Array) -> pa.Array:
    """Return a column as its cells would be written in a text file."""
    column = decode(column)
    kind = column.type
    if is_list(kind):
        lists = column.cast(pa.large_list(kind.value_type))
        values = _to_texts(lists.values)
        if not pat.is_large_binary(values.type):
            return column
        valid = lists.is_null() if lists.null_count else None
        return pa.LargeListArray.from_arrays(lists.offsets, values, mask=valid)
    if pat.is_boolean(kind):
        column = pc.if_else(column, "True", "False")
    elif pat.is_floating(kind):
        column = _floats_to_texts(column)
    elif is_number(kind) or pat.is_date(kind) or pat.is_timestamp(kind):
        column = column.cast(pa.large_string())
    elif not is_text(kind):
        return column
    return column.cast(pa.large_binary())


def _floats_to_texts(column: pa.Array) -> pa.Array:
    """Return floats as strings; NaN, which pandas uses for missing, becomes null."""
    column = column.cast(pa.float64())
    column = pc.if_else(pc.is_nan(column), None, column)
    return column.cast(pa.string())
