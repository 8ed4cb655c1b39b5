r"""The rules for the rows of a text log, in plain Python without TensorFlow.

`Parser` implements the same rules in TensorFlow operations; tests compare the two on
hostile lines.
"""

import datetime
import functools
import re
from collections.abc import Sequence

from pipelines.runtime import UserError
from pipelines.schema import Dense, Schema, Sparse
from pipelines.schema.checks import Column

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# Patterns for Python and for RE2.
INTEGER = r"-?[0-9]+"
NUMBER = r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
# A number must not exceed the largest float32. Numbers closer to 0 than the smallest
# normal float32 count as 0, since TensorFlow flushes them to 0 in some places only.
LARGEST = 3.4028234663852886e38
SMALLEST = 1.1754943508222875e-38
_YEAR = "(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_BY_4 = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP = f"(?:[0-9]{{2}}{_BY_4}|{_BY_4}00)"
_DAY = (
    f"(?:{_YEAR}-(?:(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8])"
    f"|(?:0[13-9]|1[0-2])-(?:29|30)|(?:0[13578]|1[02])-31)|{_LEAP}-02-29)"
)
_CLOCK = "(?:[01][0-9]|2[0-3]):[0-5][0-9]"
ISO_TIME = (
    rf"{_DAY}(?:[T ]{_CLOCK}(?::[0-5][0-9](?:\.[0-9]{{1,9}})?)?(?:Z|[-+]{_CLOCK})?)?"
)

_INTEGER, _NUMBER, _ISO_TIME = (
    re.compile(pattern.encode()) for pattern in (INTEGER, NUMBER, ISO_TIME)
)
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_SEPARATIONS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar", " ": "space"}


def trim(line: bytes) -> bytes:
    r"""Return a line without its byte-order mark and without one line end.

    Example:

    >>> from pipelines.formats import line_rules
    >>> line_rules.trim(b"\xef\xbb\xbf1\t2\r\n")
    b'1\t2'
    """
    line = line.removeprefix(BYTE_ORDER_MARK)
    for end in (b"\r\n", b"\n", b"\r"):
        if line.endswith(end):
            return line[: -len(end)]
    return line


def read_number(cell: bytes) -> float | None:
    """Return a cell as float64, or `None` if it is not a number within float32."""
    number = float(cell) if _NUMBER.fullmatch(cell) else None
    if number is None or abs(number) > LARGEST:
        return None
    return number if abs(number) >= SMALLEST else 0.0


def read_time(cell: bytes) -> float | None:
    """Return a cell as seconds; `None` if it is neither a number nor a time.

    Args:
        cell: A number, or a date in ISO 8601, optionally with a time and an offset from
            UTC: `2024-02-29`, `2024-02-29T12:30:01.5+02:00`.

    Example:

    >>> from pipelines.formats import line_rules
    >>> line_rules.read_time(b"1970-01-02 00:00:30"), line_rules.read_time(b"12.5")
    (86430.0, 12.5)
    """
    if not _ISO_TIME.fullmatch(cell):
        return read_number(cell)
    text, fraction = cell.decode(), 0.0
    found = re.search(r"\.[0-9]+", text)
    if found:  # up to 9 digits, but datetime takes 6
        text, fraction = text[: found.start()] + text[found.end() :], float(found[0])
    # At the ends of the calendar, a shift to UTC is out of range.
    shift = re.search(r"([-+])([0-9]{2}):([0-9]{2})\Z", text[10:])
    seconds = 0
    if shift:
        text = text[: -len(shift[0])]
        seconds = int(shift[1] + "1") * 60 * (int(shift[2]) * 60 + int(shift[3]))
    time = datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC)
    return (time - _EPOCH) // datetime.timedelta(seconds=1) - seconds + fraction


