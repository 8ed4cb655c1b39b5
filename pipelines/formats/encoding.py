"""Rows as columns -> transformed numbers and ids, equal to what `Parser` gives.

# n rows, F = 26 features, V ids
"""

from typing import Any

import numpy as np

from pipelines.formats.line_rules import NUM_DENSE
from pipelines.formats.text import Rows
from pipelines.records.store import Batch


def encode(rows: Rows, vocabulary: Any) -> Batch:
    """Transform the integers and number the values.

    Args:
        rows: The rows.
        vocabulary: A `Vocabulary` or `HashVocabulary`.

    Returns:
        A batch; with lengths (int32) only if a feature has bags.
    """
    columns = []
    for feature, values in enumerate(rows.values):
        columns.append(vocabulary.find(feature, values)[values.codes])
    ids, lengths = interleave(columns, [values.lengths for values in rows.values])
    return Batch(rows.labels, transform(rows.integers), ids, lengths)


def transform(integers: list[np.ndarray]) -> np.ndarray:
    """log(x + 1) of integers, those below 0 as 0: float32 `(n, 13)`.

    Computed in float64 and rounded once.
    """
    dense = np.empty((len(integers[0]), NUM_DENSE), np.float32)
    for column, numbers in enumerate(integers):
        dense[:, column] = np.log(np.maximum(numbers, 0.0) + 1.0)
    return dense


def interleave(columns, lengths) -> tuple[np.ndarray, np.ndarray | None]:
    """Ids by feature -> ids by row.

    Args:
        columns: F int32 arrays of ids.
        lengths: F arrays `(n,)` of how many each row has; `None` for one each.

    Returns:
        int32 `(n, F)` and `None`; or, if a feature has lengths, int32 `(V,)` and int32
        lengths `(n, F)`.
    """
    if all(counts is None for counts in lengths):
        ids = np.empty((len(columns[0]), len(columns)), np.int32)
        for feature, column in enumerate(columns):
            ids[:, feature] = column
        return ids, None
    num_rows = next(len(counts) for counts in lengths if counts is not None)
    lengths_nF = np.ones((num_rows, len(columns)), np.int32)
    for feature, counts in enumerate(lengths):
        if counts is not None:
            lengths_nF[:, feature] = counts
    ends = np.cumsum(lengths_nF.reshape(-1), dtype=np.int64)
    starts_nF = (ends - lengths_nF.reshape(-1)).reshape(lengths_nF.shape)
    ids = np.empty(int(lengths_nF.sum(dtype=np.int64)), np.int32)
    for feature, column in enumerate(columns):
        counts = lengths_nF[:, feature]
        # Of each id its place: where its bag begins, and where it is in the bag.
        begins = starts_nF[:, feature] - (np.cumsum(counts) - counts)
        ids[np.repeat(begins, counts) + np.arange(len(column))] = column
    return ids, lengths_nF
