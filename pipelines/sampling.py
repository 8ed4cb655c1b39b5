"""Fewer negatives: which rows without a click are kept, decided by their position."""

import numpy as np

from pipelines.runtime import UserError

SPLIT_STREAM, _NEGATIVES_STREAM = 1, 2


class NegativeSampling:
    """Keep every click, and a share of the rows without one.

    Whether a row is kept is a function of its position, its label and the seed alone:
    the same rows in every epoch, with any number of workers, after any restart.

    A model of such rows overestimates the odds of a click by `1 / rate`. What it
    predicts is put right by `DLRM(..., negative_sampling_rate=rate)`.

    Args:
        rate: Share of the rows without a click that is kept, above 0 and at most 1.
        seed: Which ones; from 0.

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
        return sum(list(self._left_out.values()))  # readers may be at work

    def keep(self, file: int, numbers: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Tell which rows are kept.

        Args:
            file: Position of their file among all files.
            numbers: `(n,)` position of each row in its file, from 0.
            labels: `(n,)` labels.

        Returns:
            bool `(n,)`.
        """
        draws = uniform(numbers, self.seed, _NEGATIVES_STREAM + file)
        return (labels != 0) | (draws < self.rate)

    def record(self, file: int, first: int, num_left_out: int) -> None:
        """Take note of how many rows of a block were left out.

        Args:
            file: Position of its file.
            first: Position of its first row in the file, which tells blocks apart.
            num_left_out: How many.
        """
        self._left_out[file, first] = num_left_out


def check_rate(rate: float) -> None:
    """Raise unless a `negative_sampling_rate` is above 0 and at most 1.

    Raises:
        ValueError: If it is not.
    """
    if not 0 < rate <= 1:
        raise UserError(
            "`negative_sampling_rate` must be above 0 and at most 1, the share of rows "
            f"without a click that is kept. Received: negative_sampling_rate={rate}"
        )


def check_labels(rate: float, are_soft: bool) -> None:
    """Raise if negatives are sampled of rows whose labels are probabilities.

    Such a row is partly a click and partly none: no correction of the predictions
    makes up for those left out.

    Args:
        rate: The `negative_sampling_rate`; 1 leaves nothing out.
        are_soft: Whether labels are probabilities.

    Raises:
        ValueError: If they are, and the rate is below 1.
    """
    if are_soft and rate < 1:
        raise UserError(
            "`negative_sampling_rate` needs labels that are 0 or 1; these are soft: "
            "a row is partly a click. Leave it out, or give the label a threshold. "
            f"Received: negative_sampling_rate={rate:g}"
        )


def uniform(numbers: np.ndarray, seed: int, stream: int) -> np.ndarray:
    """A number in [0, 1) of each row number: the finalizer of SplitMix64.

    Args:
        numbers: `(n,)` numbers of rows.
        seed: Seed.
        stream: What the numbers are for; streams are independent.
    """
    start = (seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03) % (1 << 64)
    x = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(factor)
    x ^= x >> np.uint64(31)
    return (x >> np.uint64(11)).astype(np.float64) * 2.0**-53
