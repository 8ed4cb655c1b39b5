"""The guess of a column's feature, a number or a category, with the reason."""

import re

from pipelines.schema import name_hints
from pipelines.schema.column_facts import ColumnFacts
from pipelines.schema.columns import Dense, Sparse
from pipelines.schema.label_guess import read_as_two_classes

_ENOUGH_ROWS = 50  # to call values unique, or a column constant
_FEW_CODES = 50
_MAX_FLOAT = 3.4e38
_THREE_WORDS = r"(?:[A-Za-z]{2,}[^A-Za-z]+){2}[A-Za-z]{2,}"
_INFINITE = "(?i)^[-+]?inf(?:inity)?$"
_BLANKS = r"^(?:\s+[-+0-9.eE]+\s*|\s*[-+0-9.eE]+\s+)$"
_DECIMAL_COMMA = r"^-?[0-9]+,[0-9]+$"


def guess_feature(
    facts: ColumnFacts, is_group: bool = False
) -> tuple[Dense | Sparse | None, str]:
    """Return the feature of a column, or `None` to leave it out, and the reason.

    Args:
        facts: The facts of the column.
        is_group: Whether it is the column of users, which is a category.
    """
    out = _why_left_out(facts, is_group)
    if out:
        return None, out
    name = re.sub(r"[/\t\r\n]", "_", facts.name)
    name = "" if name == facts.name else name
    if is_group:
        return Sparse(facts.name, name), "a user"
    if facts.pieces is not None:
        pieces = facts.pieces
        why = f"up to {pieces.longest} values by {pieces.separator!r}"
        if facts.is_list:
            why = f"lists of up to {pieces.longest} values"
        if pieces.weight_separator:
            why += f", weights after {pieces.weight_separator!r}"
        return (
            Sparse(
                facts.name,
                name,
                separator=pieces.separator,
                weight_separator=pieces.weight_separator,
            ),
            why,
        )
    if not facts.is_number:
        why = "texts"
        if facts.number_share > 0.9:
            odd = next(text for text in facts.texts(10**6) if not _is_number(text))
            why = f"not all are numbers, such as {odd[:20]!r}"
        return Sparse(facts.name, name), why
    is_id, why = _is_id(facts)
    if is_id:
        return Sparse(facts.name, name), why
    transform, how = _transform(facts)
    return Dense(facts.name, transform, name=name), f"{why}; {how}" if how else why


def _why_left_out(facts: ColumnFacts, is_group: bool) -> str:
    """Return why a column is left out; "" if it is a feature."""
    if not facts.name:
        return "has no name"
    if not facts.is_readable:
        return f"type {facts.type} cannot be read"
    if not facts.num_distinct:
        return "always missing"
    if facts.num_distinct == 1 and not facts.num_missing:
        return "constant"
    if facts.is_list:
        if facts.is_number and not facts.is_integer:
            return "lists of numbers"
        return "" if facts.pieces is not None else "lists whose values have | , ; and ^"
    if is_group:
        return ""
    if facts.is_time:
        return "a time, and not the event's"
    infinite = facts.share_with(_INFINITE)
    if infinite and infinite + facts.number_share == 1:
        return "infinite numbers, which make bad rows"
    if facts.share_with(_BLANKS) > 0.9:
        return "numbers with blanks around them: remove those"
    if facts.share_with(_DECIMAL_COMMA) > 0.9:
        return "numbers with a decimal comma: write a point"
    rank = name_hints.label_rank(facts.name)
    if rank is not None and read_as_two_classes(facts) and facts.num_distinct == 2:
        return "another outcome, known too late to predict with"
    is_sure = facts.num_rows >= _ENOUGH_ROWS
    if facts.is_unique and is_sure and (not facts.is_number or facts.is_integer):
        if not (facts.is_number and name_hints.is_id(facts.name) is False):
            return "unique in each row"
    if name_hints.is_row_id(facts.name) and is_sure:
        if facts.num_distinct > 0.9 * facts.num_rows:
            return "nearly unique in each row"
    if facts.is_number and abs(facts.numbers).max() > _MAX_FLOAT:
        return "numbers beyond float32"
    if facts.is_number:
        return ""
    if facts.share_with(r"[\r\n]") > 0.02:
        return "values with line breaks, which a category must not contain"
    if facts.share_with(r"^[\[{].*[\]}]$") > 0.9:
        return "values in brackets: write them as a|b"
    words = facts.share_with(
        r"[A-Za-z]{2,}[^A-Za-z]+[A-Za-z]{2,}[^A-Za-z]+[A-Za-z]{2,}"
    )
    mostly_own = facts.num_distinct > 0.5 * (facts.num_rows - facts.num_missing)
    if words > 0.5 and mostly_own and facts.share_with(" ") > 0.8 and is_sure:
        return "free text"
    return ""


def _is_id(facts: ColumnFacts) -> tuple[bool, str]:
    """Return whether numbers are ids or codes rather than amounts, and why."""
    if not facts.is_integer:
        return False, "decimal numbers"
    if facts.is_padded:
        return True, "codes with leading zeros"
    numbers = facts.numbers
    low, high = float(numbers.min()), float(numbers.max())
    if (low, high) == (0, 1):
        return False, "a flag, 0 or 1"
    named = name_hints.is_id(facts.name)
    if named is True:
        return True, "integers, ids by the name"
    if named is False:
        return False, "integers, an amount by the name"
    if low < 0:
        return False, "integers below 0 too"
    share = facts.num_distinct / max(1.0, high - low + 1)
    if high >= 1e9 or (low >= 1000 and share < 0.01 and facts.num_distinct < 5000):
        return True, "large integers that repeat"
    if low > 1 and high > 1e6:
        return True, "large integers that repeat"
    q50, q90 = facts.quantiles([0.5, 0.9])
    starts_low = low <= 1 and q50 <= 0.1 * high
    if starts_low and (facts.neighbour_correlation > 0.4 or facts.num_distinct < 8):
        return False, "integers like counts"
    if starts_low and q90 <= 0.2 * high and facts.neighbour_correlation > 0.2:
        return False, "integers like counts"
    if facts.num_distinct <= _FEW_CODES and facts.neighbour_correlation < 0.6:
        return True, f"{facts.num_distinct} integers, like codes"
    if facts.neighbour_correlation > 0.4:
        return False, "integers like a measure"
    return True, "integers like ids: frequencies of neighbours differ"


def _transform(facts: ColumnFacts) -> tuple[str, str]:
    """Return the transform of a number, and why."""
    numbers = facts.numbers
    low, high = float(numbers.min()), float(numbers.max())
    if facts.is_integer and (low, high) == (0, 1):
        return "identity", ""
    q05, q50, q95 = facts.quantiles([0.05, 0.5, 0.95])
    if low >= 0 and high > 10 and (high > 10 * (q50 + 1) or q95 > 4 * (q50 + 1)):
        return "log1p", "heavy tail"
    if low >= -10 and high > 100 and high > 20 * (q50 + 1) and q05 >= 0:
        return "log1p", "heavy tail, few below 0"
    spread = max(abs(low), abs(high))
    if low < 0 and spread > 20 * (max(abs(q05), abs(q95)) + 1):
        return "signed_log1p", "heavy tails"
    return "standardize", ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
