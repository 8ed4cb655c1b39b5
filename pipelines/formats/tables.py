"""Read the rows of a schema from Parquet files, as from lines with the same cells.

# n rows
"""

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.compression import read_start, to_arrow
from pipelines.formats.cells import ArrowCells, fault, plain_texts
from pipelines.formats.field_rules import CATEGORY_RULE, Block, read_rows
from pipelines.formats.layout import Layout, Rows, Wanted
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.schema.checks import Column

_MAGIC = b"PAR1"
BATCH_ROWS = 1 << 15
_MAX_OPEN_FILES = 64


def is_parquet(path: str) -> bool:
    """Return True if the first bytes of a file are those of a Parquet file."""
    return read_start(path, len(_MAGIC)) == _MAGIC


def count_rows(path: str) -> int:
    """Return the number of rows of a Parquet file, including bad ones.

    Raises:
        ValueError: If the file is damaged.
    """
    with Opened(path) as file:
        return file.metadata.num_rows


def find_layout(path: str, schema: Schema, wanted: Wanted) -> Layout:
    """Find the columns of a schema in a Parquet file.

    Raises:
        ValueError: If columns are missing, repeated or of a type that cannot be read,
            or the file is damaged.
    """
    with Opened(path) as file:
        types = file.schema_arrow
        layout = Layout.of_table(schema, path, types.names, wanted)
        check_types(path, types, layout, wanted.kept)
        return layout


def check_types(
    path: str, types: pa.Schema, layout: Layout, kept: Sequence[Column] = ()
) -> None:
    """Check that the types of columns can be read.

    Args:
        path: Name of the file, for the error.
        types: Types of the columns, by their names in the layout.
        layout: The columns to read.
        kept: Columns of which only the texts are needed.

    Raises:
        ValueError: If a type cannot be read; the message names the column.
    """
    kinds = _kinds(layout.schema)
    for column in kept:
        kinds[column] = [*kinds.get(column, []), ("text", False)]
    for column, place in layout.positions.items():
        for kind, is_bag in kinds.get(column, [("category", False)]):
            data_type = types.field(layout.names[place]).type
            rule = fault(data_type, kind, is_bag)
            if rule:
                raise UserError(
                    f"{path}: the column {column!r} {rule}. Received: {data_type}"
                )


