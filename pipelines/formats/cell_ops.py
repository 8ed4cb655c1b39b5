"""The cells of a log's columns in TensorFlow operations: numbers, buckets, strings.

# B rows, D dense features, F sparse features, N cells
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from pipelines.formats.buckets import log2_edges
from pipelines.formats.line_rules import LARGEST, NUMBER, SMALLEST
from pipelines.schema import Dense, Schema, Sparse


class Cells(NamedTuple):
    """The cells of a batch of valid rows.

    Attributes:
        numbers: float64 `(B, D)`, before the transforms, with missing ones filled in.
        fields: F string tensors `(B,)`: values, or bags that are not split yet; empty
            where missing.
        is_missing: F bool tensors `(B,)`; `None` if every empty field is missing.
        has_bags: bool `()`, false only if each field is one value.
    """

    numbers: tf.Tensor
    fields: list[tf.Tensor]
    is_missing: list[tf.Tensor | None]
    has_bags: tf.Tensor


def of_texts(
    schema: Schema,
    columns: Mapping[Any, tf.Tensor],
    fills: np.ndarray,
    edges: Mapping[str, Any],
    has_bags: tf.Tensor,
) -> Cells:
    """Return the cells of columns of valid strings.

    Args:
        schema: The schema.
        columns: String tensors `(B,)` by column; float64 for a column that only one
            dense feature reads, with missing numbers filled in.
        fills: float64 `(D,)`, the numbers to use for missing cells.
        edges: The learned edges of buckets, by feature.
        has_bags: False only if each category is one value.
    """
    numbers = [columns[feature.column] for feature in schema.dense]
    texts = [i for i, column in enumerate(numbers) if column.dtype == tf.string]
    if texts:
        stacked = tf.stack([numbers[i] for i in texts], axis=1)
        found = tf.where(
            is_missing(schema, stacked), tf.constant(fills[texts]), read(stacked)
        )
        for i, column in zip(texts, tf.unstack(found, axis=1), strict=True):
            numbers[i] = column
    fields, missing = [], []
    for feature in schema.sparse:
        text = columns[feature.column]
        is_own = is_missing(schema, text)
        has_own = feature.is_bag and b"" not in schema.missing
        if feature.buckets is not None:
            text = bucket_texts(feature, read(text), edges.get(feature.name))
        if feature.buckets is not None or set(schema.missing) - {b""}:
            text = tf.where(is_own, "", text)
        fields.append(text)
        missing.append(is_own if has_own else None)
    return Cells(stack_numbers(numbers, fields[0]), fields, missing, has_bags)


def stack_numbers(numbers: Sequence[tf.Tensor], like: tf.Tensor) -> tf.Tensor:
    """Stack columns `(B,)` to float64 `(B, D)`, even if there are none."""
    if numbers:
        return tf.stack(numbers, axis=1)
    return tf.zeros((tf.size(like), 0), tf.float64)


def check(schema: Schema, columns: Mapping[Any, tf.Tensor]) -> tf.Tensor:
    """Return which rows have valid cells for all features: bool `(B,)`.

    Args:
        schema: The schema.
        columns: String tensors `(B,)` by column.
    """
    numbers = [f for f in schema.dense if not f.integer]
    kinds: list[tuple[Any, Any]] = [
        ([f for f in schema.dense if f.integer], _is_integer),
        ([*numbers, *(f for f in schema.sparse if f.buckets is not None)], is_number),
    ]
    if schema.text.quoted:
        kinds.append(([f for f in schema.sparse if f.buckets is None], _is_one_line))
    valid = []
    for features, is_valid in kinds:
        names = dict.fromkeys(feature.column for feature in features)
        if names:
            stacked = tf.stack([columns[name] for name in names], axis=1)
            is_good = is_missing(schema, stacked) | is_valid(stacked)
            valid.append(tf.reduce_all(is_good, axis=1))
    for feature in schema.sparse:
        if feature.weight_separator is not None:
            text = columns[feature.column]
            valid.append(is_missing(schema, text) | _has_weights(feature, text))
    if not valid:
        return tf.ones(tf.shape(columns[schema.label.column]), tf.bool)
    return tf.reduce_all(tf.stack(valid), axis=0)


def is_missing(schema: Schema, texts: tf.Tensor) -> tf.Tensor:
    """Return which strings mean "missing"."""
    return is_one_of(texts, schema.missing)


def is_one_of(texts: tf.Tensor, values: Sequence[str | bytes]) -> tf.Tensor:
    """Return which strings are in `values`."""
    if not values:
        return tf.zeros(tf.shape(texts), tf.bool)
    found = tf.equal(texts, values[0])
    for value in values[1:]:
        found |= tf.equal(texts, value)
    return found


def is_number(texts: tf.Tensor) -> tf.Tensor:
    """Return which strings are numbers within the range of float32."""
    is_match = tf.strings.regex_full_match(texts, NUMBER)
    return is_match & (tf.abs(read(texts)) <= LARGEST)


def read(texts: tf.Tensor) -> tf.Tensor:
    """Return strings as float64, 0 where they are not numbers; pass numbers through."""
    if texts.dtype != tf.string:
        return without_tiny(texts)
    # `to_number` would also accept "nan", "0x1F" and " 7".
    is_match = tf.strings.regex_full_match(texts, NUMBER)
    numbers = tf.strings.to_number(tf.where(is_match, texts, "0"), tf.float64)
    return without_tiny(numbers)


def without_tiny(numbers: tf.Tensor) -> tf.Tensor:
    """Return float64 with tiny numbers replaced by 0; see `line_rules.SMALLEST`."""
    return tf.where(tf.abs(numbers) < SMALLEST, tf.zeros_like(numbers), numbers)


def split_bags(texts: tf.Tensor, separator: str) -> tuple[tf.Tensor, tf.Tensor]:
    """Split bags `(N,)` into pieces, also empty ones, and the int64 bag of each."""
    pieces = tf.strings.split(texts, separator)
    return pieces.flat_values, pieces.value_rowids()


def split_weights(
    pieces: tf.Tensor, separator: str
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Split pieces of bags at the last weight separator.

    Returns:
        The values; the weights as strings, "1" where there is none; and which pieces
        have a weight.
    """
    mark = "".join(rf"\x{{{ord(letter):x}}}" for letter in separator)
    pattern = rf"\A(\C*){mark}(\C*)\z"
    has_weight = tf.strings.regex_full_match(pieces, rf"\C*{mark}\C*")
    values, weights = (
        tf.strings.regex_replace(pieces, pattern, group, replace_global=False)
        for group in (r"\1", r"\2")
    )
    return values, tf.where(has_weight, weights, "1"), has_weight


