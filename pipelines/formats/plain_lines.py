"""The regular expression of plain lines, the common kind of valid rows.

A plain line is ASCII with nothing to trim and no quotes; its numbers are short and its
cells contain one value each. One pass of RE2 validates it, and it can be split without
further checks.
"""

import itertools
import re

from pipelines.formats.line_rules import ISO_TIME, NUMBER, LineRules
from pipelines.schema import Dense, Label, Sparse
from pipelines.schema.checks import Column

# RE2 expands a pattern before it runs it, so wide logs are checked column by column.
MOST_COLUMNS = 150
_DIGITS = r"[0-9]{1,15}"  # exact in float64
_UNSIGNED = rf"(?:{_DIGITS}(?:\.[0-9]{{0,15}})?|\.[0-9]{{1,15}})(?:[eE][-+]?0?[0-9])?"
_SHORT_INTEGER = rf"-?{_DIGITS}"
_SHORT_NUMBER = rf"[-+]?{_UNSIGNED}"
_SHARE = r"(?:0(?:\.[0-9]{0,15})?|1(?:\.0{0,15})?|\.[0-9]{1,15})"


def plain_pattern(
    rules: LineRules, labelled: bool, has_bags: bool = False
) -> str | None:
    """Return the pattern of plain lines, for RE2.

    Args:
        rules: The rules of the log.
        labelled: Whether the label is required.
        has_bags: Whether cells may contain several values. Such lines are not plain,
            but can be checked as fast.

    Returns:
        The pattern; `None` for logs that are too wide or too complex for a pattern.
    """
    if rules.num_columns > MOST_COLUMNS:
        return None
    positions = {position: column for column, position in rules.positions.items()}
    if not labelled:  # weight and time are not checked, unless they are also features
        schema = rules.schema
        read = {f.column for f in (*schema.dense, *schema.sparse)}
        for column in {schema.weight, schema.time} - {None, schema.label.column} - read:
            del positions[rules.positions[column]]
    cells = []
    for position in range(rules.num_columns):
        column = positions.get(position)
        cell = (
            _text(rules)
            if position not in positions
            else _cell(
                rules,
                column,
                has_bags,  # type: ignore[arg-type]
            )
        )
        if cell is None:
            return None
        cells.append(cell)
    delimiter, label = _literal(rules.schema.text.delimiter), rules.label_position
    if not rules.is_exact:
        return f"{_row(cells, delimiter)}(?:{delimiter}{_text(rules)})*"
    if labelled:
        return _row(cells, delimiter)
    rest = [*cells[:label], *cells[label + 1 :]]
    if label == 0:
        return f"(?:{cells[0]}{delimiter})?{_row(rest, delimiter)}"
    if label == len(rest):
        return f"{_row(rest, delimiter)}(?:{delimiter}{cells[label]})?"
    return f"(?:{_row(cells, delimiter)}|{_row(rest, delimiter)})"


def bag_marks(rules: LineRules) -> str | None:
    """Return the pattern of a byte that occurs in every line with several values.

    Returns:
        The pattern; `""` if there are no bags; `None` if there is no such pattern.
    """
    marks = _first_bytes(f for f in rules.schema.sparse if f.is_bag)
    if marks and (b"" not in rules.schema.missing or max(marks) > 127):
        return None  # an empty cell is an empty bag, or RE2 cannot read the bytes
    return f"[{''.join(_code(mark) for mark in sorted(marks))}]" if marks else ""


def _row(cells: list[str], delimiter: str) -> str:
    cells = [cells[0], *(f"{delimiter}{cell}" for cell in cells[1:])]
    return "".join(
        f"(?:{cell}){{{count}}}" if count > 1 else cell
        for cell, count in ((c, len(list(g))) for c, g in itertools.groupby(cells))
    )


def _cell(rules: LineRules, column: Column, has_bags: bool) -> str | None:
    """Return the pattern of a column that the schema reads, or `None`."""
    schema = rules.schema
    missing = set(schema.missing)
    has_numbers = any(re.fullmatch(NUMBER, text) for text in schema.format.missing)
    features = [f for f in (*schema.dense, *schema.sparse) if f.column == column]
    roles = [name for name in ("weight", "time") if getattr(schema, name) == column]
    is_label = schema.label.column == column
    if is_label or roles:
        if len(features) + len(roles) + is_label > 1 or (has_numbers and not is_label):
            return None
        if is_label:
            return _label(rules, schema.label, missing, has_numbers)
        time = f"(?:{ISO_TIME}|{_SHORT_NUMBER})"
        return _UNSIGNED if roles == ["weight"] else time
    numbers = [f for f in features if isinstance(f, Dense) or f.buckets is not None]
    texts = [f for f in features if isinstance(f, Sparse) and f.buckets is None]
    if not numbers:
        bags = [f for f in texts if f.is_bag]
        if has_bags and not any(f.weight_separator for f in bags):
            return _text(rules)
        return _text(rules, _first_bytes(bags), not bags or b"" in missing)
    if any(f.is_bag for f in texts):
        return None
    is_integer = any(isinstance(f, Dense) and f.integer for f in numbers)
    kinds = [_SHORT_INTEGER if is_integer else _SHORT_NUMBER]
    for text in sorted(missing - {b""}):
        if re.fullmatch(_text(rules), text.decode()):
            kinds.append(_literal(text.decode()))
    kind = kinds[0] if len(kinds) == 1 else f"(?:{'|'.join(kinds)})"
    return f"(?:{kind})?" if b"" in missing else kind


def _label(
    rules: LineRules, label: Label, missing: set[bytes], has_numbers: bool
) -> str | None:
    if label.is_number:
        kind = _SHARE if label.soft else _SHORT_NUMBER
        return None if has_numbers else kind
    if label.negative is None:
        is_known = missing <= {b""} and "" not in label.positive
        return _text(rules, can_be_empty=not missing) if is_known else None
    texts = [t for t in (*label.negative, *label.positive) if t.isascii()]
    texts = [_literal(t) for t in texts if re.fullmatch(_text(rules), t)]
    return f"(?:{'|'.join(texts)})" if texts else None


def _text(
    rules: LineRules, excluded: set[int] | None = None, can_be_empty: bool = True
) -> str:
    """Return a pattern of ASCII without delimiters, line ends and excluded bytes."""
    excluded = {10, 13, ord(rules.schema.text.delimiter), *(excluded or ())}
    if rules.schema.text.quoted:
        excluded.add(ord('"'))
    ranges, start = [], 0
    for code in sorted(code for code in excluded | {128} if code <= 128):
        if start == code - 1:
            ranges.append(_code(start))
        elif start < code:
            ranges.append(f"{_code(start)}-{_code(code - 1)}")
        start = code + 1
    return f"[{''.join(ranges)}]{'*' if can_be_empty else '+'}"


def _first_bytes(features) -> set[int]:
    marks = [(f.separator, f.weight_separator) for f in features]
    return {text.encode()[0] for pair in marks for text in pair if text}


def _literal(text: str) -> str:
    return "".join(_code(code) for code in text.encode())


def _code(code: int) -> str:
    return chr(code) if chr(code).isalnum() and code < 128 else rf"\x{code:02x}"
