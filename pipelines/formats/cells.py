"""Columns of tables, of any type with a plain meaning -> numbers and bytes.

A cell means what its text would mean in a line. `fault` names the types that have no
such text, before a row is read.

# n rows
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipelines.formats.fields import integers_of_texts

_MAX_EXACT = {16: 1 << 11, 32: 1 << 24, 64: 1 << 53}  # of floats, by their bits
_SPECIAL = rb"[\t\r\n]"
_SPECIAL_IN_LIST = rb"[\t\r\n,]"


def fault(data_type: pa.DataType, is_number: bool) -> str | None:
    """Say what a column must hold if its type cannot be read; `None` if it can.

    Args:
        data_type: Type of the column.
        is_number: Whether it is the label or an integer column, else a category.
    """
    data_type = _plain_type(data_type)
    if is_number:
        if _is_number(data_type) or _is_text(data_type) or pat.is_boolean(data_type):
            return None
        return (
            "must hold integers. Convert the column first, in pandas with "
            'astype("Int64")'
        )
    if _is_list(data_type):
        data_type = _plain_type(data_type.value_type)
    if _is_number(data_type) or _is_text(data_type) or pat.is_boolean(data_type):
        return None
    if pat.is_fixed_size_binary(data_type):
        return None
    return (
        "must hold strings, bytes, integers, booleans, or lists of them. Convert the "
        "column first, in pandas with astype(str)"
    )


def read_numbers(column: pa.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Read integers, whatever type holds them; text by the rules of lines.

    Args:
        column: Numbers, booleans, or text. Null, NaN and "" are missing.

    Returns:
        float64 `(n,)`, 0 where missing; bool `(n,)`, which are missing; bool `(n,)`,
        which are finite integers or missing.
    """
    column = _decode(column)
    if _is_text(column.type) and not pat.is_null(column.type):
        return integers_of_texts(column.cast(pa.large_binary()))
    if pat.is_null(column.type):
        column = column.cast(pa.float64())
    elif pat.is_boolean(column.type):
        column = column.cast(pa.uint8())
    elif pat.is_float16(column.type):
        column = column.cast(pa.float32())
    missing = column.is_null().to_numpy(zero_copy_only=False)
    numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    missing = missing | np.isnan(numbers)
    numbers = np.where(missing, 0.0, numbers)
    return numbers, missing, np.isfinite(numbers) & (numbers == np.floor(numbers))


def read_texts(column: pa.Array) -> tuple[pa.LargeBinaryArray, np.ndarray, str]:
    """Read the values of a category as the bytes that a line would hold.

    Args:
        column: Text, bytes or integers, null where missing; floats and decimals stand
            for integers, as pandas writes integers with gaps; booleans are "True" and
            "False", as pandas writes them to text. A list is a bag of its values.

    Returns:
        The texts; bool `(n,)`, which of them cannot be in a line; the rule for those.
    """
    column = _decode(column)
    if _is_list(column.type):
        return _read_lists(column)
    return _read_values(column, _SPECIAL, "must not hold a tab or a line end")


def _read_values(column, special, rule):
    if _is_text(column.type) or pat.is_fixed_size_binary(column.type):
        if pat.is_fixed_size_binary(column.type):
            column = column.cast(pa.binary())
        texts = column.cast(pa.large_binary())
        found = pc.match_substring_regex(texts, special).fill_null(False)
        return texts, found.to_numpy(zero_copy_only=False), rule
    bad = np.zeros(len(column), bool)
    if pat.is_floating(column.type):
        limit = _MAX_EXACT[column.type.bit_width]
        rule = f"must hold integers below 2^{limit.bit_length() - 1} if it has floats"
        numbers, missing, valid = read_numbers(column)
        bad = ~valid | (np.abs(numbers) >= limit)
        integers = np.where(bad, 0, numbers).astype(np.int64)
        column = pa.array(integers, mask=missing)
    elif pat.is_decimal(column.type) and column.type.scale > 0:
        rule = "must hold integers if it has decimals"
        precision, scale = column.type.precision, column.type.scale
        column = column.cast(pa.decimal256(precision, scale))  # small ones lack `trunc`
        whole = pc.trunc(column)
        bad = pc.not_equal(column, whole).fill_null(False)
        bad = bad.to_numpy(zero_copy_only=False)
        column = whole.cast(pa.decimal256(precision, 0))
    elif pat.is_boolean(column.type):
        column = pc.if_else(column, "True", "False")
    return column.cast(pa.string()).cast(pa.large_binary()), bad, rule


def _read_lists(column):
    values = _decode(pc.list_flatten(column))
    rows = pc.list_parent_indices(column).to_numpy()
    rule = "must not hold a tab, a line end or a comma within a list"
    texts, bad_values, rule = _read_values(values, _SPECIAL_IN_LIST, rule)
    bad = np.zeros(len(column), bool)
    bad[rows[bad_values]] = True
    counts = np.bincount(rows, minlength=len(column))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    pieces = texts.fill_null(b"").cast(pa.binary())
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pieces)
    return pc.binary_join(lists, b",").cast(pa.large_binary()), bad, rule


def _decode(column):
    """The column without the wrapping that says nothing of its values."""
    while True:
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        elif _extension(column) == "arrow.uuid":  # its bytes may be those of a tab
            texts = [uuid and str(uuid) for uuid in column.to_pylist()]
            column = pa.array(texts, pa.string())
        elif _extension(column) == "arrow.bool8":
            column = pc.not_equal(column.storage, 0)
        elif isinstance(column, pa.ExtensionArray):
            column = column.storage
        elif pat.is_dictionary(column.type):
            column = column.dictionary_decode()
        elif pat.is_run_end_encoded(column.type):
            column = pc.run_end_decode(column)
        else:
            return column


def _extension(column):
    """Name of the extension that a column's type is, or `None`."""
    return getattr(column.type, "extension_name", None)


def _plain_type(data_type):
    while True:
        if isinstance(data_type, pa.BaseExtensionType):
            data_type = data_type.storage_type
        elif pat.is_dictionary(data_type) or pat.is_run_end_encoded(data_type):
            data_type = data_type.value_type
        else:
            return data_type


def _is_number(data_type):
    kinds = (pat.is_integer, pat.is_floating, pat.is_decimal)
    return any(is_kind(data_type) for is_kind in kinds)


def _is_text(data_type):
    kinds = (
        *(pat.is_null, pat.is_string, pat.is_large_string, pat.is_string_view),
        *(pat.is_binary, pat.is_large_binary, pat.is_binary_view),
    )
    return any(is_kind(data_type) for is_kind in kinds)


def _is_list(data_type):
    kinds = (pat.is_list, pat.is_large_list, pat.is_fixed_size_list)
    return any(is_kind(data_type) for is_kind in kinds)
