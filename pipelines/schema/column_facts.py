"""Facts about the values of a column, gathered from its first rows."""

import dataclasses
import functools

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pat

_NUMBER = r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?$"
_INTEGER = r"^-?[0-9]+(?:\.0*)?$"
_PADDED = r"^-?0[0-9]"
_CLOCK = r"[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:\.[0-9]+)?)?(?:Z|[-+][0-9]{2}:[0-9]{2})?"
_TIME = rf"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}(?:[T ]{_CLOCK})?$"
_LONGEST_NUMBER = 40
SEPARATORS = (b"|", b",", b";", b"^", b" ")
WEIGHT_SEPARATORS = (b":", b"=")


@dataclasses.dataclass(frozen=True)
class Pieces:
    """The values of cells that hold several.

    Attributes:
        separator: Text between the values.
        weight_separator: Text between a value and its weight, or `None`.
        values: Distinct values.
        longest: Largest number of values in a cell.
    """

    separator: str
    weight_separator: str | None
    values: pa.Array
    longest: int


class ColumnFacts:
    """Facts about a column.

    Args:
        name: The column's name.
        column: Its cells: large binaries, null where missing, or lists of them.
        missing: The cells that mean "missing".

    Attributes:
        num_rows: Number of cells.
        num_missing: Number of missing cells.
        values: Distinct values that are not missing, the most frequent first; large
            binaries.
        counts: int64, how often each value occurs.
    """

    def __init__(self, name: str, column: pa.Array, missing: pa.Array) -> None:
        self.name, self.type, self.num_rows = name, column.type, len(column)
        self.column, self.is_list = column, pat.is_large_list(column.type)
        self.is_readable = self.is_list or pat.is_large_binary(column.type)
        self.num_missing = column.null_count
        if not self.is_readable:
            self.values, self.counts = pa.array([], pa.large_binary()), np.zeros(0, int)
            return
        cells = pc.list_flatten(column) if self.is_list else column
        found = pc.value_counts(cells)
        values, counts = found.field(0), found.field(1).to_numpy()
        gap = pc.is_in(values, missing)
        if values.null_count:
            gap = pc.or_(gap, pc.is_null(values))
        is_gap = gap.to_numpy(zero_copy_only=False)
        if is_gap.any():
            if not self.is_list:
                self.num_missing = int(counts[is_gap].sum())
            values, counts = values.filter(pc.invert(gap)), counts[~is_gap]
        order = np.argsort(-counts, kind="stable")
        self.values, self.counts = values.take(pa.array(order)), counts[order]

    @property
    def num_distinct(self) -> int:
        """Number of distinct values, missing ones not counted."""
        return len(self.values)

    @property
    def is_float_integer(self) -> bool:
        """True if every value is an integer written as `7.0`."""
        return self.num_distinct > 0 and self._all(r"^-?[0-9]+\.0$")

    @property
    def missing_share(self) -> float:
        """Share of the cells that are missing."""
        return self.num_missing / max(1, self.num_rows)

    @property
    def is_unique(self) -> bool:
        """True if every cell has a value and no value occurs twice."""
        return not self.num_missing and self.num_distinct == self.num_rows

    @functools.cached_property
    def mean_length(self) -> float:
        """Mean number of bytes of the distinct values."""
        return float(pc.mean(pc.binary_length(self.values)).as_py() or 0)

    @functools.cached_property
    def number_share(self) -> float:
        """Share of numbers among the cells that have a value."""
        return self._share(_NUMBER)

    @functools.cached_property
    def is_number(self) -> bool:
        """True if every value is a number."""
        return self.num_distinct > 0 and self._all(_NUMBER) and self._are_short()

    @functools.cached_property
    def is_integer(self) -> bool:
        """True if every value is an integer; `7.` and `7.0` are integers, too."""
        return self.is_number and self._all(_INTEGER)

    @functools.cached_property
    def is_padded(self) -> bool:
        """True if some value has leading zeros, like a code."""
        return self._any(_PADDED)

    @functools.cached_property
    def is_time(self) -> bool:
        """True if every value is a date or time in ISO 8601."""
        return self.num_distinct > 0 and self._all(_TIME)

    @functools.cached_property
    def numbers(self) -> np.ndarray:
        """The values as float64."""
        try:
            return self.values.cast(pa.large_string()).cast(pa.float64()).to_numpy()
        except pa.ArrowException:  # for example because of "+1"
            return np.array(self.values.to_pylist(), "S").astype(np.float64)

    def quantiles(self, shares: list[float]) -> np.ndarray:
        """Return quantiles of the numbers of all rows."""
        order = np.argsort(self.numbers)
        ends = np.cumsum(self.counts[order])
        places = np.searchsorted(ends, np.array(shares) * ends[-1])
        return self.numbers[order][np.minimum(places, len(order) - 1)]

    @functools.cached_property
    def neighbour_correlation(self) -> float:
        """Correlation between the log counts of neighbouring numbers.

        Near 1 for amounts, where similar numbers are about equally frequent; near 0
        for ids, whose frequencies do not depend on their neighbours.
        """
        order = np.argsort(self.numbers)
        logs = np.log(self.counts[order])
        if len(logs) < 8 or logs[:-1].std() < 1e-9 or logs[1:].std() < 1e-9:
            return 0.0
        return float(np.corrcoef(logs[:-1], logs[1:])[0, 1])

    def share_with(self, pattern: str) -> float:
        """Return the share of cells that contain a pattern, of those with a value."""
        return self._share(pattern)

    def texts(self, num_values: int) -> list[str]:
        """Return the most frequent values as strings, for display."""
        values = self.values.slice(0, num_values).to_pylist()
        return [value.decode("utf-8", "backslashreplace") for value in values]

    def _match(self, pattern: str) -> np.ndarray:
        found = pc.match_substring_regex(self.values, pattern)
        return found.to_numpy(zero_copy_only=False)

    def _share(self, pattern: str) -> float:
        total = self.counts.sum()
        return float(self.counts[self._match(pattern)].sum() / total) if total else 0.0

    def _all(self, pattern: str) -> bool:
        first = pc.match_substring_regex(self.values.slice(0, 8), pattern)
        return bool(pc.all(first).as_py()) and bool(self._match(pattern).all())

    def _any(self, pattern: str) -> bool:
        return bool(self._match(pattern).any())

    def _are_short(self) -> bool:
        return pc.max(pc.binary_length(self.values)).as_py() <= _LONGEST_NUMBER

    # Cells that hold several values

    @functools.cached_property
    def pieces(self) -> Pieces | None:
        """The values of cells that hold several; `None` if each cell is one value."""
        if self.is_list:
            lengths = pc.max(pc.list_value_length(self.column)).as_py() or 0
            free = [mark for mark in SEPARATORS[:4] if not self._any(_quote(mark))]
            if not free:
                return None
            separator = b"," if b"," in free else free[0]
            return Pieces(separator.decode(), None, self.values, lengths)
        if self.is_number or not self.num_distinct or self.mean_length < 2:
            return None
        for separator in SEPARATORS:
            pieces = self._split(separator)
            if pieces is not None:
                return pieces
        return None

    def _split(self, separator: bytes) -> Pieces | None:
        share = self._share(_quote(separator))
        least = 0.3 if separator in b" ," else 0.05
        if share < least:
            return None
        lists = pc.split_pattern(self.values, separator)
        lengths = pc.list_value_length(lists).to_numpy()
        parts = pc.list_flatten(lists)
        parts = parts.filter(pc.greater(pc.binary_length(parts), 0))
        if separator != b" " and self._any(_quote(separator + b" ")):
            return None  # prose
        distinct = pc.unique(parts)
        weight_separator = None
        for mark in WEIGHT_SEPARATORS:
            pattern = _quote(mark) + _NUMBER.removeprefix("^")
            weighted = pc.mean(
                pc.match_substring_regex(distinct, "." + pattern)
            ).as_py()
            if weighted and weighted > 0.95:
                bare = (
                    pc.replace_substring_regex(
                        distinct.cast(pa.large_string()), pattern, ""
                    )
                    if _is_text(distinct)
                    else distinct
                )
                bare = pc.unique(bare).cast(pa.large_binary())
                if len(bare) < 0.8 * len(distinct):
                    distinct, weight_separator = bare, mark.decode()
        mean_repeats = len(parts) / max(1, len(distinct))
        many = self.num_distinct >= 20 and len(distinct) < 0.5 * self.num_distinct
        few = len(distinct) < self.num_distinct and mean_repeats >= 2
        if separator == b" ":
            kept = many and lengths.std() > 0 and lengths.mean() >= 2
        else:
            kept = many or few or weight_separator is not None
        if not kept:
            return None
        return Pieces(
            separator.decode(), weight_separator, distinct, int(lengths.max())
        )


def _is_text(values: pa.Array) -> bool:
    try:
        values.cast(pa.large_string())
    except pa.ArrowException:
        return False
    return True


def _quote(text: bytes) -> str:
    return "".join(rf"\x{code:02x}" for code in text)
