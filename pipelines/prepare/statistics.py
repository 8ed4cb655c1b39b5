"""Counts made while data are prepared: values, integers, gaps, clicks."""

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.formats.fields import Values, count_codes
from pipelines.formats.line_rules import DENSE_FEATURES, NUM_SPARSE, SPARSE_FEATURES
from pipelines.prepare.options import SPLITS
from pipelines.prepare.segments import Content
from pipelines.prepare.splits import LEFT_OUT
from pipelines.vocabulary.counting import Counters

_SIGN = np.int64(-1) << np.int64(63)
_NO_TEXTS = pa.array([], pa.large_binary())
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)


class Counted(NamedTuple):
    """The counts of a block.

    Attributes:
        num_rows: Rows of each split.
        num_clicks: Clicks in each split.
        num_left_out: Rows to train on that are left out.
        of_columns: For each categorical and then each integer column, its distinct
            values and how often each comes.
    """

    num_rows: list[int]
    num_clicks: list[int]
    num_left_out: int
    of_columns: list[tuple[Values, np.ndarray]]


class Statistics:
    """Counts of all columns, in bounded memory.

    Args:
        memory_bytes: Most that the counts may take.
        folder: Folder for those that do not fit.
    """

    def __init__(self, memory_bytes: int, folder):
        names = (*SPARSE_FEATURES, *DENSE_FEATURES)
        self._counters = Counters(names, memory_bytes, folder)
        self.of_values = self._counters.of[:NUM_SPARSE]
        self._of_integers = self._counters.of[NUM_SPARSE:]
        self.num_rows = np.zeros(len(SPLITS), np.int64)
        self.num_clicks = np.zeros(len(SPLITS), np.int64)
        self.num_left_out = 0
        self.num_empty = np.zeros(NUM_SPARSE, np.int64)

    def count(self, content: Content, splits: np.ndarray) -> "Counted":
        """Count a block by itself; may run beside others.

        Args:
            content: The block.
            splits: int8 `(n,)`, the split of each row, or `LEFT_OUT`.
        """
        of_split = [splits == split for split in range(len(SPLITS))]
        left_out = splits == LEFT_OUT
        # Only rows to train on decide which values have an id; all of them, so that
        # the vocabulary is the same at any rate of negatives.
        counted = of_split[0] | left_out
        kept = None if counted.all() else counted
        counts = [count_codes(values, kept) for values in content.values]
        integers = []
        for numbers, times in content.integers:
            order = np.argsort(numbers)
            keys = (numbers[order] ^ _SIGN).view(np.uint64)
            integers.append((Values(None, None, keys, _NO_TEXTS), times[order]))
        return Counted(
            [int(rows.sum()) for rows in of_split],
            [int(content.labels[rows].sum()) for rows in of_split],
            int(left_out.sum()),
            [*zip(content.values, counts, strict=True), *integers],
        )

    def add(self, counted: "Counted") -> None:
        """Add what was counted of a block."""
        self.num_rows += counted.num_rows
        self.num_clicks += counted.num_clicks
        self.num_left_out += counted.num_left_out
        for counter, (values, counts) in zip(
            self._counters.of, counted.of_columns, strict=True
        ):
            counter.add(values, counts)
        for feature, (values, counts) in enumerate(counted.of_columns[:NUM_SPARSE]):
            if len(values.keys) and values.keys[0] == 0:
                self.num_empty[feature] += counts[0]
        self._counters.limit_memory()

    @property
    def num_rows_counted(self) -> int:
        """Rows whose values were counted: those to train on, left out or not."""
        return int(self.num_rows[0]) + self.num_left_out

    def describe_integers(self) -> list[dict]:
        """Gaps and exact quantiles of the 13 integer columns, over all rows read."""
        return [
            {"name": name, **_describe(counter)}
            for name, counter in zip(DENSE_FEATURES, self._of_integers, strict=True)
        ]


def _describe(counter):
    num_distinct = total = 0
    for counted in counter.ranges():
        num_distinct += len(counted.keys)
        total += int(counted.key_counts.sum())
    if not total:
        return {"num_values": 0, "num_distinct": 0, "quantiles": {}}
    # The smallest integer that at least this share of the values does not exceed.
    ranks = [max(1, int(np.ceil(q * total))) for q in QUANTILES]
    found, before = [], 0
    for counted in counter.ranges():
        ends = before + np.cumsum(counted.key_counts)
        while len(found) < len(ranks) and len(ends) and ranks[len(found)] <= ends[-1]:
            place = int(np.searchsorted(ends, ranks[len(found)]))
            found.append(int(counted.keys[place].view(np.int64) ^ _SIGN))
        before = int(ends[-1]) if len(ends) else before
    quantiles = {f"{q:g}": n for q, n in zip(QUANTILES, found, strict=True)}
    return {
        "num_values": total,
        "num_distinct": num_distinct,
        "quantiles": quantiles,
    }
