"""Distributions of the columns of a generated Criteo log.

The shares of missing values, the spread of the integers and the vocabulary sizes follow
the Criteo Display Advertising (Kaggle) set. Columns are independent of each other,
except that some are missing together, as they are there.
"""

from typing import NamedTuple

import numpy as np

NUM_INTEGERS = 13
NUM_CATEGORIES = 26

# Sizes in the Kaggle set; the five above a million are capped at a million.
VOCABULARY_SIZES = (
    1_460, 583, 1_000_000, 1_000_000, 305, 24, 12_517, 633, 3, 93_145, 5_683,
    1_000_000, 3_194, 27, 14_992, 1_000_000, 10, 5_652, 2_173, 4, 1_000_000,
    18, 15, 286_181, 105, 142_572,
)  # fmt: skip


class Integer(NamedTuple):
    """A column of values floor(exp(mean + deviation * z)) + shift, with z normal."""

    mean: float
    deviation: float
    shift: int = 0


# I3, I4, I6 and I13 are shifted to start at 1. The parser turns a missing integer into
# 0, so only in these columns can a model distinguish "missing" from every value.
INTEGERS = (
    Integer(0.1, 1.5),  # I1
    Integer(2.9, 2.2, shift=-2),  # I2
    Integer(1.7, 1.4, shift=1),  # I3
    Integer(1.4, 0.9, shift=1),  # I4
    Integer(7.6, 2.3),  # I5
    Integer(3.4, 1.6, shift=1),  # I6
    Integer(0.9, 1.5),  # I7
    Integer(1.8, 1.4),  # I8
    Integer(3.5, 1.6),  # I9
    Integer(0.0, 0.6),  # I10
    Integer(0.5, 0.9),  # I11
    Integer(-0.7, 1.1),  # I12
    Integer(1.4, 1.1, shift=1),  # I13
)
LARGEST_INTEGER = 2_000_000

# (share, integer columns, categorical columns), numbered from 1, missing together.
MISSING = (
    (0.454, (1,), ()),
    (0.215, (3,), ()),
    (0.217, (4, 13), ()),
    (0.026, (5,), ()),
    (0.224, (6,), ()),
    (0.043, (7, 9, 11), ()),
    (0.001, (8,), ()),
    (0.454, (10,), ()),
    (0.765, (12,), ()),
    (0.034, (), (3, 4, 12, 16, 21, 24)),
    (0.121, (), (6,)),
    (0.440, (), (19, 20, 25, 26)),
    (0.762, (), (22,)),
)


def missing_shares() -> np.ndarray:
    """Return the share of rows in which each of the 26 categorical columns is empty."""
    shares = np.zeros(NUM_CATEGORIES)
    for share, _, categories in MISSING:
        shares[[column - 1 for column in categories]] = share
    return shares


def rank_probabilities(vocabulary_size: int, num_ranks: int) -> np.ndarray:
    """Return the probabilities of the `num_ranks` most frequent values of a column.

    They are the integrals of (x + 1) ** -1.1 over [rank, rank + 1), the continuous
    form of Zipf's law, normalized over `vocabulary_size` ranks.
    """
    edges = (np.arange(num_ranks + 1) + 1.0) ** -0.1
    return (edges[:-1] - edges[1:]) / (1.0 - (vocabulary_size + 1.0) ** -0.1)


def sample_ranks(
    rng: np.random.Generator, num_rows: int, vocabulary_sizes: tuple[int, ...]
) -> np.ndarray:
    """Draw ids by `rank_probabilities`: int32 `(num_rows, len(vocabulary_sizes))`.

    With the exponent 1.1 the inverse distribution function is a tenth power, which
    takes a few exact multiplications and no table, however large the vocabulary.
    """
    sizes = np.asarray(vocabulary_sizes, np.float64)
    x = rng.random((num_rows, sizes.size))
    x *= (sizes + 1.0) ** -0.1 - 1.0
    x += 1.0
    x *= x  # x ** 2
    fourth = x * x
    x *= fourth * fourth  # x ** 10
    ranks = np.floor(1.0 / x - 1.0)
    return np.clip(ranks, 0.0, sizes - 1.0).astype(np.int32)


def sample_integers(rng: np.random.Generator, num_rows: int) -> np.ndarray:
    """Draw I1..I13: int64 `(num_rows, 13)`, without missing values."""
    values = rng.standard_normal((num_rows, NUM_INTEGERS))
    values *= [column.deviation for column in INTEGERS]
    values += [column.mean for column in INTEGERS]
    np.floor(np.exp(values, out=values), out=values)
    values += [column.shift for column in INTEGERS]
    return np.minimum(values, LARGEST_INTEGER).astype(np.int64)


def sample_features(
    rng: np.random.Generator, num_rows: int, vocabulary_sizes: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw the features of a log.

    Returns:
        `(integers, integers_missing, categories)`: int64 and bool `(num_rows, 13)`,
        with 0 for a missing integer; int32 `(num_rows, 26)` ranks from 0, with -1 for a
        missing value.
    """
    integers = sample_integers(rng, num_rows)
    categories = sample_ranks(rng, num_rows, vocabulary_sizes)
    integers_missing = np.zeros(integers.shape, bool)
    draws = rng.random((len(MISSING), num_rows))
    for draw, (share, integer_columns, categorical_columns) in zip(
        draws, MISSING, strict=True
    ):
        missing = draw < share
        for column in integer_columns:
            integers_missing[:, column - 1] = missing
        for column in categorical_columns:
            categories[missing, column - 1] = -1
    integers[integers_missing] = 0
    return integers, integers_missing, categories
