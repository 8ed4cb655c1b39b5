"""Read columns of tables, of any type that has a text form, as numbers and bytes.

A cell means what its text would mean in a line. `fault` reports types without a text
form before any row is read.

# n rows
"""

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

from pipelines.formats.field_rules import Cells, TextCells
from pipelines.formats.fields import open_texts
from pipelines.formats.line_rules import LARGEST, NUMBER, SMALLEST, read_number

_MAX_EXACT = {16: 1 << 11, 32: 1 << 24, 64: 1 << 53}  # of floats, by their bits
_BOOLEANS = {b"True": 1.0, b"False": 0.0}
_NULL = b"\n"  # no valid cell contains it
_KINDS = {"integer": "integers", "number": "numbers", "time": "times or numbers"}


def fault(data_type: pa.DataType, kind: str, is_bag: bool = False) -> str | None:
    """Return the rule that a column's type breaks; `None` if it can be read.

    Args:
        data_type: Type of the column.
        kind: `"integer"`, `"number"`, `"time"`, `"category"`, or `"text"` for any type
            whose cells are single values.
        is_bag: Whether a category may have several values in a cell.
    """
    data_type = _plain_type(data_type)
    if kind == "text":
        is_nested = pat.is_nested(data_type)
        return "contains several values in a cell" if is_nested else None
    if kind == "time" and (pat.is_timestamp(data_type) or pat.is_date(data_type)):
        return None
    if kind == "category" and is_list(data_type):
        if not is_bag:
            return (
                "contains lists: give the feature a `separator` that occurs in none of "
                "its values"
            )
        data_type = _plain_type(data_type.value_type)
    if is_number(data_type) or is_text(data_type) or pat.is_boolean(data_type):
        return None
    if kind != "category":
        advice = 'astype("Int64")' if kind == "integer" else 'astype("float64")'
        return (
            f"must contain {_KINDS[kind]}. Convert the column first, in pandas with "
            f"{advice}"
        )
    if pat.is_fixed_size_binary(data_type):
        return None
    return (
        "must contain strings, bytes, integers, booleans, or lists of them. Convert "
        "the column first, in pandas with astype(str)"
    )


