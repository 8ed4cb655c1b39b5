"""Tables with the columns of Criteo's logs (Parquet) -> the same rows as their lines.

# n rows
"""

import threading
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.compression import read_start, to_arrow
from pipelines.formats.cells import fault, read_numbers, read_texts
from pipelines.formats.fields import values_of_texts
from pipelines.formats.line_rules import DENSE_FEATURES, SPARSE_FEATURES
from pipelines.formats.text import Rows
from pipelines.runtime import UserError

LABEL = "label"
_MAGIC = b"PAR1"
_BATCH_ROWS = 1 << 15
_MAX_OPEN_FILES = 64


def is_parquet(path: str) -> bool:
    """Return whether a file is a Parquet file, by its first bytes."""
    return read_start(path, len(_MAGIC)) == _MAGIC


def count_rows(path: str) -> int:
    """Number of rows of a Parquet file, good and bad.

    Raises:
        ValueError: If the file is damaged.
    """
    with _Open(path) as file:
        return file.metadata.num_rows


def batches(path: str, labelled: bool, first_row: int = 0) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a Parquet file, some at a time.

    Args:
        path: The file, with the columns `label`, I1 .. I13, C1 .. C26; others are left
            alone.
        labelled: Whether the label must be there. If not, it comes where it is.
        first_row: Row to begin with: the end of a batch.

    Raises:
        ValueError: If columns are missing, there twice, or of a type that cannot be
            read, or the file is damaged.
    """
    with _Open(path) as file:
        wanted = _find_columns(path, file.schema_arrow, labelled)
        row = 0
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            row += size
            if row <= first_row:
                continue
            skipped = max(0, first_row - (row - size))
            for batch in file.iter_batches(_BATCH_ROWS, [group], wanted):
                part = batch.slice(min(skipped, len(batch)))
                skipped -= len(batch) - len(part)
                if len(part):
                    yield part


class BatchReader:
    """Read Parquet files batch by batch from any row, like `files.BlockReader`.

    Batches that are read in order cost one sequential read.

    Args:
        labelled: As of `batches`.
    """

    def __init__(self, labelled: bool = True):
        self._labelled, self._open_files = labelled, {}
        self._lock = threading.Lock()

    def read(self, path: str, row: int) -> pa.RecordBatch | None:
        """Return the batch that begins at a row: 0 or the end of another; or `None`.

        Raises:
            ValueError: As of `batches`.
        """
        with self._lock:
            rows = self._open_files.pop((path, row), None)
        rows = batches(path, self._labelled, row) if rows is None else rows
        batch = next(rows, None)
        if batch is not None:
            with self._lock:
                self._open_files[path, row + len(batch)] = rows
                while len(self._open_files) > _MAX_OPEN_FILES:
                    self._open_files.pop(next(iter(self._open_files))).close()
        return batch


class _Open:
    """A Parquet file as a context, in which what is wrong with it is a `ValueError`."""

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


def _find_columns(path, schema, labelled):
    """The columns to read, if all are there and of types that can be read."""
    wanted = [*DENSE_FEATURES, *SPARSE_FEATURES]
    if labelled or LABEL in schema.names:
        wanted.insert(0, LABEL)
    missing = [name for name in wanted if name not in schema.names]
    if missing:
        raise UserError(
            f"{path}: lacks the columns {missing}. A Parquet file needs {LABEL!r}, "
            f"I1 .. I13 and C1 .. C26. It has {schema.names[:50]}."
        )
    repeated = [name for name in wanted if schema.names.count(name) > 1]
    if repeated:
        raise UserError(f"{path}: has several columns named {repeated}.")
    for name in wanted:
        data_type = schema.field(name).type
        rule = fault(data_type, is_number=name not in SPARSE_FEATURES)
        if rule:
            raise UserError(
                f"{path}: the column {name!r} {rule}. Received: {data_type}"
            )
    return wanted


def read_batch(batch: pa.RecordBatch, labelled: bool = True) -> Rows:
    """Take rows of a table as `columns.read_block` takes lines.

    Args:
        batch: Columns as of `batches`: the label 0 or 1, integers of any type of
            number (null where missing) or text, categories as of `cells.read_texts`.
        labelled: Whether the label must be there.
    """
    num_rows = len(batch)
    reasons = np.full(num_rows, None, object)
    labels = np.zeros(num_rows, np.uint8)
    if labelled:
        numbers, missing, _ = read_numbers(batch.column(LABEL))
        bad = missing | ~np.isin(numbers, (0, 1))
        _note(reasons, bad, "the label must be 0 or 1", batch.column(LABEL))
        labels = np.where(bad, 0, numbers).astype(np.uint8)
    integers, gaps = [], []
    for name in DENSE_FEATURES:
        numbers, missing, valid = read_numbers(batch.column(name))
        rule = f"{name} must be an integer or empty"
        _note(reasons, ~valid, rule, batch.column(name))
        integers.append(numbers)
        gaps.append(missing)
    texts = []
    for name in SPARSE_FEATURES:
        column, bad, rule = read_texts(batch.column(name))
        _note(reasons, bad, f"{name} {rule}", batch.column(name))
        texts.append(column)
    good = np.array([reason is None for reason in reasons], bool)
    found = []
    if not good.all():
        for row in np.flatnonzero(~good).tolist():
            found.append((row, _show_row(batch, row), reasons[row]))
        kept = pa.array(good)
        labels = labels[good]
        integers = [numbers[good] for numbers in integers]
        gaps = [missing[good] for missing in gaps]
        texts = [column.filter(kept) for column in texts]
    values = [values_of_texts(column) for column in texts]
    return Rows(labels, integers, gaps, values, num_rows, found)


def to_lines(batch: pa.RecordBatch) -> bytes:
    """The rows of a table as the lines that mean the same; a bad row as a bad line.

    A row without a label is a line of 39 columns.
    """
    columns = [_write_numbers(batch.column(name)) for name in DENSE_FEATURES]
    for name in SPARSE_FEATURES:
        texts, bad, _ = read_texts(batch.column(name))
        cells = [cell or b"" for cell in texts.to_pylist()]
        for row in np.flatnonzero(bad).tolist():
            cells[row] = b"\r%s\r" % _escape(cells[row])
        columns.append(cells)
    if LABEL in batch.schema.names:
        labels = _write_numbers(batch.column(LABEL))
        starts = [label and label + b"\t" for label in labels]
    else:
        starts = [b""] * len(batch)
    rows = zip(starts, zip(*columns, strict=True), strict=True)
    return b"".join(b"%s%s\n" % (start, b"\t".join(row)) for start, row in rows)


def _write_numbers(column):
    """The fields of a column of integers; what is none, as it is."""
    numbers, missing, valid = read_numbers(column)
    texts = [b"%d" % int(number) for number in np.where(valid, numbers, 0)]
    for row in np.flatnonzero(missing).tolist():
        texts[row] = b""
    for row in np.flatnonzero(~valid).tolist():
        texts[row] = _escape(_show_cell(column[row].as_py()).encode())
    return texts


def _escape(cell):
    """A bad cell as a field that spoils its own line and no other."""
    return cell.replace(b"\t", b"\r").replace(b"\n", b"\r")


def _show_row(batch, row):
    cells = [column[row].as_py() for column in batch.columns]
    texts = ["" if cell is None else _show_cell(cell) for cell in cells]
    return "\t".join(texts).encode("utf-8", "surrogateescape")


def _show_cell(cell):
    if isinstance(cell, bytes):
        return cell.decode("utf-8", "surrogateescape")
    return str(cell)


def _note(reasons, bad, rule, column):
    for row in np.flatnonzero(bad).tolist():
        if reasons[row] is None:
            reasons[row] = f"{rule}, found {column[row].as_py()!r}"
