r"""Blocks of Criteo lines -> columns, in NumPy: the fast twin of `Parser`.

The rules are those of `format.py`, and the tests hold this to the parser bit for bit.
It needs no TensorFlow. A block is taken apart as a whole, by the positions of its
separators; `fields` says what the fields mean.

# n rows, S separators
"""

from typing import NamedTuple

import numpy as np

from pipelines.formats.fields import Text, Values, read_integers, read_values
from pipelines.formats.line_rules import BYTE_ORDER_MARK, NUM_COLUMNS, NUM_DENSE, reason


class Rows(NamedTuple):
    """The good rows of a block, in their order, and what is known of the bad ones.

    Attributes:
        labels: uint8 `(n,)`, 0 or 1; 0 where a line had none.
        integers: 13 float64 `(n,)` as written, 0 where missing.
        missing: 13 bool `(n,)`.
        values: 26 `Values`.
        num_lines: Number of lines in the block, bad ones included.
        bad: `(position in the block, line, reason)` of the bad lines.
    """

    labels: np.ndarray
    integers: list[np.ndarray]
    missing: list[np.ndarray]
    values: list[Values]
    num_lines: int
    bad: list[tuple[int, bytes, str]]


def read_block(block: bytes, labelled: bool = True) -> Rows:
    r"""Take a block of lines apart.

    Args:
        block: Whole lines with their line ends; the last may have none.
        labelled: Whether the label column must be there. If not, lines of 39 columns
            are rows as well as lines of 40.

    Returns:
        The rows.

    Example:

    >>> from pipelines.formats import text
    >>> line = b"1\t5" + 12 * b"\t" + 26 * b"\tab" + b"\n"
    >>> rows = text.read_block(line + b"what?\n" + line)
    >>> rows.labels.tolist(), rows.integers[0].tolist(), rows.bad
    ([1, 1], [5.0, 5.0], [(1, b'what?', 'expected 40 tab-separated columns, found 1')])
    """
    text = Text(block)
    lines = _Lines(text, labelled)
    good, labels, integers, missing = _judge(text, lines)
    kept = None if good.all() else np.flatnonzero(good)
    values = [
        read_values(
            text,
            _pick(lines.start_of(column), kept),
            _pick(lines.length_of(column), kept),
            lines.has_comma(column, kept),
        )
        for column in range(1 + NUM_DENSE, NUM_COLUMNS)
    ]
    return Rows(
        _pick(labels, kept),
        [_pick(numbers, kept) for numbers in integers],
        [_pick(flags, kept) for flags in missing],
        values,
        lines.count,
        lines.describe_bad(good, labelled),
    )


def find_bad(block: bytes, labelled: bool = True) -> list[tuple[int, bytes, str]]:
    r"""List the bad lines of a block, without reading the values of the good ones.

    Args:
        block: Lines.
        labelled: Whether lines have a label.

    Returns:
        `(position in the block, line, reason)` of the bad lines, as in `Rows.bad`.

    Example:

    >>> from pipelines.formats import text
    >>> text.find_bad(b"1" + 39 * b"\t" + b"\nwhat?\n")
    [(1, b'what?', 'expected 40 tab-separated columns, found 1')]
    """
    text = Text(block)
    lines = _Lines(text, labelled)
    good, *_ = _judge(text, lines)
    return lines.describe_bad(good, labelled)


def _judge(text, lines):
    """Return the candidates that are rows, with labels, integers, missing values."""
    good = lines.is_row
    labels = text.bytes[lines.start_of(0)] - ord("0")
    has_label = lines.length_of(0) == 1
    good = good & ((has_label & (labels <= 1)) | lines.is_short)
    labels = np.where(lines.is_short, 0, labels).astype(np.uint8)
    integers, missing = [], []
    for column in range(1, 1 + NUM_DENSE):
        starts, lengths = lines.start_of(column), lines.length_of(column)
        numbers, valid = read_integers(text, starts, lengths)
        good = good & valid
        integers.append(numbers)
        missing.append(lengths == 0)
    return good, labels, integers, missing


