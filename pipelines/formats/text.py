r"""Read rows from blocks of lines in NumPy, a fast equivalent of `Parser`.

The rules are those of `line_rules`; tests check that the results equal those of the
parser bit for bit. It needs no TensorFlow. A block is split as a whole, by the
positions of its separators; `fields` interprets the fields.

# n rows, S separators
"""

import numpy as np

from pipelines.formats import quotes
from pipelines.formats.field_rules import Block, TextCells, read_rows
from pipelines.formats.layout import Layout, Rows, Wanted
from pipelines.formats.line_rules import BYTE_ORDER_MARK

_RETURN = ord("\r")
_UNKNOWN = "a quote is stray, or a quoted field is longer than 1 MiB"


def read_block(block: bytes, layout: Layout, wanted: Wanted = Wanted()) -> Rows:  # noqa: B008
    r"""Read the rows of a block of lines.

    Args:
        block: Complete lines with their line ends; the last may have none.
        layout: The columns of the file.
        wanted: The columns to read in addition to the features.

    Returns:
        The rows.

    Example:

    >>> from pipelines import Schema
    >>> from pipelines.formats import text
    >>> from pipelines.formats.layout import Layout, Wanted
    >>> layout = Layout.of_text(Schema.criteo(), "day_0", None, Wanted())
    >>> line = b"1\t5" + 12 * b"\t" + 26 * b"\tab" + b"\n"
    >>> rows = text.read_block(line + b"what?\n" + line, layout)
    >>> rows.labels.tolist(), rows.numbers[0].tolist(), rows.bad
    ([1, 1], [5.0, 5.0], [(1, b'what?', 'expected 40 tab-separated columns, found 1')])
    """
    lines = Lines(block, layout)
    rows, good = read_rows(lines, layout, wanted, lines.is_row)
    bad = lines.describe_bad(good, wanted.label)
    return rows._replace(num_lines=lines.count, bad=bad)


def find_bad(
    block: bytes,
    layout: Layout,
    wanted: Wanted = Wanted(),  # noqa: B008
) -> list[tuple[int, bytes, str]]:
    """Return the bad lines of a block; the arguments are those of `read_block`.

    Returns:
        `(position in the block, line, reason)` of each bad line, as in `Rows.bad`.
    """
    return read_block(block, layout, wanted).bad


