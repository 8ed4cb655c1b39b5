"""The guess of a log's label: its column, and the cells that mean a click."""

from collections.abc import Sequence

from pipelines.runtime import UserError
from pipelines.schema import name_hints
from pipelines.schema.column_facts import ColumnFacts
from pipelines.schema.columns import FALSE_TEXTS, TRUE_TEXTS, Label

_YES = ("yes", "y", "t", "click", "clicked", "positive", "pos", "buy", "bought")
_NO = ("no", "n", "f", "noclick", "no_click", "not_clicked", "negative", "neg", "none")
_MINUS = ("-1", "-1.0")
_WAYS = (
    "texts such as yes and no, true and false, 1 and 0, 1 and -1, or 2 and 1; "
    "probabilities; ratings; or counts of clicks"
)


def read_as_two_classes(facts: ColumnFacts) -> Label | None:
    """Return the label of a column of two strings, such as 0 and 1; else `None`."""
    if not facts.is_readable or facts.is_list or not 1 <= facts.num_distinct <= 6:
        return None
    texts = facts.texts(6)
    if set(texts) <= {*TRUE_TEXTS, *FALSE_TEXTS}:
        return Label(facts.name)
    if set(texts) <= {*TRUE_TEXTS, *_MINUS}:
        return Label(facts.name, negative=(*FALSE_TEXTS, *_MINUS))
    yes = [text for text in texts if text.lower() in _YES]
    no = [text for text in texts if text.lower() in _NO]
    if yes and no and len(yes) + len(no) == len(texts):
        return Label(facts.name, positive=sorted(yes), negative=sorted(no))
    return None


def read_as_number(facts: ColumnFacts) -> tuple[Label, str] | None:
    """Return the label of a column of numbers, and the reason; else `None`."""
    if not facts.is_number:
        return None
    numbers = facts.numbers
    low, high = float(numbers.min()), float(numbers.max())
    if 0 <= low and high <= 1 and not facts.is_integer:
        return Label(facts.name, soft=True), "probabilities from 0 to 1: soft labels"
    halves = bool(((numbers * 2) % 1 == 0).all())
    if facts.num_distinct <= 11 and halves and 0 <= low and 3 < high <= 5:
        return Label(facts.name, threshold=4), "ratings: at least 4 counts as a click"
    if facts.num_distinct <= 21 and halves and 0 <= low and 7 < high <= 10:
        return Label(facts.name, threshold=8), "ratings: at least 8 counts as a click"
    if facts.is_integer and (low, high, facts.num_distinct) == (1, 2, 2):
        return Label(facts.name, threshold=2), "1 and 2: 2 counts as a click"
    if low == 0 and facts.is_integer:
        return Label(facts.name, threshold=1), "counts: at least 1 counts as a click"
    return None


def find(facts: Sequence[ColumnFacts], column: str | None) -> tuple[Label, str]:
    """Return the label of a log, and the reason.

    Args:
        facts: The facts of all columns.
        column: Name of the label's column; default: look for it.

    Raises:
        ValueError: If no column looks like the label, or `column` does not.
    """
    if column is not None:
        return _find_named(facts, column)
    ranked = []
    for place, one in enumerate(facts):
        rank = name_hints.label_rank(one.name)
        read = _read(one) if rank is not None else None
        if read is not None:
            ranked.append((read_as_two_classes(one) is None, rank, place, read))
    if ranked:
        label, why = min(ranked)[-1]
        return label, f"its name; {why}"
    pairs = [one for one in facts if read_as_two_classes(one) and one.num_distinct == 2]
    read = _read(facts[0])
    if len(pairs) == 1:
        read = _read(pairs[0])
        if read is not None:
            return read[0], "the only column of two values"
    elif pairs and pairs[0] is facts[0] and read is not None:
        return read[0], "the first column, of two values"
    elif not pairs and read is not None and _counts_clicks(facts[0]):
        return read[0], f"the first column; {read[1]}"
    if pairs:
        candidates = ", ".join(repr(one.name) for one in pairs[:10])
        which = f"Columns with two values: {candidates}."
    else:
        names = [one.name for one in facts[:10]]
        which = f"No column has two values. The columns: {', '.join(map(repr, names))}"
        which += ", ..." if len(facts) > 10 else "."
    raise UserError(
        f"No column looks like the label. {which} Name the right one with `label`."
    )


def _counts_clicks(facts: ColumnFacts) -> bool:
    """Return whether a column without a telling name may count a row's clicks."""
    if facts.num_missing or not facts.is_integer or facts.num_distinct > 50:
        return False
    return facts.quantiles([0.8])[0] <= 1


def _find_named(facts: Sequence[ColumnFacts], column: str) -> tuple[Label, str]:
    for one in facts:
        if one.name == column:
            label = _read(one)
            if label is None:
                texts = ", ".join(map(repr, one.texts(5)))
                raise UserError(
                    f"The column {column!r} cannot be read as the label: it contains "
                    f"{texts or 'no values'}. A label can be {_WAYS}."
                )
            return label[0], f"you named it; {label[1]}"
    names = ", ".join(repr(one.name) for one in facts[:20])
    raise UserError(f"There is no column {column!r}. The columns: {names}.")


def _read(facts: ColumnFacts) -> tuple[Label, str] | None:
    label = read_as_two_classes(facts)
    if label is None:
        return read_as_number(facts)
    if label.negative and "-1" in label.negative:
        return label, "1 and -1"
    return label, " and ".join(sorted(facts.texts(6), reverse=True)[:4])