class ArrowCells(Cells):
    """The cells of a column of a table.

    Args:
        column: The column.
        delimiter: The delimiter of unquoted lines, which no value may contain; `None`
            if lines are quoted.

    Attributes:
        rules: For each row whose cell `values` finds invalid, the rule that it breaks.
    """

    def __init__(self, column: pa.Array, delimiter: str | None):
        self._column, self._delimiter = decode(column), delimiter
        self.rules: dict[int, str] = {}

    def pick(self, kept):
        if kept is None:
            return self
        return ArrowCells(self._column.take(pa.array(kept)), self._delimiter)

    def may_be_bad(self, bags):
        return True

    def numbers(self, missing, integer=False):
        column = self._column
        if is_text(column.type) and not pat.is_null(column.type):
            texts, missing = _as_text(column, missing)
            return texts.numbers(missing, integer)
        if pat.is_null(column.type):
            column = column.cast(pa.float64())
        elif pat.is_boolean(column.type):
            column = column.cast(pa.uint8())
        elif pat.is_float16(column.type):
            column = column.cast(pa.float32())
        gaps = column.is_null().to_numpy(zero_copy_only=False)
        numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        gaps = gaps | np.isnan(numbers) | self._are_marks(missing)
        valid = np.isfinite(numbers)
        if integer:
            valid &= numbers == np.floor(numbers)
        else:
            valid &= np.abs(numbers) <= LARGEST
            numbers = np.where(np.abs(numbers) < SMALLEST, 0.0, numbers)
        valid |= gaps
        return np.where(gaps | ~valid, np.nan, numbers), valid

    def _are_marks(self, missing):
        """Return which numbers are marks of missing values, such as -1."""
        marks = [mark for mark in missing if re.fullmatch(NUMBER.encode(), mark)]
        if not marks:
            return np.zeros(len(self._column), bool)
        texts = self.raw(True).cast(pa.binary())
        found = pc.is_in(texts, pa.array(marks, pa.binary()))
        return found.to_numpy(zero_copy_only=False)

    def values(self, missing, bags):
        column, bad, rule = self._read(None if bags is None else bags.separator)
        texts, missing = _as_text(column, missing)
        values, valid = texts.values(missing, bags)
        for row in np.flatnonzero(bad | ~valid).tolist():
            self.rules[row] = rule if bad[row] else "must have numbers as weights"
        return values, valid & ~bad

    def texts(self, separator: bytes | None = None):
        """Return the values as the bytes that a line would contain.

        Strings, bytes and integers are unchanged, null where missing. Floats and
        decimals stand for integers, since pandas keeps integers with gaps as floats.
        Booleans are "True" and "False", as pandas writes them. A list is a bag.

        Args:
            separator: Text between the values of a list.
        """
        return self._read(separator)[0]

    def _read(self, separator):
        """Return the texts, which of them no line can hold, and the rule for those."""
        if is_list(self._column.type):
            return _read_lists(self._column, self._delimiter, separator)
        return _read_values(self._column, self._delimiter)

    def raw(self, is_number, separator=None):
        column = self._column
        if pat.is_null(column.type):
            return column.cast(pa.large_binary())
        if is_text(column.type) or not is_number:
            return self.texts(separator)
        if pat.is_integer(column.type):
            return column.cast(pa.string()).cast(pa.large_binary())
        numbers, _ = self.numbers(())
        texts = pa.array(numbers, mask=np.isnan(numbers)).cast(pa.string())
        return texts.cast(pa.large_binary())

    def are_missing(self, missing):
        column = self._column
        if is_text(column.type) and not pat.is_null(column.type):
            texts, missing = _as_text(column, missing)
            return texts.are_missing(missing)
        numbers, valid = self.numbers(())
        return np.isnan(numbers) & valid

    def is_one_of(self, texts):
        column = self._column
        if is_text(column.type) and not pat.is_null(column.type):
            return _as_text(column, (b"",))[0].is_one_of(texts)
        numbers, valid = self.numbers(())
        found = (
            np.isnan(numbers) & valid if b"" in texts else np.zeros(len(valid), bool)
        )
        known = [read_number(text) for text in texts]
        if pat.is_boolean(column.type):
            known += [_BOOLEANS.get(text) for text in texts]
        for number in {number for number in known if number is not None}:
            found |= numbers == number
        return found

    def times(self, missing):
        column = self._column
        if not pat.is_timestamp(column.type) and not pat.is_date(column.type):
            return super().times(missing)
        micros = column.cast(pa.timestamp("us"), safe=False).cast(pa.int64())
        valid = micros.is_valid().to_numpy(zero_copy_only=False)
        seconds = micros.fill_null(0).to_numpy() / 1e6
        return np.where(valid, seconds, np.nan), valid


def plain_texts(column: pa.Array) -> pa.LargeBinaryArray:
    """Return the cells of a column of single values as texts, null where missing."""
    column = decode(column)
    if pat.is_boolean(column.type):
        column = pc.if_else(column, "True", "False")
    if not is_text(column.type):
        column = column.cast(pa.string())
    return column.cast(pa.large_binary())


def _as_text(texts, missing):
    """Return the cells of texts and the marks of missing ones; null is missing, too."""
    if texts.null_count and b"" not in missing:
        texts = pc.fill_null(texts.cast(pa.large_binary()), _NULL)
        missing = (*missing, _NULL)
    return TextCells(*open_texts(texts)), missing


