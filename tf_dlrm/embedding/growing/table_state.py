"""The state of one growing table: saved, restored, and placed again in other slots."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tf_dlrm.embedding.growing import claims
from tf_dlrm.embedding.growing.growing_tables import GrowingTables
from tf_dlrm.embedding.growing.slots import EMPTY, Slots
from tf_dlrm.embedding.table_store import TableStore
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError

_PARTS = ("ids", "last_seen", "hits")


class Placement(NamedTuple):
    """New slots of ids that were placed again.

    Attributes:
        sources: Positions of the ids that found a slot, in the arrays of the caller.
        slots: The slot of each.
        num_lost: Number of ids that found none.
    """

    sources: np.ndarray
    slots: np.ndarray
    num_lost: int


def get(growing: GrowingTables, name: str) -> dict[str, np.ndarray]:
    """Return the state of a table's slots and of its admission, by name."""
    state = _read(growing, name, growing.slots, "slots")
    number = growing.number[name]
    counting, sketches = growing.admission.counting, growing.admission.sketches
    if _counts_exactly(growing, name):
        state |= _read(growing, name, counting, "counting")
    if sketches is not None and sketches.widths[number]:
        first, end = sketches.offsets[number : number + 2]
        own = tf.range(first, end)
        state["sketch"] = row_ops.gather(sketches.cells, own).numpy()
        state["sketch_total"] = sketches.totals.numpy()[number : number + 1]
    state["counters"] = growing.counters.numpy()[number]
    state["expired_before"] = growing.expired_before.numpy()[number : number + 1]
    flags = growing.protection.flags.numpy()[:, number]
    state["protected"] = growing.protection.ids.numpy()[flags]
    return state


def _counts_exactly(growing, name):
    rules = growing.rules[growing.number[name]]
    return rules.min_count > 1 and rules.admission is None


def _range(growing, name, slots):
    number = growing.number[name]
    first, end = slots.offsets[number : number + 2]
    return int(first), int(end)


def _read(growing, name, slots, prefix):
    first, end = _range(growing, name, slots)
    own = tf.range(first, end, dtype=tf.int64)
    return {
        f"{prefix}_{part}": row_ops.gather(variable, own).numpy()
        for part, variable in slots.variables.items()
    }


def _write(variable: tf.Variable, first: int, values: np.ndarray) -> None:
    own = tf.range(first, first + len(values), dtype=tf.int64)
    row_ops.replace(variable, own, values)


def put(
    growing: GrowingTables, name: str, state: Mapping[str, Any]
) -> Placement | None:
    """Restore the state that `get` returned, here or for another number of slots.

    Ids move to other slots if the number of slots or probes differs: those that were
    looked up last are placed first. Counts of admission restart then.

    Returns:
        The new slots, or `None` if all ids keep theirs.
    """
    arrays = {key: np.asarray(value) for key, value in state.items()}
    number = growing.number[name]
    first, end = _range(growing, name, growing.slots)
    ids = arrays["slots_ids"]
    placement = None
    if len(ids) == end - first and _fits(growing, name, ids):
        for part, variable in growing.slots.variables.items():
            _write(variable, first, arrays[f"slots_{part}"])
    else:
        own = np.flatnonzero(ids != EMPTY)
        seen, hits = arrays["slots_last_seen"][own], arrays["slots_hits"][own]
        placement = place(growing, name, ids[own], seen, hits)
        placement = placement._replace(sources=own[placement.sources])
    _put_admission(growing, name, arrays, placement is None)
    counters = growing.counters.numpy()
    counters[number] = arrays["counters"]
    growing.counters.assign(counters)
    before = growing.expired_before.numpy()
    before[number] = arrays["expired_before"][0]
    growing.expired_before.assign(before)
    protect(growing, name, arrays["protected"])
    return placement


def _fits(growing, name, ids):
    """Return whether each id would be found in its slot."""
    own = np.flatnonzero(ids != EMPTY)
    number = growing.number[name]
    if not len(own):
        return True
    tables = np.full(len(own), number, np.int32)
    steps = (own - growing.slots.start(ids[own], tables).numpy()) % len(ids)
    return bool(steps.max() < growing.slots.probes[number])


def _put_admission(growing, name, arrays, same_slots):
    counting, sketches = growing.admission.counting, growing.admission.sketches
    number = growing.number[name]
    if _counts_exactly(growing, name):
        first, end = _range(growing, name, counting)
        size = end - first
        for part, variable in counting.variables.items():
            values = np.full(size, EMPTY if part == "ids" else 0, np.int64)
            if same_slots and f"counting_{part}" in arrays:
                values = arrays[f"counting_{part}"]
            _write(variable, first, values)
    if sketches is not None and sketches.widths[number]:
        first, end = (int(x) for x in sketches.offsets[number : number + 2])
        cells = arrays.get("sketch", np.zeros(0, np.int32))
        is_same = len(cells) == end - first
        cells = cells if is_same else np.zeros(end - first, np.int32)
        _write(sketches.cells, first, cells)
        totals = sketches.totals.numpy()
        totals[number] = arrays["sketch_total"][0] if is_same else 0
        sketches.totals.assign(totals)


