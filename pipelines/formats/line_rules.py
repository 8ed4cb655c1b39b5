"""The text format of Criteo's click logs, in plain Python.

`criteo.Parser` is the same rules in TensorFlow operations; the tests hold the two
together on hostile lines. No TensorFlow here.
"""

import math
import re

NUM_DENSE = 13
NUM_SPARSE = 26
NUM_COLUMNS = 1 + NUM_DENSE + NUM_SPARSE
DENSE_FEATURES = tuple(f"I{i}" for i in range(1, NUM_DENSE + 1))
SPARSE_FEATURES = tuple(f"C{i}" for i in range(1, NUM_SPARSE + 1))
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

_INTEGER = re.compile(rb"-?[0-9]+")


def trim(line: bytes) -> bytes:
    r"""Return a line without its byte-order mark and its one line end.

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


def reason(line: bytes, labelled: bool = True) -> str | None:
    r"""Say why a line is not a row of a Criteo log.

    Args:
        line: One line, with or without its line end.
        labelled: Whether the label column must be there. If not, lines of 39
            columns (no label) are rows as well as lines of 40.

    Returns:
        `None` for a row, else the reason for a person to read.

    Example:

    >>> from pipelines.formats import line_rules
    >>> line_rules.reason(b"1\t2\n")
    'expected 40 tab-separated columns, found 2'
    """
    line = trim(line)
    if not line:
        return "empty line"
    if b"\r" in line:
        return "carriage return inside the line"
    if b"\n" in line:
        return "line feed inside the line"
    fields = line.split(b"\t")
    if not labelled and len(fields) == NUM_COLUMNS - 1:
        fields.insert(0, b"0")
    if len(fields) != NUM_COLUMNS:
        expected = "40" if labelled else "39 or 40"
        return f"expected {expected} tab-separated columns, found {len(fields)}"
    if fields[0] not in (b"0", b"1"):
        return f"the label must be 0 or 1, found {_shown(fields[0])}"
    for name, field in zip(DENSE_FEATURES, fields[1:], strict=False):
        if field and not _INTEGER.fullmatch(field):
            return f"{name} must be an integer or empty, found {_shown(field)}"
        if field and math.isinf(float(field)):
            return f"{name} is too large for a float64, found {_shown(field)}"
    return None


def _shown(field: bytes) -> str:
    text = repr(field)[1:]
    return text if len(text) <= 40 else f"{text[:36]}...' ({len(field)} bytes)"
