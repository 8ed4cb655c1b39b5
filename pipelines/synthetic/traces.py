"""Rows whose ids recur as in a measured log."""

import dataclasses

import numpy as np

from pipelines.records.batch import interleave
from pipelines.runtime import UserError
from pipelines.synthetic import distributions
from pipelines.synthetic.blocks import Block, block_ranges, rows_per_block
from pipelines.synthetic.checks import check_click_rate, check_integer, check_sizes
from pipelines.synthetic.distances import BIN_EDGES
from pipelines.synthetic.lru_stack import NEW, LruStack
from pipelines.synthetic.profiles import FeatureProfile, Profile
from pipelines.synthetic.source import BagSource
from pipelines.synthetic.truth import stream

_ROWS, _ACCESSES = 102, 103  # streams of random numbers


@dataclasses.dataclass(frozen=True)
class Trace(BagSource):
    """An endless log whose ids have the locality of a measured log.

    Each access draws an LRU stack distance d from the profile: either a new id, the
    next number of the table, or the id that was accessed d distinct ids ago. LRU caches
    of any size thus have the same hit rate as on the measured log. The speed of a large
    table depends on it: uniform ids miss every cache, while real ids mostly hit one.

    Distances are drawn by stratified sampling. A log as long as the measured one has
    its histogram within 0.003 and its hit rates within 0.001 at 200,000 accesses, 0.02
    and 0.004 at 14,000 (total variation over the bins, and any cache size).

    At the start of a log there are too few ids for a large distance: a new id is
    returned instead, and the distance replaces a new id later. A shorter log thus has
    more new ids than the measured one. In a longer log all `vocabulary_sizes` ids are
    used at some point and no new ids follow; pass larger sizes to get more.

    Dense values are uniform in [0, 1) and all labels are drawn with the same
    probability, independent of the ids.

    The stack is carried from row to row, so generation always starts at row 0: starting
    at `first_row` takes the time of all rows before it, but little memory.

    Args:
        profile: The result of `profile` or `profile_logs`.
        seed: Random seed, at least 0. Default: 0.
        num_dense: Number of dense features. Default: 13.
        vocabulary_sizes: Number of ids of each feature, at least the number of distinct
            ids in the profile. Default: the sizes in the profile.
        click_rate: Probability of a click, in (0, 1). Default: 0.5.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> import numpy as np
    >>> from pipelines.synthetic import Trace, profile
    >>> ids = np.random.default_rng(0).zipf(1.5, 10_000) % 1000
    >>> measured = profile(ids)
    >>> trace = Trace(measured, seed=1)
    >>> generated = np.concatenate([block.ids for block in trace.blocks(10_000)])
    >>> again = profile(generated)
    >>> abs(again.features[0].hit_rate(10) - measured.features[0].hit_rate(10)) < 0.01
    True

    Reference:
        Naumov et al., "Deep Learning Recommendation Model for Personalization and
        Recommendation Systems" (arXiv 1906.00091), section 4.2, algorithm 2 (after
        Hassan et al., "Synthetic trace-driven simulation of cache memory", 2007). That
        code draws a distance that exceeds the stack again, which leaves too few large
        distances in the histogram; its stack is a Python list; and it drops repeated
        ids of a bag.
    """

    profile: Profile
    seed: int = 0
    num_dense: int = distributions.NUM_INTEGERS
    vocabulary_sizes: tuple[int, ...] | None = None
    click_rate: float = 0.5

    def __post_init__(self):
        check_integer("seed", self.seed, 0)
        check_integer("num_dense", self.num_dense, 0)
        check_click_rate(self.click_rate)
        sizes = self.vocabulary_sizes
        if sizes is None:
            sizes = self.profile.vocabulary_sizes
        sizes = check_sizes("vocabulary_sizes", sizes)
        features = self.profile.features
        if len(sizes) != len(features):
            raise UserError(
                "`vocabulary_sizes` must have an entry for each of the "
                f"{len(features)} features of the profile. Received: {len(sizes)}."
            )
        for size, feature in zip(sizes, features, strict=True):
            if size < feature.num_distinct:
                raise UserError(
                    f"`vocabulary_sizes` must be at least {feature.num_distinct:,} for "
                    f"{feature.name}, its number of distinct ids in the profile. "
                    f"Received: {size:,}."
                )
        object.__setattr__(self, "vocabulary_sizes", sizes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sparse features, as in the profile."""
        return self.profile.names

    @property
    def is_one_hot(self) -> bool:
        """True if every bag has one id."""
        return all(
            [size for size, _ in feature.bag_sizes] == [1]
            for feature in self.profile.features
        )

    def _blocks(self, start, stop):
        features = self.profile.features
        rows = rows_per_block(sum(f.num_accesses / f.num_rows for f in features))
        pairs = zip(features, self.vocabulary_sizes, strict=True)
        generators = [_Accesses(feature, size) for feature, size in pairs]
        for index, first, end in block_ranges(0, stop, rows):
            ids, lengths = [], np.empty((rows, len(features)), np.int32)
            for number, generator in enumerate(generators):
                rng = stream(self.seed, _ACCESSES, index, number)
                lengths[:, number] = generator.draw_bag_sizes(rng, rows)
                ids.append(generator.draw(rng, int(lengths[:, number].sum())))
            if (index + 1) * rows <= start:
                continue
            rng = stream(self.seed, _ROWS, index)
            labels = (rng.random(rows) < self.click_rate).astype(np.uint8)
            dense = rng.random((rows, self.num_dense), np.float32)
            counts = [None if (n == 1).all() else n for n in lengths.T]
            by_row = interleave(ids, counts)[0].reshape(-1)
            block = Block(labels, dense, by_row, lengths)
            yield block.rows(max(first, start - index * rows), end)

    def _arguments(self):
        return {
            "profile_sha256": self.profile.digest,
            "seed": self.seed,
            "num_dense": self.num_dense,
            "vocabulary_sizes": list(self.vocabulary_sizes),
            "click_rate": self.click_rate,
        }


class _Accesses:
    """The accesses of one feature, starting with the first.

    Args:
        feature: The profile of the feature.
        capacity: Number of ids.
    """

    def __init__(self, feature: FeatureProfile, capacity: int):
        self._stack = LruStack(capacity)
        self._num_new = feature.num_new
        counts = feature.counts()[1:]
        bins = np.flatnonzero(counts)
        self._starts = BIN_EDGES[bins]
        ends = np.minimum(BIN_EDGES[bins + 1], feature.num_distinct)
        self._widths = ends - self._starts
        # Cumulative counts: first the distances by bin, then new ids.
        self._bounds = np.concatenate([[0], np.cumsum(counts[bins])])
        self._sizes, size_counts = np.asarray(feature.bag_sizes).T
        self._size_bounds = np.cumsum(size_counts)

    def draw_bag_sizes(self, rng: np.random.Generator, num_rows: int) -> np.ndarray:
        if len(self._sizes) == 1:
            return np.full(num_rows, self._sizes[0])
        draws = _stratified(rng, num_rows) * self._size_bounds[-1]
        return self._sizes[np.searchsorted(self._size_bounds, draws, side="right")]

    def draw(self, rng: np.random.Generator, num_accesses: int) -> np.ndarray:
        """Return the ids of the next accesses."""
        stack = self._stack
        num_known = int(self._bounds[-1])
        is_full = stack.size == stack.capacity and not stack.owed
        total = num_known if is_full and num_known else num_known + self._num_new
        draws = _stratified(rng, num_accesses) * total
        distances = self._distances(draws)
        spare = []
        if stack.size + num_accesses >= stack.capacity:
            num_spare = int((distances == NEW).sum())
            if num_known:
                draws = _stratified(rng, num_spare) * num_known
                spare = self._distances(draws).tolist()
            else:  # the profile has no repeated ids: repeat the oldest one
                spare = [stack.capacity - 1] * num_spare
        ids = stack.access(distances.tolist(), spare)
        return np.asarray(ids, np.int32)

    def _distances(self, draws):
        """Return the distances of numbers in [0, sum of counts).

        Each counted access gets an equal share of the numbers, spread evenly over its
        bin.
        """
        bins = np.searchsorted(self._bounds, draws, side="right") - 1
        is_known = bins < len(self._starts)
        bins = bins[is_known]
        low, high = self._bounds[bins], self._bounds[bins + 1]
        within = (draws[is_known] - low) / (high - low) * self._widths[bins]
        within = np.minimum(within.astype(np.int64), self._widths[bins] - 1)
        distances = np.full(len(draws), NEW)
        distances[is_known] = self._starts[bins] + within
        return distances


def _stratified(rng: np.random.Generator, size: int) -> np.ndarray:
    """Return `size` uniform numbers in random order, one in each part of [0, 1)."""
    return (rng.permutation(size) + rng.random(size)) / max(size, 1)
