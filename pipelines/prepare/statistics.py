"""Counts made during a preparation: values, numbers, missing values, clicks."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.formats.fields import Values
from pipelines.prepare.options import SPLITS
from pipelines.prepare.segments import Content
from pipelines.prepare.splits import LEFT_OUT
from pipelines.schema import Schema
from pipelines.vocabulary.building import ValueCounts
from pipelines.vocabulary.learning import counted_numbers, quantiles

_NO_TEXTS = pa.array([], pa.large_binary())
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


class Counted(NamedTuple):
    """The counts of a block.

    Attributes:
        num_rows: Number of rows in each split.
        num_clicks: Number of clicks in each split.
        num_left_out: Number of training rows that are left out.
        num_empty: Number of missing training values of each sparse feature.
        of_values: The result of `ValueCounts.count`.
        of_numbers: The distinct numbers of each dense feature, and their counts.
    """

    num_rows: list[int]
    num_clicks: list[float]
    num_left_out: int
    num_empty: list[int]
    of_values: Any
    of_numbers: list[tuple[np.ndarray, np.ndarray]]


class Statistics:
    """Counts of all columns, in bounded memory.

    Args:
        schema: The columns.
        memory_bytes: Maximum memory for the counts, in bytes.
        folder: Folder for counts that do not fit.
    """

    def __init__(self, schema: Schema, memory_bytes: int, folder):
        self._schema = schema
        names = [f"dense-{position}" for position in range(len(schema.dense))]
        self.of_values = ValueCounts(schema, memory_bytes, folder, names)
        self.num_rows = np.zeros(len(SPLITS), np.int64)
        self.num_clicks = np.zeros(len(SPLITS), np.float64)
        self.num_left_out = 0
        self.num_empty = np.zeros(len(schema.sparse), np.int64)

    def count(self, content: Content, splits: np.ndarray) -> "Counted":
        """Count one block; several threads may do this at the same time.

        Args:
            content: The block.
            splits: int8 `(n,)`, the split of each row, or `LEFT_OUT`.
        """
        of_split = [splits == split for split in range(len(SPLITS))]
        left_out = splits == LEFT_OUT
        labels = content.rows.labels
        # Only training rows decide which values get an id, but all of them, so that the
        # vocabulary does not depend on the negative sampling rate.
        counted = of_split[0] | left_out
        kept = None if counted.all() else counted
        of_values = self.of_values.count(content.rows, kept)
        return Counted(
            [int(rows.sum()) for rows in of_split],
            [float(labels[rows].sum(dtype=np.float64)) for rows in of_split],
            int(left_out.sum()),
            self.of_values.count_empty(content.rows, of_values, kept),
            of_values,
            content.counted,
        )

    def add(self, counted: "Counted") -> None:
        """Add the counts of a block."""
        self.num_rows += counted.num_rows
        self.num_clicks += counted.num_clicks
        self.num_left_out += counted.num_left_out
        self.num_empty += counted.num_empty
        for counter, (keys, counts) in zip(
            self.of_values.others, counted.of_numbers, strict=True
        ):
            counter.add(Values(None, None, keys, _NO_TEXTS), counts)
        self.of_values.add(counted.of_values)

    @property
    def num_rows_counted(self) -> int:
        """Number of rows whose values were counted: training rows, left out or not."""
        return int(self.num_rows[0]) + self.num_left_out

    def describe_numbers(self) -> list[dict]:
        """Return missing shares and exact quantiles of the dense features."""
        return [
            {"name": feature.name, **_describe(counter, feature.integer)}
            for feature, counter in zip(
                self._schema.dense, self.of_values.others, strict=True
            )
        ]


def _describe(counter, is_integer):
    num_distinct = total = 0
    for numbers, counts in counted_numbers(counter):
        num_distinct += len(numbers)
        total += int(counts.sum())
    # The smallest number that at least this share of the values does not exceed.
    found = quantiles(counter, QUANTILES)
    if is_integer:
        found = [int(x) if abs(x) < 2.0**63 else x for x in found]
    return {
        "num_values": total,
        "num_distinct": num_distinct,
        "quantiles": {f"{q:g}": n for q, n in zip(QUANTILES, found, strict=False)},
    }
