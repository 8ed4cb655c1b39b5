"""Read rows of a schema from the cells of columns: labels, numbers, values.

Text and tables differ only in their cells: `TextCells` here, `ArrowCells` in `cells`.

# n rows, V values
"""

import abc
import contextlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.formats.fields import (
    Bags,
    Text,
    Values,
    is_one_of,
    read_bags,
    read_integers,
    read_numbers,
    read_values,
    take_binary,
    texts_of_keys,
)
from pipelines.formats.layout import Layout, Rows, Wanted
from pipelines.formats.line_rules import read_time
from pipelines.schema import Label, Sparse
from pipelines.schema.checks import Column
from pipelines.schema.columns import FALSE_TEXTS, TRUE_TEXTS

_PLAIN_TIME = rb"\A[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}\z"
CATEGORY_RULE = "must be a category"


class Cells(abc.ABC):
    """The cells of one column in some rows."""

    @abc.abstractmethod
    def pick(self, kept: np.ndarray | None) -> "Cells":
        """Return the cells of some rows, or with `None` of all rows."""

    @abc.abstractmethod
    def numbers(
        self, missing: Sequence[bytes], integer: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read numbers.

        Args:
            missing: Texts that mean "missing".
            integer: Whether only integers are valid.

        Returns:
            float64 `(n,)`, NaN where missing or invalid; and bool `(n,)`, which cells
            are valid or missing.
        """

    @abc.abstractmethod
    def values(
        self, missing: Sequence[bytes], bags: Bags | None
    ) -> tuple[Values, np.ndarray]:
        """Read values; a missing cell has the empty value.

        Args:
            missing: Texts that mean "missing".
            bags: The separators of bags; `None` if each cell is one value.

        Returns:
            The values, and which cells are valid: bool `(n,)`.
        """

    @abc.abstractmethod
    def raw(
        self, is_number: bool, separator: bytes | None = None
    ) -> pa.LargeBinaryArray:
        """Return the cells as they would be written in a line, null where missing.

        Args:
            is_number: Whether they are read as numbers.
            separator: Text between the values of a list.
        """

    @abc.abstractmethod
    def are_missing(self, missing: Sequence[bytes]) -> np.ndarray:
        """Return which cells are missing: bool `(n,)`."""

    @abc.abstractmethod
    def is_one_of(self, texts: Sequence[bytes]) -> np.ndarray:
        """Return which cells are in `texts`: bool `(n,)`."""

    def may_be_bad(self, bags: Bags | None) -> bool:
        """Return whether `values` may find an invalid cell."""
        return bags is not None and bags.weight_separator is not None

    def times(self, missing: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Read event times, numbers or ISO 8601, as float64 seconds.

        Returns:
            float64 `(n,)`, and bool `(n,)`, which cells are valid; missing ones are
            not.
        """
        numbers, valid = self.numbers(missing)
        valid = valid & ~np.isnan(numbers)
        if not valid.all():
            others = np.flatnonzero(~valid)
            values, _ = self.pick(others).values(missing, None)
            numbers[others], valid[others] = _read_times(values)
        return numbers, valid


class TextCells(Cells):
    """The cells of a column of text.

    Args:
        text: The `Text`.
        starts: `(n,)` positions of the first bytes.
        lengths: `(n,)` numbers of bytes.
        may_hold: Function of a separator; false only if no cell contains it.
        inner_ends: Places, in ascending order, of line breaks inside cells; `None` if
            there are none.
    """

    def __init__(self, text: Text, starts, lengths, may_hold=None, inner_ends=None):
        self._text, self._starts, self._lengths = text, starts, lengths
        self._may_hold, self._inner_ends = may_hold, inner_ends

    def pick(self, kept):
        if kept is None:
            return self
        starts, lengths = self._starts[kept], self._lengths[kept]
        return TextCells(self._text, starts, lengths, self._may_hold, self._inner_ends)

    def numbers(self, missing, integer=False):
        fields = self._text, self._starts, self._lengths
        numbers, valid = (read_integers if integer else read_numbers)(*fields)
        gaps = self.are_missing(missing)
        valid = (valid & (self._lengths != 0)) | gaps
        if gaps.any() or not valid.all():
            numbers = np.where(gaps | ~valid, np.nan, numbers)
        return numbers, valid

    def values(self, missing, bags):
        gaps, lengths = self.are_missing(missing), self._lengths
        valid = ~self._hold_line_end()
        separators = [] if bags is None else [bags.separator, bags.weight_separator]
        if any(s is not None and self._holds(s) for s in separators) or (
            bags is not None and (~gaps & (lengths == 0)).any()
        ):
            fields = self._text, self._starts, lengths
            values, good = read_bags(*fields, bags, gaps)
            return values, valid & good
        if any(missing):
            lengths = np.where(gaps, 0, lengths)
        return read_values(self._text, self._starts, lengths), valid

    def raw(self, is_number, separator=None):
        return take_binary(self._text, self._starts, self._lengths)

    def may_be_bad(self, bags):
        return self._inner_ends is not None or super().may_be_bad(bags)

    def is_one_of(self, texts):
        return is_one_of(self._text, self._starts, self._lengths, texts)

    def are_missing(self, missing):
        if tuple(missing) == (b"",):
            return self._lengths == 0
        return self.is_one_of(missing)

    def _holds(self, separator):
        if self._may_hold is None:
            return separator in self._text.raw
        return self._may_hold(separator)

    def _hold_line_end(self):
        if self._inner_ends is None:
            return np.zeros(len(self._starts), bool)
        first = np.searchsorted(self._inner_ends, self._starts)
        return np.searchsorted(self._inner_ends, self._starts + self._lengths) > first


class Block(abc.ABC):
    """Lines, or rows of a table; the candidates among them may be rows of the schema.

    Attributes:
        num_candidates: Number of candidates.
        lacks_label: bool `(n,)`, which candidates lack the label's column; `None` if
            none does.
        line_of_candidates: `(n,)` positions of the candidates among the lines of the
            block; `None` if all lines are candidates.
    """

    num_candidates: int
    lacks_label: np.ndarray | None = None
    line_of_candidates: np.ndarray | None = None

    @abc.abstractmethod
    def cells(self, column: Column) -> Cells:
        """Return the cells of a column."""

    @abc.abstractmethod
    def describe_bad(
        self, good: np.ndarray, labelled: bool
    ) -> list[tuple[int, bytes, str]]:
        """Return `(position, line, reason)` for all lines that are not valid rows.

        Args:
            good: bool `(n,)`: which candidates are valid rows.
            labelled: Whether a row must have a label.
        """

    @abc.abstractmethod
    def note(self, column: Column, valid: np.ndarray, rule: str) -> None:
        """Record invalid cells and the rule that they break."""


def read_rows(block: Block, layout: Layout, wanted: Wanted, candidates: np.ndarray):
    """Read the rows of a block from the cells of its columns.

    Args:
        block: The block.
        layout: The columns of the file.
        wanted: The columns to read in addition to the features.
        candidates: bool `(n,)`: which lines can be rows.

    Returns:
        The `Rows`, with `num_lines` and `bad` not yet set; and bool `(n,)`, which
        candidates are valid rows.
    """
    return _RowReader(block, layout, wanted, candidates).read()


class _RowReader:
    def __init__(self, block, layout, wanted, candidates):
        self._block, self._layout, self._wanted = block, layout, wanted
        self._schema, self._missing = layout.schema, layout.schema.missing
        self._good = candidates.copy()

    def read(self):
        schema, wanted = self._schema, self._wanted
        labels, weights, times = self._labels(), None, None
        if wanted.label and schema.weight is not None:
            weights = self._weights(schema.weight)
        if wanted.label and schema.time is not None:
            times, valid = self._cells(schema.time).times(self._missing)
            self._judge(schema.time, valid, f"{schema.time} must be a number or a time")
        numbers = [self._numbers(f.column, f.name, f.integer) for f in schema.dense]
        bucketed = {
            position: self._numbers(feature.column, feature.name)
            for position, feature in enumerate(schema.sparse)
            if feature.buckets is not None
        }
        values = [self._values(feature) for feature in schema.sparse]
        kept = None if self._good.all() else np.flatnonzero(self._good)
        others = {
            column: self._cells(column).pick(kept).values(self._missing, None)[0]
            for column in wanted.others
        }
        rows = Rows(
            _pick(labels, kept),
            [_pick(column, kept) for column in numbers],
            [None if read is None else read(kept) for read in values],
            {position: _pick(column, kept) for position, column in bucketed.items()},
            len(self._good),
            [],
            _pick(weights, kept),
            others,
            _pick(times, kept),
        )
        return rows, self._good

    def _cells(self, column):
        constant = self._layout.constants.get(column)
        if constant is None:
            return self._block.cells(column)
        num_rows, text = self._block.num_candidates, Text(constant)
        starts = np.full(num_rows, text.first)
        return TextCells(text, starts, np.full(num_rows, len(constant)))

    def _judge(self, column, valid, rule):
        self._good &= valid
        self._block.note(column, valid, rule)

    def _labels(self):
        label, lacks = self._schema.label, self._block.lacks_label
        dtype = np.float32 if label.soft else np.uint8
        if not (self._wanted.label or self._layout.is_bare):
            return np.zeros(len(self._good), dtype)
        cells = self._cells(label.column)
        if label.is_number:
            numbers, valid = cells.numbers(self._missing)
            valid = valid & ~np.isnan(numbers)
            if label.soft:
                valid &= (numbers >= 0) & (numbers <= 1)
                labels = np.where(valid, numbers, 0)
            else:
                labels = numbers >= label.threshold
        else:
            labels = cells.is_one_of([text.encode() for text in label.positive])
            if label.negative is None:
                valid = ~cells.are_missing(self._missing)
            else:
                texts = [text.encode() for text in label.negative]
                valid = labels if labels.all() else labels | cells.is_one_of(texts)
        if lacks is not None:
            labels, valid = np.where(lacks, 0, labels), valid | lacks
        self._judge(label.column, valid, f"the label must be {allowed(label)}")
        return labels.astype(dtype)

    def _weights(self, column):
        weights, valid = self._cells(column).numbers(self._missing)
        valid = valid & (weights >= 0)  # false for NaN
        rule = f"{column} must be a weight, a number of at least 0"
        self._judge(column, valid, rule)
        return weights.astype(np.float32)

    def _numbers(self, column, name, integer=False):
        numbers, valid = self._cells(column).numbers(self._missing, integer)
        kind = "an integer" if integer else "a number"
        self._judge(column, valid, f"{name} must be {kind} or empty")
        return numbers

    def _values(self, feature: Sparse):
        """Return a function of the kept rows; cells that may be bad are read now."""
        if feature.buckets is not None:
            return None
        bags, cells = bags_of(feature), self._cells(feature.column)
        if cells.may_be_bad(bags):
            values, valid = cells.values(self._missing, bags)
            self._judge(feature.column, valid, f"{feature.name} {CATEGORY_RULE}")
            # Later features may find more bad rows.
            return lambda kept: (
                values
                if kept is None
                else cells.pick(kept).values(self._missing, bags)[0]
            )
        return lambda kept: cells.pick(kept).values(self._missing, bags)[0]


def allowed(label: Label) -> str:
    """Return which labels are valid, for a message."""
    if label.soft:
        return "a number from 0 to 1"
    if label.threshold is not None:
        return "a number"
    if label.negative is None:
        return "present"
    texts = [*label.negative, *label.positive]
    if set(texts) == {*TRUE_TEXTS, *FALSE_TEXTS}:
        texts = ["0", "1", "false", "true"]
    return " or ".join(filter(None, [", ".join(texts[:-1]), texts[-1]]))


def bags_of(feature: Sparse) -> Bags | None:
    """Return the separators of a feature's cells; `None` if each is one value."""
    if feature.separator is None:
        return None
    weight = feature.weight_separator
    return Bags(
        feature.separator.encode(),
        None if weight is None else weight.encode(),
        feature.max_values,
    )


def _read_times(values: Values):
    """Return the seconds of each value, a time in ISO 8601, and which are valid."""
    texts = pa.concat_arrays([texts_of_keys(values.keys), values.texts])
    seconds = np.full(len(texts), np.nan)
    is_plain = pc.match_substring_regex(texts, _PLAIN_TIME)
    rows = np.flatnonzero(is_plain.to_numpy(zero_copy_only=False))
    with contextlib.suppress(pa.ArrowInvalid):  # for example month 13
        times = texts.take(pa.array(rows)).cast(pa.string()).cast(pa.timestamp("s"))
        seconds[rows] = times.cast(pa.int64()).to_numpy()
    for row in np.flatnonzero(np.isnan(seconds)).tolist():
        time = read_time(texts[row].as_py())
        seconds[row] = np.nan if time is None else time
    return seconds[values.codes], ~np.isnan(seconds)[values.codes]


def _pick(array, kept):
    return array if kept is None or array is None else array[kept]
