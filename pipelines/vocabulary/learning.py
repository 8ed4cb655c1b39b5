"""Numbers that transforms and buckets learn from the training rows.

Means and standard deviations are computed from sums that are merged block by block,
quantiles from exact counts of the distinct numbers.

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
    """The mean and standard deviation of numbers that arrive in blocks.

    Attributes:
        count: Number of numbers so far.
        mean: Mean of the numbers so far.
    """

    def __init__(self) -> None:
        self.count, self.mean, self._squares = 0, 0.0, 0.0

    def add(self, numbers: np.ndarray) -> None:
        """Add float64 numbers; NaN stands for a missing number.

        Reference:
            Chan, Golub and LeVeque 1983, Algorithms for computing the sample
            variance: merging the sums of two sets.
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
        """Return mean and standard deviation; 0 and 1 if there are no numbers."""
        if not self.count:
            return {"mean": 0.0, "deviation": 1.0}
        deviation = math.sqrt(max(self._squares, 0.0) / self.count)
        return {"mean": self.mean, "deviation": deviation}


def count_numbers(numbers: np.ndarray) -> tuple[Values, np.ndarray]:
    """Return distinct numbers as keys of the same order, and their counts.

    Args:
        numbers: float64; NaN stands for a missing number and is not counted.
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
    """Yield increasing distinct numbers and their counts, some at a time."""
    for counted in counter.ranges():
        yield numbers_of_keys(counted.keys), counted.key_counts


def quantiles(counter: Counter, shares: Sequence[float]) -> list[float]:
    """Return quantiles: the smallest numbers that given shares of all do not exceed.

    Args:
        counter: Counts of numbers.
        shares: Increasing shares, from 0 to 1.

    Returns:
        One number for each share; an empty list if there are no numbers.
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
    """Learn the numbers that a schema needs, block by block.

    Args:
        schema: The schema.
        counters: A `Counter` for each feature with quantiles, by position.
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
            numbers: The numbers of each dense feature that learns from them.
            bucketed: The result of `count_numbers` for each feature with quantiles.
        """
        for position, moments in self._moments.items():
            moments.add(numbers[position])
        for position, counter in self._counters.items():
            counter.add(*bucketed[position])

    def finish(self) -> dict[str, dict[str, Any]]:
        """Return the learned numbers by name of the feature."""
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
        """Yield the buckets of a feature's numbers as `Values`, with their counts."""
        feature = self._schema.sparse[position]
        for numbers, counts in counted_numbers(self._counters[position]):
            texts = bucket_texts(feature, numbers, edges)
            values = distinct_of_texts(pa.array(texts, pa.large_binary()))
            size = len(values.keys) + len(values.texts)
            sums = np.bincount(values.codes, counts, size).astype(np.int64)
            yield values, sums
