"""`Occupancy`: how full a growing table is, and what happened in it."""

import dataclasses
from typing import Any

import numpy as np

from tf_dlrm.embedding.growing.growing_tables import COUNTERS, GrowingTables
from tf_dlrm.embedding.growing.slots import EMPTY


@dataclasses.dataclass(frozen=True)
class Occupancy:
    """The state of a growing table.

    Attributes:
        table: Name of the table.
        num_slots: Number of rows that ids can claim.
        num_ids: Number of ids that have one.
        lookups: Number of ids that training steps have looked up, with repetitions.
        claims: Number of claims so far.
        evictions: Number of claims that replaced another id.
        not_admitted: Number of times that an id was not admitted, once in a step.
        fallbacks: Number of lookups that read the fallback.
        probe_lengths: Number of ids whose slot is the first, second, ... of their
            range, up to the last one that is used.
        ages: Shares of the ids that were last looked up in the last 1, 10, 100, ...
            steps and not in the previous share's steps.
    """

    table: str
    num_slots: int
    num_ids: int
    lookups: int
    claims: int
    evictions: int
    not_admitted: int
    fallbacks: int
    probe_lengths: tuple[int, ...]
    ages: dict[int, float]

    @property
    def load(self) -> float:
        """Share of the slots that have an id."""
        return self.num_ids / self.num_slots

    @property
    def fallback_share(self) -> float:
        """Share of the lookups that read the fallback; 0 without lookups."""
        return self.fallbacks / max(1, self.lookups)

    @property
    def mean_probes(self) -> float:
        """Mean number of slots up to that of an id; 0 without ids."""
        counts = np.array(self.probe_lengths)
        return float(counts @ np.arange(1, len(counts) + 1)) / max(1, self.num_ids)

    def __str__(self) -> str:
        return (
            f"{self.table}: {self.num_ids:,} of {self.num_slots:,} slots "
            f"({self.load:.1%}), {self.claims:,} claims, {self.evictions:,} evictions, "
            f"{self.fallback_share:.2%} of lookups without a row of their own, "
            f"{self.mean_probes:.2f} probes"
        )


def measure(growing: GrowingTables, name: str) -> Occupancy:
    """Return the occupancy of a table, from a pass over its slots."""
    number = growing.number[name]
    ids = growing.read_slots(name, growing.slots.ids)
    slots = np.flatnonzero(ids != EMPTY)
    size = int(growing.slots.sizes[number])
    lengths = np.zeros(int(growing.slots.probes[number]), np.int64)
    for part in np.array_split(slots, max(1, len(slots) >> 20)):
        start = growing.slots.start(ids[part], np.full(len(part), number, np.int32))
        steps = (part - start.numpy()) % size
        lengths += np.bincount(steps, minlength=len(lengths))
    used = np.flatnonzero(lengths)
    ages = growing.clock.numpy() - growing.read_slots(name, growing.slots.last_seen)
    counters = dict(zip(COUNTERS, growing.counters.numpy()[number].tolist()))
    return Occupancy(
        table=name,
        num_slots=size,
        num_ids=len(slots),
        probe_lengths=tuple(lengths[: used[-1] + 1].tolist() if len(used) else ()),
        ages=_shares(ages[slots]),
        **counters,
    )


def _shares(ages: np.ndarray) -> dict[int, Any]:
    """Return the share of ages below 1, 10, 100, ..., without that before."""
    shares, limit, below = {}, 1, 0
    while below < len(ages):
        now = int((ages < limit).sum())
        shares[limit] = (now - below) / len(ages)
        below, limit = now, limit * 10
    return shares
