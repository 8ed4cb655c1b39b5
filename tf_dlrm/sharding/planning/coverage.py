"""Checks that a plan has every row and column once, on devices that exist."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tf_dlrm.features import EmbeddingTable
from tf_dlrm.sharding.planning.loads import TableLoad

if TYPE_CHECKING:
    from tf_dlrm.sharding.planning.plans import Shard

from tf_dlrm.runtime.errors import UserError

KINDS = ("table_wise", "row_wise", "column_wise", "data_parallel")


def check(
    shards: Sequence["Shard"], loads: Sequence[TableLoad], num_devices: int
) -> None:
    """Check that the shards hold each value of each table exactly once.

    Args:
        shards: The shards, in any order.
        loads: The tables.
        num_devices: Number of devices. Data-parallel tables must be on all of them.

    Raises:
        ValueError: If they do not; the message names the table, and the rows, columns
            or devices that are wrong.
    """
    by_table = defaultdict(list)
    for shard in shards:
        by_table[shard.table].append(shard)
    unknown = [name for name in by_table if name not in {load.name for load in loads}]
    if unknown:
        raise UserError(f"The plan has shards of unknown tables: {unknown}")
    for load in loads:
        own = by_table.get(load.name, [])
        if not own:
            raise UserError(f"The plan has no shard of table '{load.name}'.")
        kinds = sorted({shard.kind for shard in own})
        if len(kinds) > 1 or kinds[0] not in KINDS:
            raise UserError(
                f"All shards of table '{load.name}' must have the same kind, one of "
                f"{KINDS}. Received: {kinds}"
            )
        _check_devices(load, own, num_devices)
        _check_ranges(load, own)


def _check_devices(
    load: TableLoad, shards: Sequence["Shard"], num_devices: int
) -> None:
    devices = sorted(shard.device for shard in shards)
    if devices[0] < 0 or devices[-1] >= num_devices:
        raise UserError(
            f"Table '{load.name}' must be on devices 0 .. {num_devices - 1}. Received: "
            f"{devices}"
        )
    if len(set(devices)) < len(devices):
        raise UserError(
            f"A device may hold at most one shard of table '{load.name}'. Received: "
            f"shards on devices {devices}"
        )
    everywhere = list(range(num_devices))
    if shards[0].kind == "data_parallel" and devices != everywhere:
        raise UserError(
            f"Table '{load.name}' is data_parallel and must be on all {num_devices} "
            f"devices. Received: {devices}"
        )


def _check_ranges(load: TableLoad, shards: Sequence["Shard"]) -> None:
    kind = shards[0].kind
    whole = {"rows": (0, load.num_rows), "columns": (0, load.embedding_dim)}
    split = {"row_wise": "rows", "column_wise": "columns"}.get(kind)
    for dimension, (first, count) in whole.items():
        ranges = [
            (shard.first_row, shard.num_rows)
            if dimension == "rows"
            else (shard.first_column, shard.num_columns)
            for shard in shards
        ]
        if dimension == split:
            _check_sequence(load, dimension, sorted(ranges), count)
        elif any(own != (first, count) for own in ranges):
            raise UserError(
                f"A {kind} shard of table '{load.name}' must have all {dimension}, "
                f"(0, {count}). Received (first, number): {ranges}"
            )
    if kind == "table_wise" and len(shards) > 1:
        devices = [shard.device for shard in shards]
        raise UserError(
            f"Table '{load.name}' is table_wise and must be on one device. Received: "
            f"{devices}"
        )


def _check_sequence(
    load: TableLoad, dimension: str, ranges: list[tuple[int, int]], count: int
) -> None:
    position = 0
    for first, number in ranges:
        if first != position or number < 1:
            problem = "in two shards" if first < position else "on no device"
            problem = problem if number >= 1 else "in an empty shard"
            raise UserError(
                f"Table '{load.name}': {dimension} from {min(first, position)} are "
                f"{problem}. Received (first, number): {ranges}"
            )
        position = first + number
    if position != count:
        raise UserError(
            f"Table '{load.name}' has {count} {dimension}, but its shards have "
            f"{position}. Received (first, number): {ranges}"
        )


def check_same(loads: Sequence[TableLoad], tables: Sequence[EmbeddingTable]) -> None:
    """Check that a plan was made for these tables.

    Args:
        loads: The plan's `TableLoad`s.
        tables: `EmbeddingTable`s.

    Raises:
        ValueError: If it was not; the message names the tables that differ.
    """
    loads_by_name = {load.name: load for load in loads}
    tables_by_name = {table.name: table for table in tables}
    missing = [name for name in tables_by_name if name not in loads_by_name]
    if missing:
        raise UserError(f"The plan lacks the tables {missing}. Make a new plan.")
    unknown = [name for name in loads_by_name if name not in tables_by_name]
    if unknown:
        raise UserError(f"The plan has tables that the layer lacks: {unknown}")
    for name, table in tables_by_name.items():
        load = loads_by_name[name]
        expected = (load.num_rows, load.embedding_dim, load.features)
        received = (table.vocabulary_size, table.embedding_dim, tuple(table.features))
        if expected != received:
            raise UserError(
                f"The plan was made for another table '{name}': (rows, width, "
                f"features) {expected}. Received: {received}"
            )