def bucket_texts(
    feature: Sparse, numbers: tf.Tensor, edges: Sequence[float] | None
) -> tf.Tensor:
    """Return the category of each number; see `buckets.py`."""
    if feature.buckets == "width":
        return _whole(divide(numbers, np.float64(feature.width)))
    if feature.buckets == "quantile":
        return tf.strings.as_string(_count_edges(edges, numbers))
    small = tf.strings.join(["=", _whole(numbers)])
    large = tf.strings.as_string(_count_edges(log2_edges(), numbers))
    return tf.where(numbers <= 2, small, large)


def divide(numbers: tf.Tensor, divisors: Any) -> tf.Tensor:
    """Divide float64 by constants other than 0, correctly rounded.

    In a graph, TensorFlow replaces ordinary division by a constant by a product with
    its reciprocal, which rounds twice.
    """
    return tf.math.divide_no_nan(numbers, tf.constant(divisors, tf.float64))


def _count_edges(edges, numbers):
    edges = tf.constant(np.asarray(edges, np.float64))
    return tf.searchsorted(edges, numbers, side="right", out_type=tf.int64)


def _whole(numbers):
    # Turns -0 into 0; adding 0 would be optimized away in TensorFlow's graphs.
    whole = tf.floor(numbers)
    whole = tf.where(tf.equal(whole, 0), tf.zeros_like(whole), whole)
    return tf.strings.as_string(whole, precision=0)


def _is_integer(texts):
    is_match = tf.strings.regex_full_match(texts, "-?[0-9]+")
    return is_match & tf.math.is_finite(read(texts))


def _is_one_line(texts):
    return tf.logical_not(tf.strings.regex_full_match(texts, r"\C*[\r\n]\C*"))


def _has_weights(feature, texts):
    """Return in which bags `(N,)` all weights are numbers."""
    pieces, bags = split_bags(texts, feature.separator)
    _, weights, _ = split_weights(pieces, feature.weight_separator)
    is_bad = tf.cast(tf.logical_not(is_number(weights)), tf.int32)
    num_bad = tf.math.unsorted_segment_sum(is_bad, bags, tf.size(texts, tf.int64))
    return tf.equal(num_bad, 0)


def fill_numbers(schema: Schema, learned: Mapping[str, Any]) -> np.ndarray:
    """Return the numbers to use for missing cells: float64 `(D,)`."""
    return np.array([_fill(f, learned) for f in schema.dense], np.float64)


def _fill(feature: Dense, learned: Mapping[str, Any]) -> float:
    if feature.missing is None and feature.is_learned:
        return learned[feature.name]["mean"]
    return feature.missing or 0.0