def _read_values(column, delimiter):
    special, rule = rb"[\r\n]", "must not contain a line end"
    if delimiter is not None:
        special = rb"[\r\n" + re.escape(delimiter.encode()) + rb"]"
        name = "a tab" if delimiter == "\t" else repr(delimiter)
        rule = f"must not contain {name} or a line end"
    if is_text(column.type):
        texts = column.cast(pa.large_binary())
        found = pc.match_substring_regex(texts, special).fill_null(False)
        return texts, found.to_numpy(zero_copy_only=False), rule
    bad = np.zeros(len(column), bool)
    if pat.is_floating(column.type):
        limit = _MAX_EXACT[column.type.bit_width]
        rule = (
            f"must contain integers below 2^{limit.bit_length() - 1} if it has floats"
        )
        numbers, valid = ArrowCells(column, delimiter).numbers((), integer=True)
        gaps = np.isnan(numbers) & valid
        bad = ~valid | (np.abs(numbers) >= limit)
        integers = np.where(bad | gaps, 0, numbers).astype(np.int64)
        column = pa.array(integers, mask=gaps)
    elif pat.is_decimal(column.type) and column.type.scale > 0:
        rule = "must contain integers if it has decimals"
        precision, scale = column.type.precision, column.type.scale
        # `trunc` does not support narrower decimals.
        column = column.cast(pa.decimal256(precision, scale))
        whole = pc.trunc(column)
        bad = pc.not_equal(column, whole).fill_null(False)
        bad = bad.to_numpy(zero_copy_only=False)
        column = whole.cast(pa.decimal256(precision, 0))
    elif pat.is_boolean(column.type):
        column = pc.if_else(column, "True", "False")
    return column.cast(pa.string()).cast(pa.large_binary()), bad, rule


def _read_lists(column, delimiter, separator):
    values = decode(pc.list_flatten(column))
    rows = pc.list_parent_indices(column).to_numpy()
    texts, bad_values, rule = _read_values(values, delimiter)
    holds = pc.match_substring(texts, separator).fill_null(False)
    holds = holds.to_numpy(zero_copy_only=False)
    if holds.any():
        rule = f"must not contain its separator, {separator.decode()!r}, within a list"
    bad = np.zeros(len(column), bool)
    bad[rows[bad_values | holds]] = True
    counts = np.bincount(rows, minlength=len(column))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    pieces = texts.fill_null(b"").cast(pa.binary())
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pieces)
    joined = pc.binary_join(lists, separator).cast(pa.large_binary())
    return pc.if_else(column.is_valid(), joined, None), bad, rule


def decode(column):
    """Return the column without wrappers such as dictionaries and extension types."""
    while True:
        if isinstance(column, pa.ChunkedArray):
            column = column.combine_chunks()
        elif _extension(column) == "arrow.uuid":  # the raw bytes may contain a tab
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
        elif pat.is_string_view(column.type):  # many functions do not support views
            column = column.cast(pa.large_string())
        elif pat.is_binary_view(column.type):
            column = column.cast(pa.large_binary())
        elif pat.is_fixed_size_binary(column.type):
            column = column.cast(pa.binary())
        else:
            return column


def _extension(column):
    """Return the name of a column's extension type, or `None`."""
    return getattr(column.type, "extension_name", None)


def _plain_type(data_type):
    while True:
        if isinstance(data_type, pa.BaseExtensionType):
            data_type = data_type.storage_type
        elif pat.is_dictionary(data_type) or pat.is_run_end_encoded(data_type):
            data_type = data_type.value_type
        else:
            return data_type


def is_number(data_type):
    kinds = (pat.is_integer, pat.is_floating, pat.is_decimal)
    return any(is_kind(data_type) for is_kind in kinds)


def is_text(data_type):
    kinds = (
        *(pat.is_null, pat.is_string, pat.is_large_string, pat.is_string_view),
        *(pat.is_binary, pat.is_large_binary, pat.is_binary_view),
    )
    return any(is_kind(data_type) for is_kind in kinds)


def is_list(data_type):
    kinds = (pat.is_list, pat.is_large_list, pat.is_fixed_size_list)
    return any(is_kind(data_type) for is_kind in kinds)