def batches(path: str, layout: Layout, first_row: int = 0) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file, some at a time.

    Args:
        path: The file.
        layout: The columns to read; others are ignored.
        first_row: Row to start with: the end of a batch.

    Raises:
        ValueError: If the file is damaged.
    """
    wanted = [layout.names[place] for place in layout.positions.values()]
    with Opened(path) as file:
        row = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            row += size
            if row <= first_row:
                continue
            skipped = max(0, first_row - (row - size))
            for batch in file.iter_batches(BATCH_ROWS, [group], wanted):
                part = batch.slice(min(skipped, len(batch)))
                skipped -= len(batch) - len(part)
                if len(part):
                    yield part


class BatchReader:
    """Read Parquet files batch by batch, from any row, like `files.BlockReader`.

    Reading batches in order costs one sequential read.
    """

    def __init__(self) -> None:
        self._open_files: dict[tuple[str, int], Iterator[pa.RecordBatch]] = {}
        self._lock = threading.Lock()

    def read(self, path: str, layout: Layout, row: int) -> pa.RecordBatch | None:
        """Return the batch at row 0 or at the end of another batch, or `None`.

        Raises:
            ValueError: If the file is damaged.
        """
        with self._lock:
            rows = self._open_files.pop((path, row), None)
        rows = batches(path, layout, row) if rows is None else rows
        batch = next(rows, None)
        if batch is not None:
            with self._lock:
                self._open_files[path, row + len(batch)] = rows
                while len(self._open_files) > _MAX_OPEN_FILES:
                    self._open_files.pop(next(iter(self._open_files))).close()
        return batch


class Opened:
    """A Parquet file as a context manager that turns its errors into `ValueError`."""

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        try:
            self._file = pq.ParquetFile(to_arrow(self._path, buffer_bytes=0))
        except (OSError, pa.ArrowException) as error:
            self._fail(error)
        return self._file

    def __exit__(self, kind, error, traceback):
        self._file.close()
        if isinstance(error, OSError | pa.ArrowException):
            self._fail(error)

    def _fail(self, error):
        if isinstance(error, OSError) and error.errno is not None:
            raise error
        words = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{self._path}: damaged Parquet file ({words}).") from error


def _kinds(schema):
    """Return the kinds of cells that each column must have."""
    kinds = {schema.label.column: [("number", False)]}
    label = schema.label
    if not label.is_number:
        is_plain = {*label.positive, *(label.negative or ())} <= {"0", "1"}
        kinds[label.column] = [("integer" if is_plain else "category", False)]
    for feature in schema.dense:
        kind = "integer" if feature.integer else "number"
        kinds.setdefault(feature.column, []).append((kind, False))
    for feature in schema.sparse:
        kind = "category" if feature.buckets is None else "number"
        kinds.setdefault(feature.column, []).append((kind, feature.is_bag))
    others = {"weight": "number", "time": "time"}
    for name, kind in others.items():
        column = getattr(schema, name)
        if column is not None:
            kinds.setdefault(column, []).append((kind, False))
    return kinds


def read_batch(batch: pa.RecordBatch, layout: Layout, wanted: Wanted) -> Rows:
    """Read rows from a batch of a table, as `text.read_block` reads lines.

    Args:
        batch: Columns, as `batches` yields them.
        layout: The columns of the file.
        wanted: The columns to read in addition to the features.
    """
    block = TableBlock(batch, layout)
    rows, good = read_rows(block, layout, wanted, np.ones(len(batch), bool))
    bad = block.describe_bad(good, wanted.label)
    return rows._replace(num_lines=len(batch), bad=bad)


class TableBlock(Block):
    """The rows of a batch.

    Attributes:
        faults: Column and reason of each bad row.
    """

    def __init__(self, batch: pa.RecordBatch, layout: Layout):
        self.num_candidates = len(batch)
        self.faults: dict[int, tuple[Column, str]] = {}
        self._batch, self._layout = batch, layout
        self._cells: dict[Column, ArrowCells] = {}
        text = layout.schema.text
        self._delimiter = None if text.quoted else text.delimiter

    def _column(self, column):
        return self._batch.column(self._layout.names[self._layout.positions[column]])

    def cells(self, column):
        if column not in self._cells:
            cells = ArrowCells(self._column(column), self._delimiter)
            self._cells[column] = cells
        return self._cells[column]

    def plain_texts(self, column: Column) -> pa.LargeBinaryArray:
        """Return the cells of a column of any type as texts, null where missing."""
        return plain_texts(self._column(column))

    def describe_bad(self, good, labelled):
        """Return `(position, row, reason)` of each bad row."""
        return [
            (row, _show_row(self._batch, row), self.faults[row][1])
            for row in np.flatnonzero(~good).tolist()
        ]

    def note(self, column, valid, rule):
        if valid.all():
            return
        cells, is_category = self._column(column), rule.endswith(CATEGORY_RULE)
        name = rule.removesuffix(CATEGORY_RULE)
        for row in np.flatnonzero(~valid).tolist():
            if is_category:
                rule = name + self._cells[column].rules[row]
            reason = f"{rule}, found {cells[row].as_py()!r}"
            self.faults.setdefault(row, (column, reason))


def _show_row(batch, row):
    cells = [column[row].as_py() for column in batch.columns]
    texts = ["" if cell is None else _show_cell(cell) for cell in cells]
    return "\t".join(texts).encode("utf-8", "surrogateescape")


def _show_cell(cell):
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "surrogateescape")
    return str(cell)
