"""The first rows of a text or Parquet file of any layout, as columns of strings.

Detects the delimiter, the quotes and the header of a text file.
"""

import collections
import csv
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv

from pipelines.compression import read_start
from pipelines.files import BlockReader
from pipelines.formats import frame_rows
from pipelines.runtime import UserError
from pipelines.schema.columns import Parquet, Text
from pipelines.schema.name_hints import label_rank

_MAX_BYTES = 32 << 20
_LOOK_BYTES, _LOOK_LINES = 1 << 18, 500
_HEADER_ROWS = 50  # that are compared with the first one
_MARK = b"\xef\xbb\xbf"
_NUMBER = re.compile(rb"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")
_IDENTIFIER = re.compile(rb"[A-Za-z_\x80-\xff][\w .:/()%#\\\x80-\xff-]*")
_LIBSVM = re.compile(rb"[-+]?[0-9.]+( [0-9]+(:[0-9]+)?:[-+0-9.eE]+)+\s*")
MISSING_MARKS = (
    *("NULL", "null", "\\N", "N/A", "n/a", "#N/A", "<NA>", "nan", "NaN", "NAN"),
    *("None", "none", "(null)", "NaT", "NA", "na", "-", "?"),
)
# Higher for likelier delimiters: cells hardly ever contain tabs, but often blanks.
_RANKS = {b"\t": 3, b"\x01": 3, b",": 2, b";": 2, b"|": 2, b"^": 1, b" ": 0}


class FirstRows(NamedTuple):
    """The first rows of a file.

    Attributes:
        path: The file.
        format: The detected format; `missing` has its default.
        names: Names of all columns in order.
        columns: An Arrow array for each column: large binaries as in a text file, or
            the type in the Parquet file.
        notes: Sentences about oddities of the file.
    """

    path: str
    format: Text | Parquet
    names: tuple[str, ...]
    columns: list[pa.Array]
    notes: list[str]


def is_parquet(path: str) -> bool:
    """Return whether a file starts with the bytes of a Parquet file."""
    return read_start(path, 4) == b"PAR1"


def read(path: Any, num_rows: int) -> FirstRows:
    """Read the first rows of a file, or of a data frame, and detect its format.

    Raises:
        ValueError: If it contains no rows of columns; the message says what it looks
            like instead.
    """
    if frame_rows.is_frame(path):
        from pipelines.schema.first_parquet_rows import of_table

        return of_table(frame_rows.NAME, frame_rows.to_table(path, num_rows))
    if is_parquet(path):
        from pipelines.schema.first_parquet_rows import read_parquet

        return read_parquet(path, num_rows)
    return _read_text(path, num_rows)


def read_names(path: str, text_format: Text) -> list[str] | None:
    """Return the column names of another file; `None` if it has no names."""
    if is_parquet(path):
        from pipelines.schema.first_parquet_rows import read_parquet_names

        return read_parquet_names(path)
    if not text_format.header:
        return None
    block = BlockReader(1 << 16).read(path, 0).removeprefix(_MARK)
    line = block.split(b"\n")[0].removesuffix(b"\r").decode("utf-8", "replace")
    if not text_format.quoted:
        return line.split(text_format.delimiter)
    try:
        return next(csv.reader([line], delimiter=text_format.delimiter), [])
    except csv.Error:
        return []


def _read_text(path: str, num_rows: int) -> FirstRows:
    data, is_all = _read_bytes(path, num_rows)
    check(path, data)
    first_line = data.split(b"\n")[0]
    # Arrow passes bad rows on as text, so invalid UTF-8 is escaped, as in \xff.
    data = data.decode("utf-8", "backslashreplace").encode()
    delimiter, quoted = _find_delimiter(path, data)
    if quoted and data.count(b'"') % 2 and not is_all:  # the data end inside a field
        data = data[: data.rfind(b'"')]
        data = data[: data.rfind(b"\n") + 1]
    columns, bad = _parse(path, data, delimiter, quoted)
    notes = []
    num_good = len(columns[0])
    if bad:
        if len(bad) > num_good:
            raise UserError(
                f"{path}: most lines do not have {len(columns)} columns separated by "
                f"{delimiter.decode()!r}, for example {_show(bad[0])}."
            )
        notes.append(
            f"{len(bad):,} of {num_good + len(bad):,} rows do not have "
            f"{len(columns)} columns and would be bad rows, for example "
            f"{_show(bad[0])}."
        )
    num_empty = sum(not line.strip(b"\r") for line in _masked(data, delimiter, quoted))
    if num_empty:
        notes.append(f"{num_empty:,} lines are empty and would be bad rows.")
    header = _is_header(columns)
    if header:
        names = [column[0].as_py().decode() for column in columns]
        _check_names(path, names, first_line)
        columns = [column.slice(1) for column in columns]
        columns, num_repeats = _drop_headers(columns, names)
        if num_repeats:
            notes.append(
                f"The header occurs again in {num_repeats:,} of the rows, which would "
                "be bad rows. Were files concatenated?"
            )
        if not len(columns[0]):
            raise UserError(f"{path}: has a header and no rows.")
    else:
        names = [f"column_{position}" for position in range(len(columns))]
    text = Text(delimiter.decode(), header, names, quoted=quoted)
    return FirstRows(path, text, tuple(names), columns, notes)