class _Lines:
    """Find the fields of the lines; lines with a wrong number of columns are left out.

    Attributes:
        count: Number of lines.
        is_row: bool, of each line with the right number of columns: no line end in it.
        is_short: bool or False: which of them have 39 columns.
    """

    def __init__(self, text, labelled):
        content = text.bytes[text.first : text.end]
        self._text = text
        ends_S = np.flatnonzero((content - np.uint8(9)) < 2) + text.first
        is_line_end_S = text.bytes[ends_S] == ord("\n")
        line_ends = np.flatnonzero(is_line_end_S)
        self.count = len(line_ends)
        columns = np.diff(line_ends, prepend=-1)
        self._lines = None  # of each candidate, its line; None: all, in order
        self.is_short = np.False_
        self._is_regular = bool((columns == NUM_COLUMNS).all())
        first_S = line_ends - columns + 1  # first separator of each line
        if not self._is_regular:
            short = (columns == NUM_COLUMNS - 1) & (not labelled)
            self._lines = np.flatnonzero((columns == NUM_COLUMNS) | short)
            self.is_short = short[self._lines]
            first_S = first_S[self._lines] - self.is_short
        self._all_line_ends = ends_S[line_ends]
        self._line_starts = np.empty(self.count, np.int64)
        self._line_starts[:1] = text.first
        self._line_starts[1:] = self._all_line_ends[:-1] + 1
        if self._is_regular:
            ends = ends_S[: self.count * NUM_COLUMNS].reshape(-1, NUM_COLUMNS).T
        else:
            places = first_S[None, :] + np.arange(NUM_COLUMNS)[:, None]
            ends = ends_S[np.maximum(places, 0)]
        # 40 rows, each of the ends of a column's fields
        self._ends = ends.astype(np.int32, order="C")
        starts = _pick(self._line_starts, self._lines)
        self._first_starts = starts.astype(np.int32)
        if np.any(self.is_short):  # a field of no bytes before the first
            self._ends[0] = np.where(self.is_short, starts - 1, self._ends[0])
        self._skip_byte_order_marks()
        self.is_row = np.ones(len(starts), bool)
        self._judge_returns(content)
        self._commas = None
        if b"," in text.raw:
            self._find_commas(content, ends_S, first_S)

    def start_of(self, column):
        """int32: first byte of the column's fields."""
        return self._ends[column - 1] + 1 if column else self._first_starts

    def length_of(self, column):
        """int32: bytes of the column's fields."""
        return self._ends[column] - self.start_of(column)

    def has_comma(self, column, kept):
        """True if one of the column's fields is a bag."""
        if self._commas is None:
            return False
        return bool(_pick(self._commas[column], kept).any())

    def describe_bad(self, good, labelled):
        """`(position, line, reason)` of all lines that are no rows."""
        if len(good) == self.count and good.all():
            return []
        is_good = np.zeros(self.count, bool)
        if self._lines is None:
            is_good[:] = good
        else:
            is_good[self._lines[good]] = True
        bad = []
        for position in np.flatnonzero(~is_good).tolist():
            start, end = self._line_starts[position], self._all_line_ends[position]
            line = self._text.raw[start:end]
            bad.append((position, line, reason(line, labelled)))
        return bad

    def _skip_byte_order_marks(self):
        starts = self._first_starts
        marked = self._text.bytes[starts] == BYTE_ORDER_MARK[0]
        for i in np.flatnonzero(marked).tolist():
            start = int(starts[i])
            if self._text.raw.startswith(BYTE_ORDER_MARK, start):
                start += len(BYTE_ORDER_MARK)
                if np.any(self.is_short) and self.is_short[i]:
                    self._ends[0, i] = start - 1
                starts[i] = start

    def _judge_returns(self, content):
        """One carriage return may end a line; others spoil it."""
        if not len(self._first_starts) or b"\r" not in self._text.raw:
            return
        returns = np.flatnonzero(content == ord("\r")) + self._text.first
        line_ends = self._ends[-1].copy()
        is_last = self._text.bytes[line_ends - 1] == ord("\r")
        self._ends[-1] -= is_last
        spoiled = np.zeros(self.count, bool)
        lines = np.searchsorted(self._all_line_ends, returns)
        inside = returns != self._all_line_ends[lines] - 1
        spoiled[lines[inside]] = True
        self.is_row &= ~_pick(spoiled, self._lines)

    def _find_commas(self, content, ends_S, first_S):
        commas = np.flatnonzero(content == ord(",")) + self._text.first
        has_S = np.zeros(len(ends_S), bool)
        has_S[np.searchsorted(ends_S, commas)] = True
        places = first_S[None, :] + np.arange(NUM_COLUMNS)[:, None]
        self._commas = has_S[np.maximum(places, 0)]


def _pick(array, kept):
    return array if kept is None else array[kept]
