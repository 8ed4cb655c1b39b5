"""Tables with the columns of Criteo's logs (Parquet) -> the same rows as their lines.

# n rows
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.criteo.columns import Rows
from pipelines.criteo.fields import values_of_texts
from pipelines.criteo.format import DENSE_FEATURES, SPARSE_FEATURES

LABEL = "label"
_MAGIC = b"PAR1"
_BATCH_ROWS = 1 << 15


def is_parquet(path: str) -> bool:
    """Whether a file is a Parquet file, by its first bytes."""
    with open(path, "rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def batches(path: str, labelled: bool, first_row: int = 0) -> Iterator[pa.RecordBatch]:
    """Yields the rows of a Parquet file, some at a time.

    Args:
        path: The file, with the columns `label`, I1 .. I13, C1 .. C26; others are left
            alone.
        labelled: Whether the label must be there.
        first_row: Row to begin with.

    Raises:
        ValueError: If columns are missing or the file is damaged.
    """
    wanted = [*([LABEL] if labelled else []), *DENSE_FEATURES, *SPARSE_FEATURES]
    try:
        with pq.ParquetFile(path) as file:
            missing = [name for name in wanted if name not in file.schema_arrow.names]
            if missing:
                raise ValueError(
                    f"{path}: lacks the columns {missing}. A Parquet file needs "
                    f"{LABEL!r}, I1 .. I13 and C1 .. C26."
                )
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
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: damaged Parquet file ({error}).") from error


def read_batch(batch: pa.RecordBatch, labelled: bool = True) -> Rows:
    """Takes rows of a table as `columns.read_block` takes lines.

    Args:
        batch: Columns as of `batches`: the label 0 or 1, integers of any type of
            number (null where missing), categories of strings, binaries or integers.
        labelled: Whether the label must be there.
    """
    num_rows = len(batch)
    reasons = np.full(num_rows, None, object)
    labels = np.zeros(num_rows, np.uint8)
    if labelled:
        numbers, missing = _read_numbers(batch.column(LABEL))
        bad = missing | ~np.isin(numbers, (0, 1))
        _note(reasons, bad, "the label must be 0 or 1", batch.column(LABEL))
        labels = np.where(bad, 0, numbers).astype(np.uint8)
    integers, gaps = [], []
    for name in DENSE_FEATURES:
        numbers, missing = _read_numbers(batch.column(name))
        bad = (numbers != np.floor(numbers)) | ~np.isfinite(numbers)
        _note(reasons, bad, f"{name} must be an integer or empty", batch.column(name))
        integers.append(numbers)
        gaps.append(missing)
    texts = [_as_texts(batch.column(name)) for name in SPARSE_FEATURES]
    for name, column in zip(SPARSE_FEATURES, texts, strict=True):
        odd = pc.match_substring_regex(column, r"[\t\r\n]")
        bad = odd.fill_null(False).to_numpy(zero_copy_only=False)
        _note(reasons, bad, f"{name} holds a tab or a line end", column)
    good = np.array([reason is None for reason in reasons], bool)
    found = []
    if not good.all():
        for row in np.flatnonzero(~good).tolist():
            cells = batch.slice(row, 1).to_pylist()[0].values()
            text = "\t".join("" if cell is None else str(cell) for cell in cells)
            found.append((row, text.encode(), reasons[row]))
        kept = pa.array(good)
        labels = labels[good]
        integers = [numbers[good] for numbers in integers]
        gaps = [missing[good] for missing in gaps]
        texts = [column.filter(kept) for column in texts]
    values = [values_of_texts(column) for column in texts]
    return Rows(labels, integers, gaps, values, num_rows, found)


def _read_numbers(column):
    """float64, 0 where there is none, and where there is none."""
    missing = column.is_null().to_numpy(zero_copy_only=False)
    numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    missing = missing | np.isnan(numbers)
    return np.where(missing, 0.0, numbers), missing


def _as_texts(column):
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_integer(column.type):
        column = column.cast(pa.string())
    return column.cast(pa.large_binary())


def _note(reasons, bad, rule, column):
    for row in np.flatnonzero(bad).tolist():
        if reasons[row] is None:
            reasons[row] = f"{rule}, found {column[row].as_py()!r}"