def _masked(data: bytes, delimiter: bytes, quoted: bool) -> list[bytes]:
    """Return the lines, with a letter for each quoted field."""
    if quoted:
        data, _ = _mask_quoted(data, delimiter)
    return data.removesuffix(b"\n").split(b"\n")


def _read_bytes(path: str, num_rows: int) -> tuple[bytes, bool]:
    """Return the first lines, and whether they are all of them."""
    reader, offset, num_lines = BlockReader(), 0, 0
    blocks: list[bytes] = []
    while num_lines <= num_rows and offset < _MAX_BYTES:
        block = reader.read(path, offset)
        if not block:
            return b"".join(blocks).removeprefix(_MARK), True
        offset += len(block)
        num_lines += block.count(b"\n")
        blocks.append(block)
    data = b"".join(blocks).removeprefix(_MARK)
    return data, False


def check(path: str, data: bytes) -> None:
    """Raise an error unless the data look like lines of columns."""
    start = data[:4096]
    if not data.strip():
        raise UserError(f"{path}: contains no rows.")
    controls = sum(start.count(code) for code in range(32)) - sum(
        start.count(code) for code in b"\t\n\r\x01"
    )
    if controls > len(start) / 10:
        raise UserError(f"{path}: looks like binary data, not lines of text.")
    if data.count(b"\r") - data.count(b"\r\n") > data.count(b"\n"):
        raise UserError(
            f"{path}: lines must not end in a carriage return alone. Convert it "
            r"first: tr '\r' '\n'."
        )
    first = start.lstrip().lower()
    if first.startswith((b"<!doctype", b"<html", b"<?xml", b"<")):
        raise UserError(
            f"{path}: looks like HTML or XML. If a download failed, fetch it again."
        )
    if first.startswith((b"{", b"[")):
        raise UserError(
            f"{path}: looks like JSON. Convert it to CSV or Parquet, in which each "
            "column has a name."
        )
    lines = [line for line in data[:_LOOK_BYTES].splitlines()[:50] if line]
    if sum(bool(_LIBSVM.fullmatch(line)) for line in lines) * 2 > len(lines):
        raise UserError(
            f"{path}: looks like LibSVM's format. Convert it to CSV or Parquet, in "
            "which each feature is a column."
        )


def _look(data: bytes) -> bytes:
    """Return the first whole lines, at least one."""
    if len(data) <= _LOOK_BYTES:
        return data
    end = data.rfind(b"\n", 0, _LOOK_BYTES)
    end = end if end >= 0 else data.find(b"\n")
    return data[:end] if end >= 0 else data


def _find_delimiter(path: str, data: bytes) -> tuple[bytes, bool]:
    """Return the delimiter, and whether fields are quoted."""
    look = _look(data)
    best: tuple[tuple, bytes, bool] | None = None
    for delimiter, rank in _RANKS.items():
        masked, quoted = _mask_quoted(look, delimiter)
        lines = [line for line in masked.split(b"\n")[:_LOOK_LINES] if line.strip()]
        counts = collections.Counter(line.count(delimiter) for line in lines)
        (common, times), *_ = sorted(counts.items(), key=lambda pair: -pair[1])
        if not common:
            continue
        is_regular = times >= 0.9 * len(lines)
        fits_first = lines[0].count(delimiter) == common
        score = (is_regular, fits_first, rank, common * times)
        if best is None or score > best[0]:
            best = score, delimiter, quoted
    if best is None or not (best[0][0] or best[0][1]):
        line = look.strip().split(b"\n")[0]
        raise UserError(
            f"{path}: found no delimiter that splits the lines into equal numbers of "
            "columns. "
            f"A log has the label and at least one more column. First line: "
            f"{_show(line)}."
        )
    return best[1], best[2]


def _mask_quoted(look: bytes, delimiter: bytes) -> tuple[bytes, bool]:
    """Replace quoted fields by a letter; return whether there are such fields."""
    num_quotes = look.count(b'"')
    if not num_quotes:
        return look, False
    mark = re.escape(delimiter)
    field = rb'(^|%b|\n)"(?:[^"]|"")*"(?=%b|\r?\n|$)' % (mark, mark)
    masked = re.sub(field, rb"\1Q", look)
    quoted = masked.count(b'"') <= num_quotes * 0.1
    return (masked, True) if quoted else (look, False)


