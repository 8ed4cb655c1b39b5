"""A schema as a table for display."""

from typing import Any

from pipelines.schema.columns import FALSE_TEXTS, TRUE_TEXTS, Dense, Label, Sparse, Text
from pipelines.schema.growing import Growing
from pipelines.text_tables import align

_DELIMITERS = {
    ",": "CSV",
    "\t": "text separated by tabs",
    " ": "text separated by blanks",
}


def summarize(schema: Any) -> str:
    """Return a table of the features of a schema, and a line about its format."""
    rows = [("feature", "column", "kind", "table")]
    rows.append(("label", str(schema.label.column), _label(schema.label), ""))
    for feature in schema.dense:
        rows.append((feature.name, str(feature.column), _dense(feature), ""))
    for feature in schema.sparse:
        rows.append(
            (feature.name, str(feature.column), _sparse(feature), feature.table)
        )
    for name, kind in (
        ("weight", "weight of a row"),
        ("time", "time of the event"),
        ("group", "groups of GAUC"),
    ):
        if getattr(schema, name) is not None:
            rows.append((name, str(getattr(schema, name)), kind, ""))
    return "\n".join([*align(rows, left=range(4)), _format(schema.format)])


def _label(label: Label) -> str:
    if label.soft:
        return "a probability"
    if label.threshold is not None:
        return f"1 if at least {label.threshold:g}"
    negative = set(label.negative or ())
    if {"1"} <= set(label.positive) <= set(TRUE_TEXTS) and (
        {"0"} <= negative <= set(FALSE_TEXTS)
    ):
        return "1 or 0"
    positive = " or ".join(label.positive)
    if label.negative is None:
        return f"1 if {positive}, else 0"
    return f"1 if {positive}, 0 if {' or '.join(label.negative)}"


def _dense(feature: Dense) -> str:
    words = ["integer" if feature.integer else "number"]
    if feature.transform == "clip":
        low, high = (
            "no limit" if limit is None else f"{limit:g}"
            for limit in (feature.low, feature.high)
        )
        words.append(f"clip to {low} .. {high}")
    elif feature.transform != "identity":
        words.append(feature.transform)
    if feature.missing is not None:
        words.append(f"{feature.missing:g} if missing")
    return ", ".join(words)


def _sparse(feature: Sparse) -> str:
    words = ["category"]
    if feature.is_bag:
        words = [f"bag by {feature.separator!r}"]
        if feature.weight_separator is not None:
            words.append(f"weights after {feature.weight_separator!r}")
        if feature.max_values is not None:
            words.append(f"first {feature.max_values}")
        words.append(feature.combiner)
    if feature.buckets == "quantile":
        words.append(f"{feature.num_buckets} quantiles")
    elif feature.buckets == "width":
        words.append(f"buckets of {feature.width:g}")
    elif feature.buckets == "log2":
        words.append("buckets floor(ln(x)²)")
    if feature.min_count is not None:
        words.append(f"seen {feature.min_count} times")
    if feature.hash_buckets is not None:
        words.append(f"hashed to {feature.hash_buckets:,} rows")
    if isinstance(feature.growing, Growing):
        words.append(f"growing ids in {feature.growing.rows:,} rows")
    if feature.embedding_dim is not None:
        words.append(f"dim {feature.embedding_dim}")
    return ", ".join(words)


def _format(kind: Any) -> str:
    words = "Parquet"
    if isinstance(kind, Text):
        words = _DELIMITERS.get(kind.delimiter, f"text separated by {kind.delimiter!r}")
        words += " with a header" if kind.header else " without a header"
        words += ", quoted" * kind.quoted
    missing = ", ".join(f'"{mark}"' for mark in kind.missing)
    return f"{words}; missing: {missing or 'no mark'}"
