"""Convert columns of pandas and polars frames to exact NumPy arrays or raise errors."""

import itertools
from typing import Any

import numpy as np

NO_ID = -1


def read_numbers(column: Any, name: str) -> np.ndarray:
    """Read a column of finite numbers.

    Args:
        column: A pandas or polars series of numbers or booleans.
        name: Name of the column, for the errors.

    Returns:
        float32 array `(N,)`.

    Raises:
        TypeError: If the column is not numeric.
        ValueError: If a value is missing, or not finite as a float32.
    """
    array = _to_array(column)
    if array.dtype == object:
        cells = [np.nan if _is_missing(cell) else cell for cell in array]
        if not all(isinstance(cell, int | float | np.number) for cell in cells):
            raise TypeError(
                f"The column {name!r} must be numeric. Received: {column.dtype}"
            )
        array = np.array(cells, np.float64)
    if array.dtype.kind not in "buif":
        raise TypeError(
            f"The column {name!r} must be numeric. Received: {column.dtype}"
        )
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        raise ValueError(
            f"The column {name!r} has a value that is missing or not finite as a "
            f"float32: {array[bad[0]]} in row {bad[0]} (counted from 0). Fill in the "
            "value or drop such rows first."
        )
    return numbers


def read_labels(column: Any, name: str) -> np.ndarray:
    """Read a column of labels: clicks, 0 or 1, or probabilities.

    Returns:
        float32 array `(N,)`.

    Raises:
        TypeError: If the column is not numeric.
        ValueError: If a value is missing or not from 0 to 1.
    """
    rule = "must contain labels: 0 or 1, or probabilities in between"
    return _within(read_numbers(column, name), name, rule, largest=1.0)


def read_weights(column: Any, name: str) -> np.ndarray:
    """Read a column of sample weights.

    Returns:
        float32 array `(N,)`.

    Raises:
        TypeError: If the column is not numeric.
        ValueError: If a value is missing, negative or not finite.
    """
    rule = "must contain weights, which are not negative"
    return _within(read_numbers(column, name), name, rule)


def _within(numbers, name, rule, largest=np.inf):
    wrong = np.flatnonzero((numbers < 0) | (numbers > largest))
    if len(wrong):
        raise ValueError(
            f"The column {name!r} {rule}. Received: {numbers[wrong[0]]:g} in row "
            f"{wrong[0]} (counted from 0)"
        )
    return numbers


def read_ids(
    column: Any, name: str, vocabulary_size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a column of ids.

    Args:
        column: A pandas or polars series of integers or of sequences of integers.
        name: Name of the feature, for the errors.
        vocabulary_size: Number of rows of its table.

    Returns:
        `(ids, lengths)`. If no cell is a sequence, int64 ids `(N,)`, -1 for a missing
        one, and `None`. Otherwise the concatenated ids of all bags as int64, without
        missing ones, and the lengths of the bags, int64 `(N,)`.

    Raises:
        TypeError: If the column does not contain integers.
        ValueError: If a number is not an integer, may be inexact in its float type, or
            is not an id of the table.
    """
    array = _to_array(column)
    lengths = None
    if array.dtype == object:
        array, lengths = _flatten(array, name)
    rows = np.arange(len(array)) if lengths is None else _row_of_each(lengths)
    ids = _to_integers(array, name, rows)
    bad = np.flatnonzero((ids < NO_ID) | (ids >= vocabulary_size))
    if len(bad):
        raise ValueError(
            f"The ids of the feature {name!r} must be in its table of "
            f"{vocabulary_size:,} rows. Received: {ids[bad[0]]} in row {rows[bad[0]]} "
            "(counted from 0)"
        )
    if lengths is not None:
        kept = ids != NO_ID
        lengths = np.bincount(rows[kept], minlength=len(lengths)).astype(np.int64)
        ids = ids[kept]
    return ids, lengths


def _to_array(column):
    """Return the exact values of a series as a NumPy array.

    It is an array of objects if its type cannot represent missing values.
    """
    if hasattr(column, "to_list") and type(column).__module__.startswith("polars"):
        if column.null_count() or column.dtype.is_nested():
            return _objects(column.to_list())
        return column.to_numpy()
    dtype = column.dtype
    if isinstance(dtype, np.dtype):
        return column.to_numpy()
    if not column.isna().any() and getattr(dtype, "kind", "O") in "buif":
        return column.to_numpy(dtype=getattr(dtype, "numpy_dtype", None))
    return _objects(column.tolist())


def _objects(cells):
    # Not `np.array`, which turns lists of equal length into a matrix.
    return np.fromiter(cells, object, count=len(cells))


def _is_missing(value):
    # NaN and NaT differ from themselves; comparing pandas.NA gives neither result.
    if value is None or type(value).__name__ == "NAType":
        return True
    return isinstance(value, float | np.floating) and value != value


def _is_sequence(cell):
    return isinstance(cell, list | tuple) or getattr(cell, "ndim", 0) == 1


def _flatten(cells, name):
    """Return all ids of cells that may be sequences, and their lengths or `None`."""
    if not any(map(_is_sequence, cells)):
        return cells, None
    bags = [
        cell if _is_sequence(cell) else [] if _is_missing(cell) else [cell]
        for cell in cells
    ]
    lengths = np.array([len(bag) for bag in bags], np.int64)
    return _objects(list(itertools.chain.from_iterable(bags))), lengths


def _row_of_each(lengths):
    return np.repeat(np.arange(len(lengths)), lengths)


def _to_integers(array, name, rows):
    if array.dtype == object:
        return _objects_to_integers(array, name, rows)
    if array.dtype.kind in "bi":
        return array.astype(np.int64)
    if array.dtype.kind == "u":
        # A number that does not fit in an int64 is in no table; keep it out of range.
        return np.minimum(array, np.array(2**63 - 1, np.uint64)).astype(np.int64)
    if array.dtype.kind != "f":
        raise TypeError(
            f"The feature {name!r} must contain integer ids. Received: {array.dtype}. "
            "Number its values first, with `pandas.factorize` or a `Vocabulary`."
        )
    missing = np.isnan(array)
    limit = 2.0 ** (np.finfo(array.dtype).nmant + 1)
    bad = ~missing & ((array != np.floor(array)) | (np.abs(array) >= limit))
    if bad.any():
        _refuse(array[bad][0], array.dtype, name, rows[bad][0])
    return np.where(missing, NO_ID, array).astype(np.int64)


def _objects_to_integers(cells, name, rows):
    ids = np.empty(len(cells), np.int64)
    for position, cell in enumerate(cells):
        if _is_missing(cell):
            ids[position] = NO_ID
        elif isinstance(cell, int | np.integer | np.bool_):
            ids[position] = max(-(2**63), min(int(cell), 2**63 - 1))
        elif isinstance(cell, float | np.floating):
            value = np.asarray(cell)[np.newaxis]
            ids[position] = _to_integers(value, name, rows[position : position + 1])[0]
        else:
            raise TypeError(
                f"The feature {name!r} must contain integer ids. Received: {cell!r} in "
                f"row {rows[position]} (counted from 0). Number its values first, with "
                "`pandas.factorize` or a `Vocabulary`."
            )
    return ids


def _refuse(value, dtype, name, row):
    raise ValueError(
        f"The feature {name!r} must contain integer ids that are exact in their type. "
        f"Received: {value!r} ({dtype}) in row {row} (counted from 0). Use pandas' "
        "Int64 for integers with missing values."
    )
