"""An independent reading of one line by a schema: slow, and as obvious as can be.

It shares no code with the package but the schema itself.
"""

import decimal
import math
import re
from typing import NamedTuple

import numpy as np

_FLOAT32 = float(np.finfo(np.float32).max)


class Row(NamedTuple):
    """A valid row.

    Attributes:
        label: 0, 1 or a share; `None` where the line has none.
        dense: A number of each dense feature, float32.
        bags: Of each sparse feature `(value, weight)` pairs; `b""` is a missing value.
        sample_weight: float32, or `None`.
    """

    label: float | None
    dense: list[np.float32]
    bags: list[list[tuple[bytes, float]]]
    sample_weight: np.float32 | None


class _Bad(Exception):
    pass


def parse(line, schema, learned=None, labelled=True):
    """Return the `Row` of a line, or `None` for a bad row."""
    try:
        return _parse(line, schema, learned or {}, labelled)
    except _Bad:
        return None


def split(line, delimiter, quoted):
    """Return the cells of a line without its end; `None` if there are none."""
    try:
        return _split(line, delimiter, quoted)
    except _Bad:
        return None


def _parse(line, schema, learned, labelled):
    if line[:3] == bytes([0xEF, 0xBB, 0xBF]):
        line = line[3:]
    if line[-2:] == b"\r\n":
        line = line[:-2]
    elif line[-1:] in (b"\r", b"\n"):
        line = line[:-1]
    text = schema.text
    cells = _split(line, text.delimiter.encode(), text.quoted)
    names, places, width = list(text.columns), {}, 0
    if names:
        width = len(names)
        places = {
            c: c if isinstance(c, int) else names.index(c) for c in schema.columns
        }
    elif all(isinstance(c, int) for c in schema.columns):
        places = {c: c for c in schema.columns}
        if len(cells) <= max(places):
            raise _Bad
        width = len(cells)
    else:
        width = len(schema.columns)
        places = {c: i for i, c in enumerate(schema.columns)}
    has_label = True
    if len(cells) == width - 1 and not labelled:
        cells.insert(places[schema.label.column], b"")
        has_label = False
    if len(cells) != width:
        raise _Bad
    missing = [text.encode() for text in schema.format.missing]
    of = {column: cells[place] for column, place in places.items()}
    label = (
        _label(of[schema.label.column], schema.label, missing) if has_label else None
    )
    dense = [_dense(of[f.column], f, missing, learned) for f in schema.dense]
    bags = [_bag(of[f.column], f, missing, learned) for f in schema.sparse]
    weight = None
    if labelled and schema.weight is not None:
        cell = of[schema.weight]
        if cell in missing or _number(cell) < 0:
            raise _Bad
        weight = np.float32(_number(cell))
    if labelled and schema.time is not None:
        cell = of[schema.time]
        if cell in missing:
            raise _Bad
        if not _is_time(cell):
            _number(cell)
    return Row(label, dense, bags, weight)


def _split(line, delimiter, quoted):
    if not line:
        raise _Bad
    if not quoted:
        if b"\n" in line or b"\r" in line:
            raise _Bad
        return line.split(delimiter)
    cells, cell, state = [], b"", "start"
    for code in line:
        byte = bytes([code])
        if state in ("start", "plain"):
            if byte == delimiter:
                cells.append(cell)
                cell, state = b"", "start"
            elif byte == b'"' and state == "start":
                state = "quoted"
            elif byte in (b'"', b"\n", b"\r"):
                raise _Bad
            else:
                cell, state = cell + byte, "plain"
        elif state == "quoted":
            if byte == b'"':
                state = "after quote"
            else:
                cell += byte
        elif byte == b'"':
            cell, state = cell + byte, "quoted"
        elif byte == delimiter:
            cells.append(cell)
            cell, state = b"", "start"
        else:
            raise _Bad
    if state == "quoted":
        raise _Bad
    return [*cells, cell]


