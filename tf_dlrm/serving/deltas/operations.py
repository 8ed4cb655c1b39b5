"""Operations on a channel: roll back, release, compact, remove old bases."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import PathLike
from tf_dlrm.serving.deltas import files
from tf_dlrm.serving.deltas.channel import Channel
from tf_dlrm.serving.deltas.format import DeltaError, Position, TableRows

PINNED, HISTORY = "pinned", "history"
_LONGEST_HISTORY = 100


def history_with(head: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return the healthy releases up to that of a `HEAD.json`, oldest first."""
    if head is None:
        return []
    history = list(head.get(HISTORY, []))
    if head.get("health") == "healthy":
        names = ("base", "sequence", "results")
        history.append({name: head.get(name) for name in names})
    return history[-_LONGEST_HISTORY:]


def rollback(
    base_dir: PathLike,
    to: int,
    base: int | None = None,
    by: str = "person",
    reason: str = "",
) -> Position:
    """Make replicas serve an earlier state, and keep them there.

    `HEAD.json` goes back, and is pinned: a training run that publishes writes its
    deltas, but does not move it, until `release`. Bases and deltas stay.

    Args:
        base_dir: Folder of the published model, or its address.
        to: Sequence number of the state; 0 for the base.
        base: Version of the base. Default: that of `HEAD.json`.
        by: Who pins: `"person"`, or `"monitor"`, whose pin a publication that passes
            its gate removes.
        reason: Reason to record.

    Returns:
        The state that replicas serve from now on.

    Raises:
        ValueError: If nothing is released, or no delta leads to that state.
    """
    channel = Channel(base_dir)
    with channel.locked():
        head = channel.read_head()
        if head is None:
            raise UserError(f"{base_dir} has no HEAD.json: nothing is released.")
        own = channel.read_base(head["base"] if base is None else base)
        channel.find_way(own, 0, to)
        state = channel.identity_of(own, to)
        wanted = Position(own.version, to)
        history = [
            entry
            for entry in head.get(HISTORY, [])
            if Position(entry["base"], entry["sequence"]) < wanted
        ]
        results = {}
        for entry in history_with(head):
            if Position(entry["base"], entry["sequence"]) == wanted:
                results = entry["results"]
        facts = {
            PINNED: by,
            HISTORY: history,
            "health": "healthy",
            "results": results,
            "reason": reason,
            "rolled_back_from": [head["base"], head["sequence"]],
        }
        channel.move_head(wanted, state, facts)
    return wanted


def release(base_dir: PathLike, to: int | None = None) -> Position:
    """Move `HEAD.json` forward again, and remove its pin.

    Args:
        base_dir: Folder of the published model, or its address.
        to: Sequence number in the newest base. Default: the last state.

    Raises:
        ValueError: If nothing is published, or no delta leads to that state.
    """
    channel = Channel(base_dir)
    with channel.locked():
        bases = channel.bases()
        if not bases:
            raise UserError(f"{base_dir} has no base: nothing is published.")
        base = channel.read_base(bases[-1])
        manifests = channel.manifests(base)
        last = manifests[-1].sequence if manifests else 0
        to = last if to is None else to
        channel.find_way(base, 0, to)
        head = channel.read_head()
        facts = {"health": "healthy", "results": {}, HISTORY: history_with(head)}
        channel.move_head(
            Position(base.version, to), channel.identity_of(base, to), facts
        )
    return Position(base.version, to)


def compact(
    base_dir: PathLike,
    first: int,
    last: int,
    base: int | None = None,
    keep: bool = False,
) -> str:
    """Make one delta of several, with the same result.

    A replica at any state from `first - 1` on can apply it. Without the single deltas,
    the states between are gone: rollbacks lead to `first - 1` or `last`.

    Args:
        base_dir: Folder of the published model, or its address.
        first: Sequence number of the first delta.
        last: Sequence number of the last delta, after `first`.
        base: Version of the base. Default: the newest one.
        keep: Whether to keep the single deltas too.

    Returns:
        Name of the new delta's folder.

    Raises:
        ValueError: If a delta is missing or damaged, or HEAD names a state between.
    """
    channel = Channel(base_dir)
    if not 1 <= first < last:
        raise UserError(
            "`first` must be at least 1 and `last` larger than `first`. Received: "
            f"first={first}, last={last}"
        )
    with channel.locked():
        bases = channel.bases()
        if not bases:
            raise UserError(f"{base_dir} has no base: nothing is published.")
        own = channel.read_base(bases[-1] if base is None else base)
        head = channel.read_head()
        between = range(first, last)
        if (
            head
            and not keep
            and head["base"] == own.version
            and head["sequence"] in between
        ):
            raise UserError(
                f"HEAD is at sequence {head['sequence']}, which would be gone: compact "
                f"{first} to {head['sequence']}, or keep the single deltas."
            )
        names = [
            name
            for sequence in range(first, last + 1)
            for name in channel.find_way(own, sequence - 1, sequence)
        ]
        deltas = [channel.read_delta(own, name) for name in names]
        tables = {}
        for name, _, _ in own.layout.tables:
            ids = np.concatenate([d.tables[name].ids for d in deltas])
            rows = np.concatenate([d.tables[name].rows for d in deltas])
            # The last occurrence of each row wins.
            unique, places = np.unique(ids[::-1], return_index=True)
            tables[name] = TableRows(
                unique, rows[::-1][places], deltas[-1].tables[name].deleted[:0]
            )
        before, after = deltas[0].manifest.facts, deltas[-1].manifest.facts
        facts = {
            "first": first,
            "sequence": last,
            "parents": [d.manifest.parents[0] for d in deltas],
            "state": deltas[-1].manifest.state,
            "steps": {"from": before["steps"]["from"], "to": after["steps"]["to"]},
            "event_time": after["event_time"],
            "rows": after["rows"],
        }
        name = f"{first:08d}-{last:08d}"
        channel.write_delta(own, tables, deltas[-1].dense, facts, name)
        if not keep:
            for single in names:
                files.remove(channel.folder_of(own.version, single))
    return name


def remove_old_bases(base_dir: PathLike, keep: int = 2) -> list[int]:
    """Remove old bases with their deltas; never that of HEAD, nor a later one.

    Args:
        base_dir: Folder of the published model, or its address.
        keep: Number of newest bases to keep.

    Returns:
        The versions that were removed.
    """
    if keep < 1:
        raise UserError(f"`keep` must be at least 1. Received: {keep}")
    channel = Channel(base_dir)
    with channel.locked():
        head = channel.read_head()
        limit = 0 if head is None else head["base"]
        old = [v for v in channel.bases()[:-keep] if v < limit]
        for version in old:
            files.remove(channel.folder_of(version))
            files.remove(channel.version_dir(version))
    return old


def find_healthy(channel: Channel, head: Mapping[str, Any]) -> Position | None:
    """Return the last healthy release before that of a `HEAD.json`, if it exists."""
    here = Position(head["base"], head["sequence"])
    for entry in reversed(head.get(HISTORY, [])):
        position = Position(entry["base"], entry["sequence"])
        try:
            if position < here:
                base = channel.read_base(position.base)
                channel.find_way(base, 0, position.sequence)
                return position
        except DeltaError:
            continue  # it was removed
    return None
