"""Random rows, to measure the speed of a model of any shape."""

import dataclasses
import functools

import numpy as np

from pipelines.runtime import UserError
from pipelines.synthetic import distributions
from pipelines.synthetic.blocks import Block, block_ranges, rows_per_block
from pipelines.synthetic.checks import check_click_rate, check_integer, check_sizes
from pipelines.synthetic.source import BagSource
from pipelines.synthetic.truth import stream

DISTRIBUTIONS = ("uniform", "normal")
_BLOCKS = 101  # stream of random numbers


@dataclasses.dataclass(frozen=True)
class Random(BagSource):
    """An endless log of random rows with any number of features, ids and ids in a bag.

    Dense values are uniform in [0, 1), and all labels are drawn with the same
    probability, so there is nothing to learn. Use the rows to measure speed and memory:
    uniform ids are the hardest case for every cache.

    The arguments and its number determine a row, so any range of rows can be generated
    alone.

    Args:
        seed: Random seed, at least 0. Default: 0.
        num_dense: Number of dense features. Default: 13.
        vocabulary_sizes: Number of ids of each sparse feature. Default: those of the
            Criteo Kaggle set, capped at a million.
        distribution: "uniform", or "normal": around the middle of the table with a
            sixth of its size as standard deviation, rounded and clipped to the table
            (0.3 % are clipped). Default: "uniform".
        hotness: Number of ids in a bag, at least 1: one number for all features or one
            for each. Default: 1.
        fixed_hotness: Whether every bag has `hotness` ids; if not, the size of each bag
            is uniform in 1..`hotness`. Default: True.
        click_rate: Probability of a click, in (0, 1). Default: 0.5.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> from pipelines.synthetic import Random
    >>> source = Random(vocabulary_sizes=(100, 7), hotness=(3, 1), num_dense=4)
    >>> block = next(source.blocks(num_rows=5, first_row=1_000_000))
    >>> block.dense.shape, block.ids.shape, block.lengths.tolist()[0]
    ((5, 4), (20,), [3, 1])

    Reference:
        Naumov et al., "Deep Learning Recommendation Model for Personalization and
        Recommendation Systems" (arXiv 1906.00091), section 4.1, and the options
        `rand-data-dist` and `num-indices-per-lookup-fixed` of its code. That code drops
        repeated ids of a bag, so its bags are shorter than requested; here they stay.
        It takes the standard deviation in ids.
    """

    seed: int = 0
    num_dense: int = distributions.NUM_INTEGERS
    vocabulary_sizes: tuple[int, ...] = distributions.VOCABULARY_SIZES
    distribution: str = "uniform"
    hotness: int | tuple[int, ...] = 1
    fixed_hotness: bool = True
    click_rate: float = 0.5

    def __post_init__(self):
        check_integer("seed", self.seed, 0)
        check_integer("num_dense", self.num_dense, 0)
        check_click_rate(self.click_rate)
        sizes = check_sizes("vocabulary_sizes", self.vocabulary_sizes)
        if not sizes:
            raise UserError(
                "`vocabulary_sizes` must have at least one entry. Received: none."
            )
        object.__setattr__(self, "vocabulary_sizes", sizes)
        if self.distribution not in DISTRIBUTIONS:
            raise UserError(
                '`distribution` must be "uniform" or "normal". '
                f"Received: distribution={self.distribution!r}."
            )
        hotness = self.hotness
        if np.ndim(hotness) == 0:
            hotness = (hotness,) * len(sizes)
        for value in hotness:
            check_integer("hotness", value, 1)
        if len(hotness) != len(sizes):
            raise UserError(
                "`hotness` must be one number, or one for each of the "
                f"{len(sizes)} features. Received: {len(hotness)} numbers."
            )
        object.__setattr__(self, "hotness", tuple(map(int, hotness)))

    @property
    def is_one_hot(self) -> bool:
        """True if every bag has one id."""
        return max(self.hotness) == 1

    @functools.cached_property
    def _block_rows(self) -> int:
        return rows_per_block(sum(self.hotness))

    def _blocks(self, start, stop):
        for index, first, end in block_ranges(start, stop, self._block_rows):
            yield self._block(index).rows(first, end)

    def _block(self, index: int) -> Block:
        rng = stream(self.seed, _BLOCKS, index)
        rows, num_features = self._block_rows, len(self.vocabulary_sizes)
        labels = (rng.random(rows) < self.click_rate).astype(np.uint8)
        dense = rng.random((rows, self.num_dense), np.float32)
        hotness = np.asarray(self.hotness, np.int32)
        sizes = np.asarray(self.vocabulary_sizes, np.float64)
        lengths = np.broadcast_to(hotness, (rows, num_features))
        if not self.fixed_hotness:
            u = rng.random((rows, num_features))
            lengths = (u * hotness).astype(np.int32) + np.int32(1)
        if self.fixed_hotness:
            shape = (rows, int(hotness.sum()))
            sizes = np.repeat(sizes, hotness)
        else:
            shape = (int(lengths.sum()),)
            sizes = np.repeat(np.tile(sizes, rows), lengths.reshape(-1))
        ids = self._ids(rng, shape, sizes).astype(np.int32).reshape(-1)
        return Block(labels, dense, ids, np.ascontiguousarray(lengths))

    def _ids(self, rng, shape, sizes):
        """Draw ids, as float64 of `shape`, below `sizes`."""
        if self.distribution == "uniform":
            draws = rng.random(shape)
            draws *= sizes  # stays below sizes; the cast to integers rounds down
            return draws
        draws = rng.standard_normal(shape)
        draws *= sizes / 6.0
        draws += (sizes - 1.0) / 2.0
        np.rint(draws, out=draws)
        return np.clip(draws, 0.0, sizes - 1.0, out=draws)

    def _arguments(self):
        return dataclasses.asdict(self)
