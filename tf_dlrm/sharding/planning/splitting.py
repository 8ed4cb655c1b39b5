"""Splitting of tables by rows or columns, and conversion of the parts to `Shard`s."""

import math
from collections.abc import Sequence

import numpy as np

from tf_dlrm.sharding.planning.loads import TableLoad
from tf_dlrm.sharding.planning.packing import Packing
from tf_dlrm.sharding.planning.plans import Shard

COLUMN_UNIT = 4  # 16 bytes, which vector instructions load at once
MIN_COLUMNS = 16  # smallest part for "auto": 64 bytes, which memory delivers at once
LOOKUP_TOLERANCE = 1.25  # "auto" splits above this multiple of the fair lookups
ROWS_HOTNESS = 8  # ids per bag from which a split by rows saves more than it sends
ID_BYTES = 8


def even_rows(load: TableLoad, num_parts: int) -> list[int]:
    """Return the numbers of rows of nearly equal parts, at most one part per row."""
    parts = min(num_parts, load.num_rows)
    share, rest = divmod(load.num_rows, parts)
    return [share + (i < rest) for i in range(parts)]


def even_widths(embedding_dim: int, num_parts: int) -> list[int]:
    """Return the widths of at most `num_parts` parts, multiples of 4 but for the last.

    >>> even_widths(16, 3), even_widths(10, 8), even_widths(3, 2)
    ([8, 4, 4], [4, 4, 2], [3])
    """
    units = math.ceil(embedding_dim / COLUMN_UNIT)
    parts = min(num_parts, units)
    share, rest = divmod(units, parts)
    widths = [COLUMN_UNIT * (share + (i < rest)) for i in range(parts)]
    widths[-1] -= COLUMN_UNIT * units - embedding_dim
    return widths


def split(
    load: TableLoad,
    fair: tuple[float, float],
    num_devices: int,
    tolerance: float,
    columns: bool,
) -> tuple[str, list[tuple[int, int]]]:
    """Split a table that is not data-parallel, for strategy `"auto"`.

    Args:
        load: The table's `TableLoad`.
        fair: A device's fair share of bytes of memory, and of lookups per example.
        num_devices: Number of devices.
        tolerance: Maximum memory of a part, as a multiple of the fair share.
        columns: Whether the table may be split by columns.

    Returns:
        The kind, and the parts `(rows, columns)`.
    """
    memory = load.memory_bytes() / fair[0]
    lookups = load.lookup_bytes(load.num_rows, load.embedding_dim) / fair[1]
    by_memory = min(math.ceil(memory / tolerance), num_devices)
    by_lookups = min(math.ceil(lookups / LOOKUP_TOLERANCE), num_devices)
    least = max(by_memory, by_lookups)
    parts = _column_parts(load, least, num_devices) if columns and least > 1 else None
    if parts:
        width = load.embedding_dim // parts
        return "column_wise", [(load.num_rows, width)] * parts
    if by_lookups > by_memory and load.num_ids >= ROWS_HOTNESS * load.num_features:
        sizes = even_rows(load, by_lookups)
    else:
        sizes = _filling_rows(load, fair[0], by_memory)
    kind = "row_wise" if len(sizes) > 1 else "table_wise"
    return kind, [(rows, load.embedding_dim) for rows in sizes]


def _column_parts(load: TableLoad, least: int, num_devices: int) -> int | None:
    """Return the smallest useful number of equal column ranges, or `None`."""
    most = min(num_devices, load.embedding_dim // MIN_COLUMNS)
    for parts in range(least, most + 1):
        if load.embedding_dim % (COLUMN_UNIT * parts) or load.state_per_row:
            continue
        # Compare the traffic of one example, forward and backward: ids to all parts and
        # one vector (columns), or ids to one part and a partial sum from each (rows).
        ids = load.num_ids * ID_BYTES
        vectors = 2 * load.num_features * load.embedding_dim * 4
        if parts * ids + vectors <= ids + parts * vectors:
            return parts
    return None


def _filling_rows(load: TableLoad, fair_bytes: float, num_parts: int) -> list[int]:
    """Return the rows of parts that each fill a device, and of a part with the rest."""
    fill = int(fair_bytes // load.row_bytes())
    fill = max(fill, math.ceil(load.num_rows / num_parts))
    full, rest = divmod(load.num_rows, fill)
    return [fill] * full + [rest] * (rest > 0)


def to_shards(packing: Packing, kinds: Sequence[str]) -> list[Shard]:
    """Return the pieces of a `Packing` as shards, by table and with ranges in order.

    If ids are sorted by frequency, the first range of a row-wise table is looked up
    most. It therefore goes to the device with the fewest first ranges so far.

    Args:
        packing: The `Packing`.
        kinds: Kind of each table.
    """
    shards, num_firsts = [], np.zeros(packing.num_devices, int)
    for i, (load, kind) in enumerate(zip(packing.loads, kinds)):
        devices = np.flatnonzero(packing.present[:, i]).tolist()
        if kind == "row_wise":
            first = min(devices, key=lambda device: (num_firsts[device], device))
            num_firsts[first] += 1
            start = devices.index(first)
            devices = devices[start:] + devices[:start]
        row = column = 0
        for device in devices:
            rows, width = packing.pieces[device][i]
            shards.append(Shard(load.name, kind, device, row, rows, column, width))
            row += rows if kind == "row_wise" else 0
            column += width if kind == "column_wise" else 0
    return shards