def place(
    growing: GrowingTables,
    name: str,
    ids: np.ndarray,
    last_seen: np.ndarray,
    hits: np.ndarray,
) -> Placement:
    """Empty a table's slots and place distinct ids, those seen last first."""
    first, end = _range(growing, name, growing.slots)
    for part, variable in growing.slots.variables.items():
        for a, b in row_ops.block_ranges(end - first, 1):
            empty = np.full(b - a, EMPTY if part == "ids" else 0, np.int64)
            _write(variable, first + a, empty)
    order = np.lexsort((ids, -hits, -last_seen))
    at_once = _probe_at_once(growing, name, ids)
    if at_once is not None:
        arrays = dict(zip(_PARTS, (ids, last_seen, hits), strict=True))
        for part, variable in growing.slots.variables.items():
            for a, b in row_ops.block_ranges(len(ids), 1):
                row_ops.replace(variable, first + at_once[a:b], arrays[part][a:b])
        return Placement(np.arange(len(ids)), at_once, 0)
    now = growing.clock.read_value()
    found: list[np.ndarray] = []
    # Later blocks see the slots of earlier ones.
    for a, b in row_ops.block_ranges(len(ids), 16):
        own = order[a:b]
        tables = tf.fill((len(own),), growing.number[name])
        chosen = choose_empty(growing.slots, ids[own], tables, now)
        found.append(chosen)
        got = chosen >= 0
        for variable, values in zip(
            growing.slots.variables.values(), (ids, last_seen, hits)
        ):
            row_ops.replace(variable, chosen[got], values[own][got])
    slots = np.concatenate(found) if found else np.zeros(0, np.int64)
    got = slots >= 0
    return Placement(order[got], slots[got] - first, int((~got).sum()))


def _probe_at_once(growing, name, ids) -> np.ndarray | None:
    """Return slots of ids in an empty table; `None` if not all find one like this.

    Sorted by the start of their range, each id gets the first slot behind the one
    before: there is no empty slot between its start and its slot.
    """
    number = growing.number[name]
    size, probes = int(growing.slots.sizes[number]), growing.slots.probes[number]
    if not 0 < len(ids) < size:
        return None
    start = np.empty(len(ids), np.int64)
    for a, b in row_ops.block_ranges(len(ids), 1):
        tables = np.full(b - a, number, np.int32)
        start[a:b] = growing.slots.start(ids[a:b], tables).numpy()
    # Count from behind an empty slot, so that no chain goes around the end.
    origin = 0
    for _ in range(2):
        turned = (start - origin) % size
        order = np.argsort(turned, kind="stable")
        counts = np.arange(len(ids))
        slots = np.maximum.accumulate(turned[order] - counts) + counts
        if slots[-1] < size:
            break
        is_empty = np.ones(size, bool)
        is_empty[slots[slots < size]] = False
        origin = int(np.flatnonzero(is_empty)[-1]) + 1
    if slots[-1] >= size or (slots - turned[order]).max() >= probes:
        return None
    result = np.empty(len(ids), np.int64)
    result[order] = (slots + origin) % size
    return result


def all_slots(growing: GrowingTables, name: str) -> Placement:
    """Return the placement in which all ids of a table keep their slots."""
    own = np.flatnonzero(growing.read_slots(name, growing.slots.ids) != EMPTY)
    return Placement(own, own, 0)


def choose_empty(
    slots: Slots, ids: np.ndarray, tables: tf.Tensor, now: tf.Tensor
) -> np.ndarray:
    """Return the empty slots that distinct ids get, in their order; -1 for none."""
    kept = [rule._replace(evict=None, expire_after=None) for rule in slots.rules]
    empty_only = Slots(kept)
    empty_only.ids, empty_only.last_seen = slots.ids, slots.last_seen
    empty_only.hits = slots.hits
    result: np.ndarray = claims.choose(
        empty_only, tf.constant(ids, tf.int64), tables, now
    ).numpy()
    return result


def protect(growing: GrowingTables, name: str, ids: npt.ArrayLike) -> None:
    """Replace the protected ids of a table.

    Raises:
        ValueError: If there are as many ids as slots, which could not take new ids.
    """
    ids = np.unique(np.asarray(ids, np.int64))
    number = growing.number[name]
    if len(ids) and ids[0] < 0:
        raise UserError(f"Protected ids must not be negative. Received: {ids[0]}")
    size = int(growing.slots.sizes[number])
    if len(ids) >= size:
        raise UserError(
            f"At most {size - 1:,} ids of table '{name}' can be protected, because it "
            f"has {size:,} slots and could not take new ids. Received: {len(ids):,} ids"
        )
    protection = growing.protection
    held, flags = protection.ids.numpy(), protection.flags.numpy()
    flags[:, number] = False
    joined = np.union1d(held[flags.any(axis=1)], ids)
    new = np.zeros((len(joined), len(growing.tables)), bool)
    new[np.searchsorted(joined, held[flags.any(axis=1)])] = flags[flags.any(axis=1)]
    new[np.searchsorted(joined, ids), number] = True
    protection.ids.assign(joined)
    protection.flags.assign(new)


def move_rows(
    store: TableStore,
    name: str,
    slot: str | None,
    values: Any,
    placement: Placement,
) -> None:
    """Write rows `values[placement.sources]` of a table or slot to their new places.

    All other rows keep their values.
    """
    held = store.read(name, slot)
    held[placement.slots] = values[placement.sources]
    step = max(1, (1 << 20) // held.shape[1])
    for first in range(0, len(held), step):
        store.write_rows(name, slot, first, held[first : first + step])