def _number(cell):
    # What Python reads, less what no log means: nan, inf, 1_000, blanks around.
    if not cell or any(c not in b"0123456789+-.eE" for c in cell):
        raise _Bad
    try:
        number = float(cell)
    except ValueError:
        raise _Bad from None
    if not abs(number) <= _FLOAT32:
        raise _Bad
    return number if abs(number) >= float(np.finfo(np.float32).tiny) else 0.0


def _label(cell, label, missing):
    if label.soft or label.threshold is not None:
        if cell in missing:
            raise _Bad
        number = _number(cell)
        if label.soft:
            if not 0 <= number <= 1:
                raise _Bad
            return float(np.float32(number))
        return float(number >= label.threshold)
    if cell in [text.encode() for text in label.positive]:
        return 1.0
    if label.negative is None:
        if cell in missing:
            raise _Bad
        return 0.0
    if cell in [text.encode() for text in label.negative]:
        return 0.0
    raise _Bad


def _dense(cell, feature, missing, learned):
    own = learned.get(feature.name, {})
    if cell in missing:
        number = feature.missing
        if number is None:
            number = own["mean"] if feature.transform == "standardize" else 0.0
    elif feature.integer:
        digits = cell[1:] if cell[:1] == b"-" else cell
        if not digits or any(c not in b"0123456789" for c in digits):
            raise _Bad
        number = float(cell)
        if math.isinf(number):
            raise _Bad
    else:
        number = _number(cell)
    if feature.transform == "log1p":
        number = math.log(max(number, 0.0) + 1.0)
    elif feature.transform == "signed_log1p":
        number = math.copysign(math.log(abs(number) + 1.0), number)
    elif feature.transform == "standardize":
        number = (number - own["mean"]) / (own["deviation"] or 1.0)
    elif feature.transform == "clip":
        if feature.low is not None and number < feature.low:
            number = feature.low
        if feature.high is not None and number > feature.high:
            number = feature.high
    with np.errstate(over="ignore"):
        return np.float32(number)


def _bag(cell, feature, missing, learned):
    if cell in missing:
        return [(b"", 1.0)]
    if feature.buckets is not None:
        return [(_bucket(_number(cell), feature, learned), 1.0)]
    if b"\n" in cell or b"\r" in cell:
        raise _Bad
    if feature.separator is None:
        return [(cell, 1.0)]
    bag = []
    for piece in cell.split(feature.separator.encode()):
        weight = 1.0
        mark = feature.weight_separator and feature.weight_separator.encode()
        if mark and mark in piece:
            place = piece.rindex(mark)
            weight = float(np.float32(_number(piece[place + len(mark) :])))
            piece = piece[:place]
        if piece:
            bag.append((piece, weight))
    return bag if feature.max_values is None else bag[: feature.max_values]


def _bucket(number, feature, learned):
    if feature.buckets == "width":
        return b"%d" % math.floor(number / feature.width)
    if feature.buckets == "quantile":
        return b"%d" % sum(edge <= number for edge in learned[feature.name]["edges"])
    if number <= 2:
        return b"=%d" % math.floor(number)
    with decimal.localcontext(prec=50):
        return b"%d" % math.floor(decimal.Decimal(number).ln() ** 2)


def _is_time(cell):
    found = re.fullmatch(
        rb"(\d{4})-(\d\d)-(\d\d)"
        rb"(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.\d{1,9})?)?(?:Z|[+-](\d\d):(\d\d))?)?",
        cell,
    )
    if not found:
        return False
    year, month, day, *clock = (int(part or 0) for part in found.groups())
    is_leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    days = [31, 28 + is_leap, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    limits = (23, 59, 59, 23, 59)
    return (
        year >= 1
        and 1 <= month <= 12
        and 1 <= day <= days[month - 1]
        and all(part <= limit for part, limit in zip(clock, limits, strict=True))
    )
