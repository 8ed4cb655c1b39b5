"""Numbers that transforms and buckets learn from the training rows.

Means and deviations come from sums that are merged block by block, quantiles from exact
counts of the distinct numbers.

# K distinct numbers
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipelines.formats.buckets import bucket_texts
from pipelines.formats.fields import Values, distinct_of_texts
from pipelines.schema import Schema
from pipelines.vocabulary.counting import Counter

_SIGN = np.uint64(1 << 63)
_NO_TEXTS = pa.array([], pa.large_binary())


class Moments:
    """Mean and deviation of numbers that come block by block.

    Attributes:
        count: How many there were.
        mean: Their mean.
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, numbers: np.ndarray) -> None:
        """Add float64 numbers; NaN is a missing one.

        Reference:
            Chan, Golub and LeVeque 1983, Algorithms for computing the sample
            variance: sums of two sets, merged.
        """
        numbers = numbers[~np.isnan(numbers)]
        if not len(numbers):
            return
        count, mean = self.count + len(numbers), float(numbers.mean())
        squares = float(((numbers - mean) ** 2).sum())
        shift = mean - self.mean
        self._squares += squares + shift**2 * self.count * len(numbers) / count
        self.mean += shift * len(numbers) / count
        self.count = count

    def describe(self) -> dict[str, float]:
        """Return mean and deviation; 0 and 1 of no numbers."""
        if not self.count:
            return {"mean": 0.0, "deviation": 1.0}
        deviation = math.sqrt(max(self._squares, 0.0) / self.count)
        return {"mean": self.mean, "deviation": deviation}


def count_numbers(numbers: np.ndarray) -> tuple[Values, np.ndarray]:
    """Return distinct numbers as keys that rise with them, and their counts.

    Args:
        numbers: float64; NaN is a missing one and is not counted.
    """
    present = numbers[~np.isnan(numbers)] + 0.0  # no -0
    counted = pa.array(present).value_counts()
    bits = counted.field(0).to_numpy().view(np.uint64)
    keys = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    order = np.argsort(keys)
    counts = counted.field(1).to_numpy()[order]
    return Values(None, None, keys[order], _NO_TEXTS), counts


def numbers_of_keys(keys: np.ndarray) -> np.ndarray:
    """Return the float64 numbers that keys of `count_numbers` stand for."""
    return np.where(keys & _SIGN, keys & ~_SIGN, ~keys).view(np.float64)


def counted_numbers(counter: Counter) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rising distinct numbers and their counts, some at a time."""
    for counted in counter.ranges():
        yield numbers_of_keys(counted.keys), counted.key_counts


def quantiles(counter: Counter, shares: Sequence[float]) -> list[float]:
    """Return the smallest number that at least a share of all does not exceed.

    Args:
        counter: Counts of numbers.
        shares: Rising shares, from 0 to 1.

    Returns:
        One number for each share; nothing where there are no numbers.
    """
    total = sum(int(counts.sum()) for _, counts in counted_numbers(counter))
    if not total:
        return []
    ranks = [max(1, int(np.ceil(share * total))) for share in shares]
    found: list[float] = []
    before = 0
    for numbers, counts in counted_numbers(counter):
        ends = before + np.cumsum(counts)
        while len(found) < len(ranks) and len(ends) and ranks[len(found)] <= ends[-1]:
            place = int(np.searchsorted(ends, ranks[len(found)]))
            found.append(float(numbers[place]))
        before = int(ends[-1]) if len(ends) else before
    return found


class Learning:
    """Learn the numbers of a schema, block by block.

    Args:
        schema: The schema.
        counters: A `Counter` for each feature with quantiles, by its position.
    """

    def __init__(self, schema: Schema, counters: dict[int, Counter]):
        self._schema, self._counters = schema, counters
        self._moments = {
            position: Moments()
            for position, feature in enumerate(schema.dense)
            if feature.is_learned
        }

    def add(self, numbers: dict[int, np.ndarray], bucketed: dict) -> None:
        """Add a block.

        Args:
            numbers: Of each dense feature that is learned, its numbers.
            bucketed: Of each feature with quantiles, its `count_numbers`.
        """
        for position, moments in self._moments.items():
            moments.add(numbers[position])
        for position, counter in self._counters.items():
            counter.add(*bucketed[position])

    def finish(self) -> dict[str, dict[str, Any]]:
        """Return what was learned, by the name of the feature."""
        learned: dict[str, dict[str, Any]] = {
            self._schema.dense[position].name: moments.describe()
            for position, moments in self._moments.items()
        }
        for position, counter in self._counters.items():
            feature = self._schema.sparse[position]
            shares = np.arange(1, feature.num_buckets) / feature.num_buckets
            edges = sorted(set(quantiles(counter, shares.tolist())))
            learned[feature.name] = {"edges": edges}
        return learned

    def bucket_counts(self, position: int, edges: Sequence[float]):
        """Yield the buckets of a feature's numbers as `Values`, and their counts."""
        feature = self._schema.sparse[position]
        for numbers, counts in counted_numbers(self._counters[position]):
            texts = bucket_texts(feature, numbers, edges)
            values = distinct_of_texts(pa.array(texts, pa.large_binary()))
            size = len(values.keys) + len(values.texts)
            sums = np.bincount(values.codes, counts, size).astype(np.int64)
            yield values, sums