class LineRules:
    r"""The rules for the rows of a text log.

    One line end and a byte-order mark at the start are not part of a line. A row may
    lack the label's column if no labels are needed. With `format.quoted`, a field in
    double quotes ends at the next quote that is not doubled, which must end the field;
    other fields must not contain quotes or line ends.

    A schema with only positions and without `format.columns` does not define the number
    of columns: further columns are ignored, and the label must be present.

    Args:
        schema: The `Schema`.
        columns: Names of the columns in the order of a file, such as those in its
            header. Default: `format.columns`, or else the order of `schema.columns`.

    Attributes:
        columns: The columns of a line, in order.
        positions: Position of each column of the schema in a line.
        num_columns: Number of columns of a line, or the minimum if not `is_exact`.
        is_exact: False if further columns are ignored.

    Raises:
        ValueError: If a line lacks a column of the schema.

    Example:

    >>> from pipelines.formats import line_rules
    >>> from pipelines.schema import Schema
    >>> line_rules.LineRules(Schema.criteo()).reason(b"1\t2\n")
    'expected 40 tab-separated columns, found 2'
    """

    def __init__(self, schema: Schema, columns: Sequence[str] | None = None):
        self.schema, text = schema, schema.text
        self.is_exact = True
        wanted = schema.columns
        if columns is None and text.columns:
            columns = tuple(text.columns)
        if columns is not None:
            self.columns: tuple[Column, ...] = tuple(columns)
            self.positions = {c: _position(c, self.columns) for c in wanted}
        elif all(isinstance(column, int) for column in wanted):
            self.columns = tuple(range(max(wanted) + 1))  # type: ignore[type-var, operator]
            self.positions = {column: column for column in wanted}  # type: ignore[misc]
            self.is_exact = False
        else:
            self.columns = wanted
            self.positions = {column: i for i, column in enumerate(wanted)}
        self.num_columns = len(self.columns)
        self.label_position = self.positions[schema.label.column]
        self._missing = frozenset(schema.missing)
        self._delimiter = text.delimiter.encode()
        quoteless = rb'[^"\r\n%s]*' % re.escape(self._delimiter)
        self._field = re.compile(rb'"((?:[^"]|"")*)"|(%s)' % quoteless)
        self._positive = {text.encode() for text in schema.label.positive}
        self._negative = {text.encode() for text in schema.label.negative or ()}

    def reason(self, line: bytes, labelled: bool = True) -> str | None:
        """Return the reason that a line is not a valid row.

        Args:
            line: One line, with or without its line end.
            labelled: Whether the label's column is required. If not, lines without it
                are rows as well, and weight and time may be anything.

        Returns:
            The reason as text, or `None` for a valid row.
        """
        try:
            cells = self.fields(line, labelled)
        except _NotSplit as error:
            return str(error)
        label = cells[self.schema.label.column]
        if label is not None:
            found = self._fault_of_label(label)
            if found:
                return f"the label {found}, found {shown(label)}"
        for feature in (*self.schema.dense, *self.schema.sparse):
            cell = cells[feature.column]
            found = self._fault(feature, cell) if cell is not None else None
            if found:
                name = _name(feature.column, feature.name)
                return f"{name} {found}, found {shown(cell)}"  # type: ignore[arg-type]
        return self._reason_of_others(cells) if labelled else None

    def fields(self, line: bytes, labelled: bool = True) -> dict[Column, bytes | None]:
        """Return the cells of a line by column of the schema, without quotes.

        Args:
            line: One line, with or without its line end.
            labelled: Whether the label's column is required.

        Returns:
            The cells; `None` for a missing label.

        Raises:
            ValueError: If the line cannot be split, or the number of columns is wrong.
        """
        cells: list[bytes | None] = [*self._split(trim(line))]
        count, num_columns = len(cells), self.num_columns
        may_lack = self.is_exact and not labelled
        if may_lack and count == num_columns - 1:
            cells.insert(self.label_position, None)
        elif count < num_columns or (self.is_exact and count > num_columns):
            expected = (
                f"{num_columns - 1} or {num_columns}" if may_lack else num_columns
            )
            least = "" if self.is_exact else "at least "
            delimiter = self.schema.text.delimiter
            separated = _SEPARATIONS.get(delimiter, repr(delimiter))
            raise _NotSplit(
                f"expected {least}{expected} {separated}-separated columns, "
                f"found {count}"
            )
        return {column: cells[i] for column, i in self.positions.items()}

    def _split(self, line: bytes) -> list[bytes]:
        if not line:
            raise _NotSplit("empty line")
        if not self.schema.text.quoted:
            _refuse_line_ends(line)
            return line.split(self._delimiter)
        cells, start = [], 0
        while True:
            field = self._field.match(line, start)
            quoted, plain = field.groups()  # type: ignore[union-attr]
            cells.append(plain if quoted is None else quoted.replace(b'""', b'"'))
            start = field.end()  # type: ignore[union-attr]
            if start == len(line):
                return cells
            if line[start : start + 1] != self._delimiter:
                break
            start += 1
        if quoted is None:
            if plain or line[start : start + 1] != b'"':
                _refuse_line_ends(line[start : start + 1])
                raise _NotSplit("a quote inside a field that does not start with one")
            raise _NotSplit("a quoted field without its closing quote")
        raise _NotSplit("a quoted field continues after its closing quote")

    def _fault_of_label(self, cell: bytes) -> str | None:
        label = self.schema.label
        if label.is_number:
            number = None if cell in self._missing else read_number(cell)
            if label.soft and (number is None or not 0 <= number <= 1):
                return "must be a number from 0 to 1"
            return "must be a number" if number is None else None
        if cell in self._positive or cell in self._negative:
            return None
        if label.negative is None:
            return "must not be missing" if cell in self._missing else None
        texts = [*label.negative, *label.positive]
        return (
            f"must be {', '.join(texts[:-1])}{' or ' if texts[:-1] else ''}{texts[-1]}"
        )

    def _fault(self, feature: Dense | Sparse, cell: bytes) -> str | None:
        if cell in self._missing:
            return None
        if isinstance(feature, Dense) and feature.integer:
            if not _INTEGER.fullmatch(cell):
                return f"must be an integer{self._or_missing()}"
            is_huge = float(cell) in (float("inf"), float("-inf"))
            return "is too large for a float64" if is_huge else None
        if isinstance(feature, Dense) or feature.buckets is not None:
            if not _NUMBER.fullmatch(cell):
                return f"must be a number{self._or_missing()}"
            return "is too large" if read_number(cell) is None else None
        if b"\n" in cell or b"\r" in cell:
            return "must not contain a line end"
        if feature.weight_separator is None:
            return None
        mark = feature.weight_separator.encode()
        for piece in cell.split(feature.separator.encode()):  # type: ignore[union-attr]
            if mark in piece and read_number(piece.rpartition(mark)[2]) is None:
                return f"must have a number after {feature.weight_separator!r}"
        return None

    def _reason_of_others(self, cells: dict[Column, bytes | None]) -> str | None:
        weight, time = self.schema.weight, self.schema.time
        if weight is not None:
            cell = cells[weight]
            number = self._present(read_number, cell)
            if cell is not None and (number is None or number < 0):
                name = _name(weight, "weight")
                return f"{name} must be a number of at least 0, found {shown(cell)}"
        if time is not None:
            cell = cells[time]
            if cell is not None and self._present(read_time, cell) is None:
                name = _name(time, "time")
                return (
                    f"{name} must be a number or a time such as 2024-02-29T12:30:00, "
                    f"found {shown(cell)}"
                )
        return None

    def _present(self, read, cell):
        return None if cell is None or cell in self._missing else read(cell)

    def _or_missing(self) -> str:
        texts = [repr(text) for text in self.schema.format.missing if text]
        texts = ["empty"] * (b"" in self._missing) + texts
        commas = "".join(f", {text}" for text in texts[:-1])
        return f"{commas} or {texts[-1]}" if texts else ""


@functools.lru_cache(16)
def rules(schema: Schema) -> LineRules:
    """Return the `LineRules` of a schema, cached."""
    return LineRules(schema)


def shown(field: bytes) -> str:
    """Return a cell as short readable text."""
    text = repr(field)[1:]
    return text if len(text) <= 40 else f"{text[:36]}...' ({len(field)} bytes)"


class _NotSplit(UserError):
    pass


def _refuse_line_ends(line: bytes) -> None:
    for end, name in ((b"\r", "carriage return"), (b"\n", "line feed")):
        if end in line:
            raise _NotSplit(f"{name} inside the line")


def _position(column: Column, columns: tuple[Column, ...]) -> int:
    if isinstance(column, int) and column < len(columns):
        return column
    if isinstance(column, int) or column not in columns:
        listed = ", ".join(map(str, columns[:50]))
        raise UserError(
            f"There is no column {column!r} among the {len(columns)} columns: {listed}"
        )
    return columns.index(column)


def _name(column: Column, name: str) -> str:
    return column if isinstance(column, str) else f"column {column} ({name})"
