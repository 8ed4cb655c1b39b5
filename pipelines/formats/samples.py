"""Made-up rows that cover a vocabulary, to compare serving paths."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.formats.line_rules import LineRules
from pipelines.schema.checks import Column

_UNKNOWN = (b"never seen", b"0c1e8f72")


def sample_lines(
    rules: LineRules, vocabulary: Any, num_lines: int, has_bags: bool = True
) -> list[bytes]:
    """Return lines of known and unknown values, bags, missing and negative numbers.

    Args:
        rules: The rules of the log.
        vocabulary: The vocabulary of the log.
        num_lines: Number of lines, without labels if lines may lack them.
        has_bags: Whether cells may contain several values.
    """
    rng = np.random.default_rng(0)
    pools = {
        feature.name: _pool(rules, feature, vocabulary)
        for feature in rules.schema.sparse
        if feature.buckets is None
    }
    return [_line(rng, rules, pools, has_bags) for _ in range(num_lines)]


def _line(rng, rules, pools, has_bags):
    schema = rules.schema
    bucketed = [feature for feature in schema.sparse if feature.buckets is not None]
    columns = dict.fromkeys(f.column for f in (*schema.dense, *bucketed))
    numbers = [b"%d" % x for x in rng.integers(-2, 5000, len(columns))]
    cells: dict[Column, bytes] = dict(zip(columns, numbers, strict=True))
    for feature in schema.sparse:
        if feature.column in cells:
            continue
        pool = pools[feature.name]
        count = rng.integers(1, 3) if feature.is_bag and has_bags else 1
        picked = [pool[i] for i in rng.integers(0, len(pool), count)]
        if feature.weight_separator is not None:
            mark = feature.weight_separator.encode()
            picked = [v and v + mark + b"%d" % rng.integers(1, 4) for v in picked]
        cells[feature.column] = (feature.separator or "").encode().join(picked)
    missing = schema.missing
    if numbers and missing:
        position = int(rng.integers(0, max(len(numbers), 2)))  # a single one: in half
        if position < len(numbers):
            cells[list(columns)[position]] = b"" if b"" in missing else missing[0]
    if not rules.is_exact:
        text = "1" if schema.label.is_number else schema.label.positive[0]
        cells[schema.label.column] = text.encode()
    places = {place: column for column, place in rules.positions.items()}
    row = [
        _quote(rules, cells.get(places.get(place), b""))  # type: ignore[arg-type]
        for place in range(rules.num_columns)
        if place != rules.label_position or not rules.is_exact
    ]
    # No empty line.
    return schema.text.delimiter.encode().join(row) or (b"0" if columns else b"x")


def _pool(rules, feature, vocabulary) -> Sequence[bytes]:
    """Return values to pick from, all of which are valid in a line."""
    schema = rules.schema
    marks = (feature.separator, feature.weight_separator)
    refused = [text.encode() for text in marks if text is not None]
    if not schema.text.quoted:
        refused.append(schema.text.delimiter.encode())
    known = vocabulary.values(feature.name) if hasattr(vocabulary, "values") else ()
    values = [*_UNKNOWN, *known[:50]]
    values = [v for v in values if not any(text in v for text in refused)]
    return [b"" if b"" in schema.missing else b"-", *values]


def _quote(rules, cell):
    delimiter = rules.schema.text.delimiter.encode()
    if rules.schema.text.quoted and (b'"' in cell or delimiter in cell):
        return b'"%s"' % cell.replace(b'"', b'""')
    return cell
