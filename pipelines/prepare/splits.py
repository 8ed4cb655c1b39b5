"""The split of each row, determined by its number."""

import numpy as np

from pipelines.prepare.options import SPLITS, Options
from pipelines.sampling import SPLIT_STREAM, NegativeSampling, uniform
from pipelines.vocabulary.counting import Counter
from pipelines.vocabulary.learning import counted_numbers

LEFT_OUT = np.int8(-1)


class Splits:
    """Assign rows to `SPLITS`.

    Args:
        options: The options.
        of_file: The split of each file by name, or `None` if its rows are divided.
    """

    def __init__(self, options: Options, of_file):
        self._options = options
        self._negatives = NegativeSampling(options.negative_sampling_rate, options.seed)
        self._of_file = [
            None if name is None else SPLITS.index(name) for name in of_file
        ]

    @property
    def waits_for_total(self) -> bool:
        """True if the total number of rows must be known first."""
        options = self._options
        shares = options.valid_share + options.test_share
        return options.split_by == "time" and shares > 0

    def assign(
        self,
        file: int,
        first_row: int,
        labels,
        num_divided=None,
        times=None,
        cuts: tuple[float, float] | None = None,
    ) -> np.ndarray:
        """Return the splits of consecutive rows.

        Args:
            file: Position of the file of the rows.
            first_row: Number of the first row among the valid rows of all divided
                files; for a file with its own split, among all valid rows.
            labels: Labels `(n,)` of the rows.
            num_divided: Total number of rows that are divided; `None` if not yet known.
            times: Event times `(n,)`, if rows are divided by time.
            cuts: The times at which the validation and test splits begin.

        Returns:
            int8 `(n,)`: position in `SPLITS`, or `LEFT_OUT` for training rows that are
            left out.
        """
        options, num_rows = self._options, len(labels)
        numbers = first_row + np.arange(num_rows)
        splits = np.zeros(num_rows, np.int8)
        if self._of_file[file] is not None:
            splits[:] = self._of_file[file]
        elif options.split_by == "random":
            draws = uniform(numbers, options.seed, SPLIT_STREAM)
            splits[draws < options.valid_share + options.test_share] = 1
            splits[draws < options.test_share] = 2
        elif cuts is not None:
            splits[times >= cuts[0]] = 1
            splits[times >= cuts[1]] = 2
        elif self.waits_for_total and num_divided is not None:
            num_test = round(num_divided * options.test_share)
            num_valid = round(num_divided * options.valid_share)
            splits[numbers >= num_divided - num_test - num_valid] = 1
            splits[numbers >= num_divided - num_test] = 2
        if options.negative_sampling_rate < 1:
            kept = self._negatives.keep(file, numbers, labels)
            splits[(splits == 0) & ~kept] = LEFT_OUT
        return splits

    def find_cuts(self, counter: Counter) -> tuple[float, float]:
        """Return the times at which the validation and test splits begin.

        Rows with the same time stay together, and no split exceeds its share.

        Args:
            counter: Counts of the event times of the rows that are divided.
        """
        times, counts = (
            np.concatenate(column)
            for column in zip(*counted_numbers(counter), strict=True)
        )
        later = np.cumsum(counts[::-1])[::-1]  # number of rows from each time on
        options, total = self._options, counts.sum()
        shares = (options.valid_share + options.test_share, options.test_share)
        cuts = []
        for share in shares:
            place = int((later > round(total * share)).sum())
            cuts.append(float(times[place]) if place < len(times) else np.inf)
        return cuts[0], cuts[1]

    def is_divided(self, file: int) -> bool:
        """Return whether the rows of a file are divided by the options."""
        return self._of_file[file] is None
