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

    The first line is an ordinary one, to show to people: known values, mean numbers.

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
    means = _means(rules, vocabulary)
    return [
        _line(rng, rules, pools, has_bags, None if number else means)
        for number in range(num_lines)
    ]


def _means(rules, vocabulary):
    """Return a whole number for each column of numbers: its mean if known, or 1."""
    schema = rules.schema
    bucketed = [feature for feature in schema.sparse if feature.buckets is not None]
    means = dict.fromkeys((f.column for f in (*schema.dense, *bucketed)), b"1")
    for feature in schema.dense:
        learned = vocabulary.learned.get(feature.name, {})
        if "mean" in learned:
            means[feature.column] = b"%d" % round(learned["mean"])
    return means


def _line(rng, rules, pools, has_bags, means):
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
        if means is not None:
            picked = list(pool[: 2 if feature.is_bag and has_bags else 1])
        if feature.weight_separator is not None:
            mark = feature.weight_separator.encode()
            picked = [v and v + mark + b"%d" % rng.integers(1, 4) for v in picked]
        cells[feature.column] = (feature.separator or "").encode().join(picked)
    missing = schema.missing
    if means is not None:
        cells |= means
    elif numbers and missing:
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
    """Return values to pick from, known ones first; all are valid in a line."""
    schema = rules.schema
    marks = (feature.separator, feature.weight_separator)
    refused = [text.encode() for text in marks if text is not None]
    if not schema.text.quoted:
        refused.append(schema.text.delimiter.encode())
    known = vocabulary.values(feature.name) if hasattr(vocabulary, "values") else ()
    values = [*known[:50], *_UNKNOWN]
    values = [v for v in values if not any(text in v for text in refused)]
    return [*values, b"" if b"" in schema.missing else b"-"]


def _quote(rules, cell):
    delimiter = rules.schema.text.delimiter.encode()
    if rules.schema.text.quoted and (b'"' in cell or delimiter in cell):
        return b'"%s"' % cell.replace(b'"', b'""')
    return cell
