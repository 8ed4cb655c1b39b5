"""Turn rows into transformed numbers and ids, equal to those of `Parser`.

# n rows, F features, V ids
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.formats.buckets import bucket_texts
from pipelines.formats.fields import Values, distinct_of_texts
from pipelines.formats.layout import Rows
from pipelines.records.batch import Batch, interleave
from pipelines.schema import Dense, Schema

Learned = Mapping[str, Mapping[str, Any]]


def encode(rows: Rows, vocabulary: Any) -> Batch:
    """Transform the numbers, and look up the ids of the values.

    Args:
        rows: The rows.
        vocabulary: A `Vocabulary` or `HashVocabulary`.

    Returns:
        A batch, with int32 lengths only if a feature has bags or weights.
    """
    schema = vocabulary.schema
    all_values = values_of(rows, schema, vocabulary.learned)
    columns = [
        vocabulary.find(feature, values)[values.codes]
        for feature, values in enumerate(all_values)
    ]
    ids, lengths, id_weights = interleave(
        columns,
        [values.lengths for values in all_values],
        [values.weights for values in all_values] if schema.has_id_weights else None,
        np.int64 if schema.has_growing else np.int32,
    )
    dense = transform(rows.numbers, schema, vocabulary.learned, len(rows.labels))
    return Batch(rows.labels, dense, ids, lengths, id_weights, rows.weights)


def values_of(
    rows: Rows, schema: Schema, learned: Learned, but: Sequence[int] = ()
) -> list[Values]:
    """Return the values of each feature, with numbers in buckets.

    Args:
        rows: The rows.
        schema: The schema.
        learned: The edges of buckets.
        but: Positions of features to skip because their edges are not known yet.
    """
    values = list(rows.values)
    for position, numbers in rows.bucketed.items():
        if position in but:
            continue
        feature = schema.sparse[position]
        edges = learned.get(feature.name, {}).get("edges")
        texts = np.full(len(numbers), b"", object)
        present = ~np.isnan(numbers)
        texts[present] = bucket_texts(feature, numbers[present], edges)
        values[position] = distinct_of_texts(pa.array(texts, pa.large_binary()))
    return values


def transform(
    numbers: Sequence[np.ndarray], schema: Schema, learned: Learned, num_rows: int
) -> np.ndarray:
    """Transform the dense features: float32 `(n, num_dense)`.

    Computed in float64 and rounded once.

    Args:
        numbers: float64 `(n,)` for each dense feature, NaN where missing.
        schema: The schema.
        learned: The numbers that transforms learned, by feature name.
        num_rows: n, for a schema without dense features.
    """
    dense = np.empty((num_rows, len(schema.dense)), np.float32)
    for position, feature in enumerate(schema.dense):
        about = learned.get(feature.name, {})
        dense[:, position] = transform_feature(feature, numbers[position], about)
    return dense


def transform_feature(
    feature: Dense, numbers: np.ndarray, learned: Mapping[str, float]
) -> np.ndarray:
    """Transform one dense feature: float64 `(n,)`."""
    missing = feature.missing
    if missing is None:
        missing = learned["mean"] if feature.is_learned else 0.0
    gaps = np.isnan(numbers)
    if gaps.any():
        numbers = np.where(gaps, missing, numbers)
    if feature.transform == "log1p":
        return np.log(np.maximum(numbers, 0.0) + 1.0)
    if feature.transform == "signed_log1p":
        return np.sign(numbers) * np.log(np.abs(numbers) + 1.0)
    if feature.transform == "standardize":
        return (numbers - learned["mean"]) / (learned["deviation"] or 1.0)
    if feature.transform == "clip":
        low = -np.inf if feature.low is None else feature.low
        high = np.inf if feature.high is None else feature.high
        return np.minimum(np.maximum(numbers, low), high)
    return numbers
