"""Columns to slice rows by: codes for their values, and values for codes.

# n rows, V values of a column, K distinct ones
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.formats.encoding import values_of
from pipelines.formats.fields import texts_of_keys
from pipelines.formats.scanning import Block
from pipelines.records.batch import Batch
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.vocabulary import Vocabulary
from pipelines.vocabulary.numbering import Numbering
from pipelines.vocabulary.siphash import hash_texts

FILE = "file"
# Seconds of the periods that event times are sliced by, as in `time:day`.
PERIODS = {"day": 86_400, "hour": 3_600, "hour_of_day": 3_600}
MISSING, NEGATIVE, ZERO = range(3)  # first bins of integers; powers of 2 follow
_TEXT_KEY = (0, 1)
_NUM_POWERS = 64
# Numbers from 1e8 (1973) are seconds, from 1e11 milliseconds, and so on.
_TIME_UNITS = np.array([1e8, 1e11, 1e14, 1e17, 1e20])


class Coded(NamedTuple):
    """The values of a column in some rows, as codes.

    Attributes:
        codes: `(V,)`, from 0.
        lengths: Number of codes `(n,)` of each row; `None`: one each.
    """

    codes: np.ndarray
    lengths: np.ndarray | None


def period_of(name: str, schema: Schema) -> str | None:
    """Return the period of a name such as `time:day`, where `time` is the event time.

    Example:

    >>> from pipelines import Schema
    >>> from pipelines.evaluation import slice_columns
    >>> schema = Schema.load("movielens_ratings")
    >>> schema.time, slice_columns.period_of("timestamp:day", schema)
    ('timestamp', 'day')
    """
    column, _, period = name.rpartition(":")
    is_time = schema.time is not None and column == str(schema.time)
    return period if is_time and period in PERIODS else None


def check_name(parameter: str, name: str, schema: Schema) -> None:
    """Check that records, or files without a header, have a column of this name.

    Raises:
        ValueError: If they do not; the message names the columns.
    """
    names = [*schema.sparse_features, *schema.dense_features, FILE]
    if period_of(name, schema):
        return
    known = (*names, *schema.columns, *schema.text.columns)
    _, colon, period = name.rpartition(":")
    if colon and period in PERIODS and name not in known:
        time = "which it does not name" if schema.time is None else repr(schema.time)
        raise UserError(
            f"`{parameter}` has days and hours only of the schema's `time` column, "
            f"{time}. Received: {name}"
        )
    if schema.text.header or name in (*schema.text.columns, schema.group):
        return  # any column of the files: a missing one is reported when they open
    if name not in names:
        raise UserError(
            f"`{parameter}` must name a column: {', '.join(names[:60])} ({FILE} stands "
            f"for the file of each row). Received: {name}"
        )


class Codes:
    """Number distinct 64-bit keys in order of first occurrence.

    Keys are stored in sorted runs, each at least four times as long as the next, and
    take 16 bytes each.
    """

    def __init__(self):
        self._runs = []  # (sorted keys, their codes)

    def find(self, keys: np.ndarray, next_code: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the codes of keys; number new keys from `next_code`.

        Args:
            keys: uint64 `(K,)`, distinct.
            next_code: Code of the first new key.

        Returns:
            int64 `(K,)` codes, and the positions of the new keys.
        """
        codes = np.full(len(keys), -1, np.int64)
        left = np.arange(len(keys))
        for run, run_codes in self._runs:
            places = np.minimum(np.searchsorted(run, keys[left]), len(run) - 1)
            known = run[places] == keys[left]
            codes[left[known]] = run_codes[places[known]]
            left = left[~known]
        codes[left] = next_code + np.arange(len(left))
        if len(left):
            order = left[np.argsort(keys[left])]
            self._add(keys[order], codes[order])
        return codes, left

    def _add(self, keys, codes):
        while self._runs and len(self._runs[-1][0]) < 4 * len(keys):
            before, codes_before = self._runs.pop()
            keys, codes = np.append(before, keys), np.append(codes_before, codes)
            order = np.argsort(keys, kind="stable")  # merges two sorted halves
            keys, codes = keys[order], codes[order]
        self._runs.append((keys, codes))