class Lines(Block):
    """The fields of lines, without lines with a wrong number of columns.

    Attributes:
        count: Number of lines.
        is_row: Mask of the lines with the right number of columns that contain no line
            end.
    """

    def __init__(self, block: bytes, layout: Layout):
        structure = quotes.find(block, layout.schema.text)
        text, ends_S, is_line_end_S = structure.text, structure.ends, structure.is_end
        self.text = text
        self._layout, self._structure = layout, structure
        num_columns = layout.num_columns
        line_ends = np.flatnonzero(is_line_end_S)
        self.count = len(line_ends)
        columns = np.diff(line_ends, prepend=-1)
        self.line_of_candidates = None
        is_short = np.False_
        first_S = line_ends - columns + 1  # first separator of each line
        label = layout.label_place
        is_regular = bool((columns == num_columns).all())
        if not is_regular:
            short = (columns == num_columns - 1) & layout.may_lack_label
            short = short & (label is not None)
            fits = columns == num_columns
            if not layout.is_exact:
                fits = columns >= num_columns
            self.line_of_candidates = np.flatnonzero(fits | short)
            is_short = short[self.line_of_candidates]
            first_S = first_S[self.line_of_candidates]
        self._all_line_ends = ends_S[line_ends]
        self._line_starts = np.empty(self.count, np.int64)
        self._line_starts[:1] = text.first
        self._line_starts[1:] = self._all_line_ends[:-1] + 1
        self._first_starts = _pick(self._line_starts, self.line_of_candidates).astype(
            np.int32
        )
        self.num_candidates = len(self._first_starts)
        self.lacks_label = is_short if np.any(is_short) else None
        self._first_S, self._ends_S = first_S, ends_S
        self._ends = self._find_ends(is_regular)
        self._columns = _pick(columns, self.line_of_candidates)
        self._skip_byte_order_marks()
        self.is_row = np.ones(len(self._first_starts), bool)
        if structure.spoiled is not None:
            self.is_row &= ~_pick(structure.spoiled, self.line_of_candidates)
        self._judge_returns()
        self._separators: dict[bytes, np.ndarray] = {}

    def _find_ends(self, is_regular):
        """Return the field ends of each needed column, as rows of int32."""
        layout, num_columns = self._layout, self._layout.num_columns
        needed = {
            place + step for place in layout.positions.values() for step in (-1, 0)
        }
        needed = sorted((needed | {num_columns - 1}) - {-1})
        self._place_of = {place: row for row, place in enumerate(needed)}
        if is_regular:
            ends = self._ends_S[: self.count * num_columns].reshape(-1, num_columns)
            ends = ends.T if len(needed) == num_columns else ends[:, needed].T
            return ends.astype(np.int32, order="C")
        places = self._places(np.array(needed))
        ends = self._ends_S[places].astype(np.int32)
        label = layout.label_place
        if self.lacks_label is not None and label in self._place_of:
            # An empty field with no field before it.
            before = self._first_starts - 1
            if label:
                before = ends[self._place_of[label - 1]]
            row = self._place_of[label]
            ends[row] = np.where(self.lacks_label, before, ends[row])
        return ends

    def _places(self, columns):
        """Return the separators that end the fields of columns: `(columns, n)`."""
        places = self._first_S[None, :] + columns[:, None]
        if self.lacks_label is not None:
            places = places - (self.lacks_label & (columns[:, None] >= self._label()))
        return np.maximum(places, 0)

    def _label(self):
        return self._layout.label_place

    def cells(self, column):
        """Return the cells of a column."""
        place = self._layout.positions[column]
        starts, lengths = self._start_of(place), self._length_of(place)
        if self.lacks_label is not None and place == self._layout.label_place:
            lengths = np.maximum(lengths, 0)
        return TextCells(
            self.text,
            starts,
            lengths,
            lambda separator: self._may_hold(place, separator),
            self._structure.inner_ends,
        )

    def note(self, column, valid, rule):
        """Do nothing: `LineRules` finds the reasons for bad lines."""

    def _start_of(self, place):
        if place == 0:
            return self._first_starts
        return self._ends[self._place_of[place - 1]] + 1

    def _length_of(self, place):
        return self._ends[self._place_of[place]] - self._start_of(place)

    def _may_hold(self, place, separator):
        """Return False if no field of a column contains a separator."""
        if separator not in self.text.raw:
            return False
        if len(separator) > 1:
            return True
        if separator not in self._separators:
            content = self.text.bytes[self.text.first : self.text.end]
            found = np.flatnonzero(content == separator[0]) + self.text.first
            has_S = np.zeros(len(self._ends_S) + 1, bool)
            has_S[np.searchsorted(self._ends_S, found)] = True
            self._separators[separator] = has_S
        places = self._places(np.array([place]))[0]
        return bool(self._separators[separator][places].any())

    def describe_bad(self, good, labelled):
        """Return `(position, line, reason)` of all lines that are not valid rows."""
        if len(good) == self.count and good.all():
            return []
        is_good = np.zeros(self.count, bool)
        if self.line_of_candidates is None:
            is_good[:] = good
        else:
            is_good[self.line_of_candidates[good]] = True
        bad = []
        for position in np.flatnonzero(~is_good).tolist():
            line = self._structure.line(position, self._line_starts[position])
            why = self._layout.rules.reason(line, labelled)
            bad.append((position, line, why or _UNKNOWN))
        return bad

    def _skip_byte_order_marks(self):
        starts = self._first_starts
        marked = self.text.bytes[starts] == BYTE_ORDER_MARK[0]
        for i in np.flatnonzero(marked).tolist():
            start = int(starts[i])
            if self.text.raw.startswith(BYTE_ORDER_MARK, start):
                start += len(BYTE_ORDER_MARK)
                if (
                    self.lacks_label is not None
                    and self.lacks_label[i]
                    and not self._label()
                ):
                    self._ends[self._place_of[0], i] = start - 1
                starts[i] = start

    def _judge_returns(self):
        """Mark lines with carriage returns as invalid, except for one at the end."""
        text = self.text
        if not len(self._first_starts) or b"\r" not in text.raw:
            return
        returns = np.flatnonzero(text.bytes[text.first : text.end] == _RETURN)
        returns = returns + text.first
        if self._structure.inner_ends is not None:
            returns = np.setdiff1d(returns, self._structure.inner_ends)
        line_ends = _pick(self._all_line_ends, self.line_of_candidates)
        is_last = text.bytes[line_ends - 1] == _RETURN
        last = self._layout.num_columns - 1
        self._ends[-1] -= is_last & (self._columns <= last + 1)
        if self.lacks_label is not None and self._label() == last and last:
            self._ends[self._place_of[last - 1]] -= is_last & self.lacks_label
        spoiled = np.zeros(self.count, bool)
        lines = np.searchsorted(self._all_line_ends, returns)
        inside = returns != self._all_line_ends[lines] - 1
        spoiled[lines[inside]] = True
        self.is_row &= ~_pick(spoiled, self.line_of_candidates)


def _pick(array, kept):
    return array if kept is None else array[kept]
