"""`TopShare`: publish only the rows that changed most, and say how stale others are."""

import dataclasses

import numpy as np

from tf_dlrm.runtime.errors import UserError

_MEMORY = 0.8  # weight of earlier publications in the running percentile


@dataclasses.dataclass(frozen=True)
class TopShare:
    """Publish about this share of the changed rows: new ones, then those changed most.

    The change of a row is the Euclidean distance from what was last published of it.
    Rows whose change is above a running percentile are published; the percentile is an
    exponential average over publications, so quiet and busy intervals are held to the
    same bar. A row that a training batch reads for the first time is new, and published
    in any case. The others wait: their change grows
    until it is published, at the latest with the next base.

    It needs a copy of the tables in host memory, in the format of the export.

    Args:
        share: Share of the changed rows, above 0 and below 1.

    Example:

    >>> import tf_dlrm
    >>> rows = tf_dlrm.callbacks.TopShare(0.1)
    >>> publish = tf_dlrm.callbacks.PublishDeltas("models", every_steps=10, rows=rows)

    Reference:
        Matam et al. 2024, QuickUpdate (NSDI'24), publishes rows by the size of their
        updates; Sima et al. 2022, Ekko (OSDI'22), ranks them by freshness and
        significance, above a percentile of past priorities.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise UserError(
                f"`share` must be above 0 and below 1. Received: {self.share!r}"
            )


class Selection:
    """The choice of rows by `TopShare`, with what it needs to remember.

    Args:
        share: Share of the changed rows.

    Attributes:
        threshold: The running percentile of changes; `None` before the first choice.
        since: Step since which each waiting row is stale, by table and row.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self.threshold: float | None = None
        self.since: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self._seen: dict[str, np.ndarray] = {}

    def reset(self) -> None:
        """Forget all waiting rows, after a base was published."""
        self.since = {}

    def see(self, table: str, num_rows: int, ids: np.ndarray) -> None:
        """Note that rows are not new anymore."""
        self._seen.setdefault(table, np.zeros(num_rows, bool))[ids] = True

    def add(self, table: str, num_rows: int, ids: np.ndarray, step: int) -> np.ndarray:
        """Add rows that changed, and return all rows that wait, ascending.

        Args:
            table: Name of the table.
            num_rows: Its number of rows.
            ids: Row numbers, ascending.
            step: The step of the previous publication, since which they are stale.
        """
        before, steps = self.since.get(table, (ids[:0], ids[:0]))
        new = np.setdiff1d(ids, before, assume_unique=True)
        waiting = np.concatenate([before, new])
        order = np.argsort(waiting, kind="stable")
        steps = np.concatenate([steps, np.full(len(new), step, np.int64)])
        self.since[table] = waiting[order], steps[order]
        self.see(table, num_rows, ids[:0])
        return self.since[table][0]

    def choose(self, changes: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the rows to publish, by table, and stop waiting for them.

        Args:
            changes: The change of each waiting row, by table.
        """
        every = np.concatenate([np.zeros(0), *changes.values()])
        chosen = {}
        if every.size:
            now = float(np.quantile(every, 1.0 - self._share))
            before = now if self.threshold is None else self.threshold
            self.threshold = _MEMORY * before + (1.0 - _MEMORY) * now
        for table, change in changes.items():
            ids, steps = self.since[table]
            seen = self._seen[table]
            wanted = ~seen[ids] | (change > (self.threshold or 0.0))
            seen[ids] = True
            chosen[table] = ids[wanted]
            self.since[table] = ids[~wanted], steps[~wanted]
        return chosen

    def add_back(self, chosen: dict[str, np.ndarray], step: int) -> None:
        """Wait again for rows that were chosen but not published."""
        for table, ids in chosen.items():
            self.add(table, len(self._seen[table]), ids, step)
