"""Recognition of the built-in layouts from the first rows of a log."""

from pipelines.schema import layouts
from pipelines.schema.column_facts import ColumnFacts
from pipelines.schema.columns import Text
from pipelines.schema.first_rows import FirstRows
from pipelines.schema.schema import Schema


def find(
    rows: FirstRows, facts: list[ColumnFacts], label: str | None
) -> tuple[str, Schema] | None:
    """Return the name and schema of the built-in layout of a log, or `None`.

    Args:
        rows: The first rows.
        facts: The facts of all columns.
        label: Name of the label's column, if the user gave it.
    """
    text = rows.format
    if not isinstance(text, Text):
        return None
    for name in layouts.NAMES:
        schema = layouts.get(name)
        known = schema.text
        if text.delimiter != known.delimiter or text.header != known.header:
            continue
        if len(rows.names) != len(known.columns):
            continue
        if known.header:
            fits = rows.names == tuple(known.columns)
        elif name == "criteo":
            fits = _is_criteo(facts)
        else:
            fits = _is_kdd12(facts)
        names = dict(zip(known.columns, facts, strict=True))
        place = names[str(schema.label.column)]
        fits = fits and (
            place.is_number
            if schema.label.is_number
            else set(place.texts(9))
            <= {*schema.label.positive, *(schema.label.negative or ())}
        )
        if fits and label in (None, schema.label.column, place.name):
            return name, schema
    return None


def _is_criteo(facts: list[ColumnFacts]) -> bool:
    integers = facts[1:14]
    return all(not one.num_distinct or one.is_integer for one in integers) and all(
        one.mean_length <= 16 for one in facts[14:]
    )


def _is_kdd12(facts: list[ColumnFacts]) -> bool:
    if not all(one.is_integer and one.numbers.min() >= 0 for one in facts):
        return False
    clicks, impressions, depth, position = (facts[i] for i in (0, 1, 5, 6))
    return bool(
        clicks.numbers.max() <= impressions.numbers.max()
        and impressions.numbers.min() >= 1
        and position.numbers.max() <= depth.numbers.max() <= 10
        and position.numbers.min() >= 1
    )
