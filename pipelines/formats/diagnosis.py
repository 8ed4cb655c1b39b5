"""Messages that say what a file without valid rows of a Criteo log looks like."""

import collections
import os
import re
from collections.abc import Sequence

from pipelines.files import BlockReader
from pipelines.formats.line_rules import rules, trim
from pipelines.formats.tables import is_parquet
from pipelines.schema import Schema
from pipelines.schema.first_rows import check

_BYTES, _LINES = 1 << 16, 100
_CRITEO = Schema.criteo()
_RULES = rules(_CRITEO)
_NUM_COLUMNS, _NUM_DENSE = len(_CRITEO.columns), len(_CRITEO.dense)
_DENSE_FEATURES = _CRITEO.dense_features
_DELIMITERS = {
    b",": "commas",
    b";": "semicolons",
    b"|": "vertical bars",
    b"\x01": "the character \\x01",
    b" ": "blanks",
}
_LAYOUT = (
    f"A Criteo log has {_NUM_COLUMNS} columns separated by tabs, without a header: the "
    "label, 13 integers and 26 categories."
)
_TABLE = (
    "To read a log with other columns, pass a schema as `schema`: `tf-dlrm schema` "
    "guesses one."
)
_MISSING = (b"null", b"\\n", b"na", b"n/a", b"nan", b"none", b"-", b"?")
_FAULTS = (
    (rb"[\"'].*[\"']", "the integers are in quotes: remove the quotes"),
    (
        rb"-?[0-9]+\.0*",
        "integers are written with a decimal point, as pandas writes a column with "
        'gaps: convert it with astype("Int64") before you save it',
    ),
    (rb"-?[0-9]*\.[0-9]+|-?[0-9.]+[eE][-+]?[0-9]+", "they hold decimal numbers"),
    (rb"\s.*|.*\s", "the integers have blanks around them: remove those"),
    (
        rb"[0-9]{1,3}(,[0-9]{3})+",
        "the integers have thousands separators: remove those",
    ),
)


def no_rows(paths: Sequence[str | os.PathLike], schema: Schema | None = None) -> str:
    """Return the message for files without valid rows; it describes the first file."""
    names = ", ".join(map(str, paths))
    verb = "contains" if len(paths) == 1 else "contain"
    return f"{names} {verb} no valid rows. {explain(paths[0], schema)}".rstrip()


def explain(path: str | os.PathLike, schema: Schema | None = None) -> str:
    r"""Return what a file looks like and what to do; "" if that is unknown.

    Args:
        path: A file with mostly bad lines.
        schema: The columns that it should have; default: Criteo's.

    Example:

    >>> import os, tempfile
    >>> from pipelines.formats import diagnosis
    >>> path = os.path.join(tempfile.mkdtemp(), "log.csv")
    >>> with open(path, "wb") as file:
    ...     _ = file.write(3 * (b"1" + 39 * b",7" + b"\n"))
    >>> diagnosis.explain(path).removeprefix(path).partition(".")[0]
    ' has 40 columns separated by commas'
    """
    path = os.fspath(path)
    if schema is not None and schema != Schema.criteo():
        return (
            "Check that the schema describes these files: `tf-dlrm schema` guesses "
            f"one from the rows of {path}."
        )
    try:
        if is_parquet(path):
            return ""
        block = BlockReader(_BYTES).read(path, 0)
        if not block.strip():
            return ""
        check(path, block)
    except ValueError as error:
        return str(error)
    except OSError:
        return ""
    found = _look(block)
    return f"{path} {found}" if found else ""


def _look(block):
    lines = [trim(line) for line in block.split(b"\n")[:_LINES]]
    lines = [line for line in lines if line.strip()]
    num_columns = _most_common(line.count(b"\t") for line in lines) + 1
    if num_columns in (_NUM_COLUMNS, _NUM_COLUMNS - 1):
        return _look_at_fields(lines, num_columns)
    delimiter = b"\t" if num_columns > 1 else _find_delimiter(lines)
    if delimiter is None:
        return f"has lines without tabs, such as {_show(lines[0])}. {_LAYOUT}"
    num_columns = _most_common(line.count(delimiter) for line in lines) + 1
    name = _DELIMITERS.get(delimiter, "tabs")
    return f"has {num_columns} columns separated by {name}. {_LAYOUT} {_TABLE}"


def _look_at_fields(lines, num_columns):
    """Return which fields are wrong if the number of columns is right."""
    rows = [line.split(b"\t") for line in lines if line.count(b"\t") + 1 == num_columns]
    has_label = num_columns == _NUM_COLUMNS
    first = int(has_label)
    bad = [
        field
        for row in rows
        for field in row[first : first + _NUM_DENSE]
        if field and not re.fullmatch(rb"-?[0-9]+", field)
    ]
    if len(bad) * 3 > len(rows):
        return _look_at_integers(bad)
    labels = collections.Counter(row[0] for row in rows)
    wrong = [label for label, _ in labels.most_common() if label not in (b"0", b"1")]
    if has_label and wrong:
        examples = ", ".join(map(_show, wrong[:3]))
        return f"has labels other than 0 and 1 in its first column, such as {examples}."
    reasons = [_RULES.reason(line, labelled=False) for line in lines]
    if not has_label and not any(reasons):
        return (
            f"has {num_columns} columns: the label, the first column, is missing. Rows "
            "without a label can be scored, but not used to train or evaluate."
        )
    why = next(filter(None, (_RULES.reason(line, has_label) for line in lines)), None)
    return f"has bad lines; the first one: {why}." if why else ""


def _look_at_integers(fields):
    place = f"the columns {_DENSE_FEATURES[0]} .. {_DENSE_FEATURES[-1]}"
    example = _show(collections.Counter(fields).most_common(1)[0][0])
    marks = [field for field in fields if field.lower() in _MISSING]
    if len(marks) * 2 > len(fields):
        return (
            f"marks missing values in {place} as {_show(marks[0])}: write empty fields "
            "instead."
        )
    for pattern, words in _FAULTS:
        if sum(bool(re.fullmatch(pattern, f)) for f in fields) * 2 > len(fields):
            return f"has fields such as {example} in {place}: {words}."
    return (
        f"has fields such as {example} in {place}, which must be integers. Are its "
        f"columns in another order? {_LAYOUT}"
    )


def _find_delimiter(lines):
    """Return the delimiter with the same count in most lines, or `None`."""
    best, columns = None, 1
    for delimiter in _DELIMITERS:
        counts = [line.count(delimiter) for line in lines]
        common = _most_common(counts)
        if common >= columns and counts.count(common) * 2 > len(counts):
            best, columns = delimiter, common + 1
    return best


def _most_common(numbers):
    return collections.Counter(numbers).most_common(1)[0][0]


def _show(field):
    return repr(field[:40].decode("utf-8", "backslashreplace"))
