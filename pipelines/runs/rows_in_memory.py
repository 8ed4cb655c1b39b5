"""Training rows in memory, to compare models on."""

import dataclasses

import numpy as np

from pipelines.formats.encoding import encode
from pipelines.formats.scanning import scan
from pipelines.quarantine import Quarantine
from pipelines.records.batch import Batch, concatenate, take

# One row in this many is held out where there are no validation rows.
_HELD_OUT = 5


@dataclasses.dataclass(frozen=True)
class Rows:
    """Training rows in memory.

    Attributes:
        batch: The rows.
        times: Their event times `(n,)`, or `None`.
    """

    batch: Batch
    times: np.ndarray | None = None

    def split(self) -> tuple[Batch, Batch]:
        """Return the rows without the last fifth, and the last fifth.

        The order is that of the event times, if they are known.
        """
        num_rows = len(self.batch.labels)
        order = np.arange(num_rows)
        if self.times is not None:
            order = np.argsort(self.times, kind="stable")
        num_kept = num_rows - num_rows // _HELD_OUT
        return take(self.batch, order[:num_kept]), take(self.batch, order[num_kept:])


def read_files(paths, vocabulary, sampling, max_bad_share: float) -> Rows:
    """Read the rows of labelled files into memory, in order.

    Args:
        paths: The files.
        vocabulary: The vocabulary.
        sampling: The `NegativeSampling` of the rows, or `None`.
        max_bad_share: Largest share of bad rows.
    """
    pieces, times = [], []
    quarantine = Quarantine(max_bad_share=max_bad_share)
    blocks = scan(
        paths,
        quarantine,
        vocabulary.schema,
        make=lambda rows: encode(rows, vocabulary),
    )
    for block in blocks:
        batch, rows = block.made, block.rows
        are_kept = np.ones(len(batch.labels), bool)
        if sampling is not None:
            bad = [position for position, *_ in rows.bad]
            numbers = block.first_line + np.delete(np.arange(rows.num_lines), bad)
            are_kept = sampling.keep(block.file, numbers, batch.labels)
        pieces.append(take(batch, np.flatnonzero(are_kept)))
        if rows.times is not None:
            times.append(rows.times[are_kept])
    return Rows(concatenate(pieces), np.concatenate(times) if times else None)