def _parse(
    path: str, data: bytes, delimiter: bytes, quoted: bool
) -> tuple[list[pa.Array], list[bytes]]:
    """Return the columns of all rows, a header included, and the bad rows."""
    look = _look(data)
    if quoted:
        look, _ = _mask_quoted(look, delimiter)
    lines = [line for line in look.split(b"\n") if line.strip()]
    counts = collections.Counter(line.count(delimiter) for line in lines[:_LOOK_LINES])
    names = [str(position) for position in range(counts.most_common(1)[0][0] + 1)]
    bad: list[bytes] = []

    def skip(row: arrow_csv.InvalidRow) -> str:
        bad.append((row.text or "").encode())
        return "skip"

    try:
        table = arrow_csv.read_csv(
            pa.BufferReader(data),
            arrow_csv.ReadOptions(
                use_threads=False,
                block_size=len(data) + 1,
                column_names=names,
            ),
            arrow_csv.ParseOptions(
                delimiter=delimiter.decode(),
                quote_char='"' if quoted else False,
                newlines_in_values=quoted,
                invalid_row_handler=skip,
            ),
            arrow_csv.ConvertOptions(
                check_utf8=False,
                column_types={name: pa.large_binary() for name in names},
                null_values=[],
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowException as error:
        words = " ".join(str(error).split()).removeprefix("CSV parse error: ")
        raise UserError(
            f"{path}: cannot be split into {len(names)} columns ({words[:200]}). "
            "Is a closing quote missing?"
        ) from None
    columns = [column.combine_chunks() for column in table.columns]
    if not len(columns[0]):
        raise UserError(f"{path}: contains no rows of {len(names)} columns.")
    return columns, bad


def _is_header(columns: Sequence[pa.Array]) -> bool:
    """Return whether the first of the rows names the columns."""
    first = [column[0].as_py() for column in columns]
    if len(set(first)) < len(first) and b"" not in first:
        names = [cell for cell in first if not _NUMBER.fullmatch(cell)]
        return len(names) == len(first)  # `_check_names` reports the repeated name
    if sum(not cell for cell in first) > 1:
        return False
    names = [cell.strip().decode("utf-8", "replace") for cell in first]
    is_named = any(len(name) > 2 and label_rank(name) is not None for name in names)
    if is_named and not any(_NUMBER.fullmatch(cell) for cell in first):
        return True  # a column has the name of a label
    marks = {mark.encode() for mark in MISSING_MARKS} | {b""}
    num_names = sum(bool(_IDENTIFIER.fullmatch(cell)) for cell in first)
    evidence = num_texts = 0
    for cell, column in zip(first, columns, strict=True):
        rest = [c for c in column.slice(1, _HEADER_ROWS).to_pylist() if c not in marks]
        if rest and sum(bool(_NUMBER.fullmatch(c)) for c in rest) >= 0.9 * len(rest):
            evidence += not _NUMBER.fullmatch(cell) and cell not in marks
        else:
            num_texts += 1
            if cell in rest:
                return False
    if num_texts == len(columns):
        return num_names == len(columns)
    return evidence > 0 and (num_names >= 0.8 * len(columns) or _counts_up(first))


def _counts_up(cells: list[bytes]) -> bool:
    """Return whether the cells hold 0, 1, 2, ..., as pandas names columns."""
    numbers = [int(cell) for cell in cells if cell.isdigit()]
    return len(numbers) >= 2 and bool((np.diff(numbers) == 1).all())


def _check_names(path: str, names: list[str], line: bytes) -> None:
    """Raise an error if a name repeats or the header is not UTF-8."""
    if not _is_utf8(line):
        raise UserError(
            f"{path}: the header is not text in UTF-8. Convert the file first, for "
            "instance: iconv -f latin1 -t utf-8."
        )
    for name, times in collections.Counter(names).items():
        if times > 1:
            raise UserError(
                f"{path}: the header has the column {name!r} more than once. Give "
                "each column its own name."
            )


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _drop_headers(
    columns: list[pa.Array], names: list[str]
) -> tuple[list[pa.Array], int]:
    """Drop rows that repeat the header; return the columns and the number dropped."""
    repeats = pa.array(np.ones(len(columns[0]), bool))
    for column, name in zip(columns[:8], names, strict=False):
        cell = pa.scalar(name.encode(), pa.large_binary())
        repeats = pc.and_(repeats, pc.equal(column, cell))
    count = pc.sum(repeats).as_py() or 0
    if count:
        columns = [column.filter(pc.invert(repeats)) for column in columns]
    return columns, count


def _show(line: bytes) -> str:
    return repr(line[:60].decode("utf-8", "backslashreplace"))