class TextValues:
    """A categorical column of lines, sliced by its values.

    Values of more than eight bytes are distinguished by a 64-bit hash. Each distinct
    value takes 24 bytes of memory, and longer values also their own length.
    """

    def __init__(self, name: str, schema: Schema, learned=None):
        self._name, self._schema, self._learned = name, schema, learned or {}
        self._keys, self._texts, self._size = Codes(), Codes(), 0
        self._found = []  # new values, in the order of their codes

    def read(self, block: Block, batch: Batch) -> Coded:
        """Return the codes of a block's rows."""
        values = self._values(block.rows)
        codes, new = self._keys.find(values.keys, self._size)
        self._note(values.keys[new])
        if len(values.texts):
            hashes = hash_texts(values.texts, _TEXT_KEY)
            of_texts, new = self._texts.find(hashes, self._size)
            self._note(values.texts.take(pa.array(new)))
            codes = np.concatenate([codes, of_texts])
        return Coded(codes[values.codes], values.lengths)

    def _values(self, rows):
        if self._name not in self._schema.sparse_features:
            return rows.others[self._name]
        position = self._schema.sparse_features.index(self._name)
        if rows.values[position] is not None:
            return rows.values[position]
        return values_of(rows, self._schema, self._learned)[position]

    def _note(self, values):
        if len(values):
            self._found.append(values)
            self._size += len(values)

    def names(self, codes: np.ndarray) -> list[str]:
        """Return the values of codes, "(empty)" for an empty field."""
        pieces = [
            texts_of_keys(each) if isinstance(each, np.ndarray) else each
            for each in self._found
        ]
        found = pa.concat_arrays(pieces or [pa.array([], pa.large_binary())])
        values = found.take(pa.array(codes)).to_pylist()
        return [_show(value) or "(empty)" for value in values]


class IdValues:
    """A categorical column of records, sliced by its ids.

    If `prepare` expanded a value to a bag, the slice is that of the original value.
    """

    def __init__(self, name: str, position: int, vocabulary, is_expanded: bool):
        self._name, self._position = name, position
        self._vocabulary, self._is_expanded = vocabulary, is_expanded

    def read(self, block: None, batch: Batch) -> Coded:
        """Return the codes of a block's rows: id + 1, or 0 for a missing value."""
        if batch.lengths is None:
            return Coded(batch.ids[:, self._position].astype(np.int64) + 1, None)
        counts = batch.lengths.reshape(-1).astype(np.int64)
        columns = slice(self._position, None, batch.lengths.shape[1])
        starts, lengths = (np.cumsum(counts) - counts)[columns], counts[columns]
        if self._is_expanded:  # the first id is the original one
            ids = np.append(batch.ids, -1)[np.where(lengths > 0, starts, -1)]
            return Coded(ids.astype(np.int64) + 1, None)
        shown = np.maximum(lengths, 1)  # an empty bag is a value, too
        firsts = np.cumsum(shown) - shown
        places = np.repeat(starts - firsts, shown) + np.arange(int(shown.sum()))
        ids = batch.ids[np.minimum(places, len(batch.ids) - 1)].astype(np.int64) + 1
        ids[firsts[lengths == 0]] = 0
        return Coded(ids, shown)

    def _has_values(self):
        if not isinstance(self._vocabulary, Vocabulary):
            return False
        return isinstance(self._vocabulary.numbering_of(self._name).load(), Numbering)

    def names(self, codes: np.ndarray) -> list[str]:
        """Return the values of codes, or their ids without a vocabulary of values."""
        special = {0: "(missing)", 1: "(empty or rare)"}
        values = []
        if self._has_values():
            numbering = self._vocabulary.numbering_of(self._name).load()
            chunks = [pa.array([], pa.large_binary()), *numbering.chunks()]
            known = np.maximum(codes - 2, 0)
            if len(numbering):
                values = pa.concat_arrays(chunks).take(pa.array(known)).to_pylist()
        else:
            special[1] = "(empty)"
        return [
            special.get(code) or (_show(values[i]) if values else f"id {code - 1}")
            for i, code in enumerate(codes.tolist())
        ]


