"""Negative sampling: keep a share of the rows without a click, chosen by position."""

import numpy as np

from pipelines.runtime import UserError

SPLIT_STREAM, _NEGATIVES_STREAM = 1, 2


class NegativeSampling:
    """Keep every click, and a share of the rows without a click.

    The kept rows are a function of position, label and seed only: they are the same in
    every epoch, with any number of workers and after any restart.

    A model of such rows overestimates the odds of a click by `1 / rate`;
    `DLRM(..., negative_sampling_rate=rate)` corrects its predictions.

    Args:
        rate: Share of the rows without a click to keep, above 0 and at most 1.
        seed: Random seed of the choice, at least 0.

    Attributes:
        num_left_out: Number of rows left out so far. A row counts once, however often
            it is read.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    >>> import numpy as np
    >>> from pipelines import NegativeSampling
    >>> labels = np.arange(1000) % 4 == 0
    >>> kept = NegativeSampling(0.1, seed=7).keep(0, np.arange(1000), labels)
    >>> kept[labels].mean(), 0.08 < kept[~labels].mean() < 0.12
    (np.float64(1.0), np.True_)

    Reference:
        He et al. 2014, Practical lessons from predicting clicks on ads at Facebook,
        section 6.2.
    """

    def __init__(self, rate: float, seed: int = 0):
        check_rate(rate)
        if seed < 0:
            raise UserError(f"`seed` must not be negative. Received: seed={seed}")
        self.rate, self.seed = rate, seed
        self._left_out = {}

    @property
    def num_left_out(self) -> int:
        return sum(list(self._left_out.values()))  # readers may change it meanwhile

    def keep(self, file: int, numbers: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return a mask of the rows to keep.

        Args:
            file: Position of the file of the rows among all files.
            numbers: Positions `(n,)` of the rows in the file, from 0.
            labels: Labels `(n,)`.

        Returns:
            bool `(n,)`.
        """
        draws = uniform(numbers, self.seed, _NEGATIVES_STREAM + file)
        return (labels != 0) | (draws < self.rate)

    def record(self, file: int, first: int, num_left_out: int) -> None:
        """Record the number of rows of a block that were left out.

        Args:
            file: Position of the file of the block.
            first: Position of its first row in the file, which identifies the block.
            num_left_out: Number of rows that were left out.
        """
        self._left_out[file, first] = num_left_out


def check_rate(rate: float) -> None:
    """Check that a `negative_sampling_rate` is above 0 and at most 1.

    Raises:
        ValueError: If it is not.
    """
    if not 0 < rate <= 1:
        raise UserError(
            "`negative_sampling_rate` must be above 0 and at most 1: it is the share "
            f"of rows without a click to keep. Received: negative_sampling_rate={rate}"
        )


def check_labels(rate: float, are_soft: bool) -> None:
    """Check that labels are not probabilities if negatives are sampled.

    A row with a soft label is partly a click, so no correction of the predictions can
    account for rows that are left out.

    Args:
        rate: The `negative_sampling_rate`; 1 keeps all rows.
        are_soft: Whether labels are probabilities.

    Raises:
        ValueError: If labels are probabilities and the rate is below 1.
    """
    if are_soft and rate < 1:
        raise UserError(
            "`negative_sampling_rate` needs labels that are 0 or 1, but these are "
            "probabilities. Leave it out, or set a threshold for the label. "
            f"Received: negative_sampling_rate={rate:g}"
        )


def uniform(numbers: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """Return a random number in [0, 1) for each row number, by SplitMix64's finalizer.

    Args:
        numbers: Numbers `(n,)` of rows.
        seed: Random seed.
        stream: Number of the stream; streams are independent.
    """
    start = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03) % (1 << 64)
    x = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