class NumberBins:
    """A dense column, sliced into fixed bins at powers of 2.

    Args:
        name: Name of the feature.
        schema: The columns.
        is_transformed: Whether the column comes from records. They hold log(x + 1), in
            which missing and negative numbers are 0.
    """

    def __init__(self, name: str, schema: Schema, is_transformed: bool):
        self._column = schema.dense_features.index(name)
        self._is_transformed = is_transformed
        self._is_integer = schema.dense[self._column].integer
        if is_transformed and schema.dense[self._column].transform != "log1p":
            raise UserError(
                f"Records contain {name} transformed, and only log1p can be inverted "
                f"here: evaluate the original files to slice by {name}."
            )
        powers = 2.0 ** np.arange(_NUM_POWERS)
        self._bounds = np.log(powers + 1.0).astype(np.float32)  # as `transform`

    def read(self, block: Block | None, batch: Batch) -> Coded:
        """Return the codes of a block's rows: the numbers of their bins."""
        if self._is_transformed:
            # Exact below 2^20; larger neighbours may round to the same float32.
            numbers = batch.dense[:, self._column]
            powers = np.searchsorted(self._bounds, numbers, side="right")
            return Coded(powers + ZERO, None)
        numbers = block.rows.numbers[self._column]
        missing = np.isnan(numbers)
        _, exponents = np.frexp(np.maximum(np.where(missing, 0, numbers), 0))
        bins = np.clip(exponents, 0, _NUM_POWERS).astype(np.int64) + ZERO
        bins[numbers < 0] = NEGATIVE
        bins[missing] = MISSING
        return Coded(bins, None)

    def names(self, codes: np.ndarray) -> list[str]:
        """Return the bounds of bins; for integers, both ends are inclusive."""
        special = {MISSING: "(missing)", NEGATIVE: "negative"}
        special[ZERO + _NUM_POWERS] = f"{1 << (_NUM_POWERS - 1)} and more"
        if self._is_integer:
            special |= {ZERO: "0", ZERO + 1: "1"}
        else:
            special[ZERO] = "0 to below 1"
        if self._is_transformed:
            special[ZERO] = "0, negative or (missing)"
        return [special.get(code) or self._bounds_of(code) for code in codes.tolist()]

    def _bounds_of(self, code):
        low, end = 1 << (code - ZERO - 1), 1 << (code - ZERO)
        return f"{low}-{end - 1}" if self._is_integer else f"{low} to below {end}"


class Times:
    """The event time of a row, in UTC, sliced by `PERIODS`.

    Numbers are seconds, milliseconds, microseconds or nanoseconds since 1970, told
    apart by their size; others have no date, nor have those whose digits are a date,
    such as 26013110 or 2026013110 for 10 o'clock.
    """

    def __init__(self, period: str):
        self._period = period
        self._codes, self._periods = Codes(), np.zeros(0, np.int64)

    def read(self, block: Block, batch: Batch) -> Coded:
        """Return the codes of a block's rows."""
        times = block.rows.times
        unit = np.searchsorted(_TIME_UNITS, times, side="right")
        is_date = (unit > 0) & (unit < len(_TIME_UNITS))
        is_date &= ~_are_digits_of_dates(np.where(is_date, times, 0))
        seconds = times / 1000.0 ** np.maximum(unit - 1, 0)
        periods = np.floor(seconds / PERIODS[self._period])
        if self._period == "hour_of_day":
            periods %= 24
        periods, places = np.unique(np.where(is_date, periods, -1), return_inverse=True)
        periods = periods.astype(np.int64)
        codes, new = self._codes.find(periods.astype(np.uint64), len(self._periods))
        self._periods = np.append(self._periods, periods[new])
        return Coded(codes[places], None)

    def names(self, codes: np.ndarray) -> list[str]:
        """Return the days, or the beginnings of the hours."""
        return [self._name(int(period)) for period in self._periods[codes]]

    def _name(self, period):
        if period < 0:
            return "(no date)"
        if self._period == "hour_of_day":
            return f"{period:02}:00"
        if self._period == "hour":
            return f"{np.datetime64(period, 'h')}:00".replace("T", " ")
        return str(np.datetime64(period, "D"))


def _are_digits_of_dates(times):
    """Return which numbers read as YYYYMMDDHH, or go on with minutes and seconds."""
    found = np.zeros(len(times), bool)
    for num_parts in (1, 2, 3):  # hours, minutes, seconds
        rest, is_valid = times, np.ones(len(times), bool)
        for limit in (60, 60, 24)[3 - num_parts :]:
            rest, part = np.divmod(rest, 100)
            is_valid &= part < limit
        rest, day = np.divmod(rest, 100)
        year, month = np.divmod(rest, 100)
        is_valid &= (day >= 1) & (day <= 31) & (month >= 1) & (month <= 12)
        found |= is_valid & (year >= 1990) & (year < 2100)
    return found


class Files:
    """The file of a row, as a column."""

    def __init__(self, paths):
        self._paths = list(paths)

    def read(self, block: Block, batch: Batch) -> Coded:
        """Return the codes of a block's rows: the number of their file."""
        return Coded(np.full(len(batch.labels), block.file), None)

    def names(self, codes: np.ndarray) -> list[str]:
        """Return the paths of files."""
        return [self._paths[code] for code in codes.tolist()]


def once_a_row(coded: Coded) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct pairs of row and code.

    Returns:
        `(U,)` rows and `(U,)` codes.
    """
    rows = np.arange(len(coded.codes))
    if coded.lengths is None:
        return rows, coded.codes
    rows = np.repeat(np.arange(len(coded.lengths)), coded.lengths)
    size = int(coded.codes.max(initial=0)) + 1
    pairs = np.unique(rows * size + coded.codes)
    return pairs // size, pairs % size


def _show(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
