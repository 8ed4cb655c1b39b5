"""Checks of a plan: every row and column once, on devices that exist."""

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
    """Raise unless the shards hold each value of each table exactly once.

    Args:
        shards: The shards, in any order.
        loads: The tables.
        num_devices: Number of devices; data-parallel tables must be on all.

    Raises:
        ValueError: With the table, and the rows, columns or devices that are wrong.
    """
    of_table = defaultdict(list)
    for shard in shards:
        of_table[shard.table].append(shard)
    unknown = [name for name in of_table if name not in {load.name for load in loads}]
    if unknown:
        raise UserError(f"The plan has shards of tables that it lacks: {unknown}")
    for load in loads:
        found = of_table.get(load.name, [])
        if not found:
            raise UserError(f"The plan has no shard of table '{load.name}'.")
        kinds = sorted({shard.kind for shard in found})
        if len(kinds) > 1 or kinds[0] not in KINDS:
            raise UserError(
                f"The shards of table '{load.name}' must all be of one kind out of "
                f"{KINDS}. Received: {kinds}"
            )
        _check_devices(load, found, num_devices)
        _check_ranges(load, found)


def _check_devices(
    load: TableLoad, shards: Sequence["Shard"], num_devices: int
) -> None:
    devices = sorted(shard.device for shard in shards)
    if devices[0] < 0 or devices[-1] >= num_devices:
        raise UserError(
            f"Table '{load.name}' is on devices {devices}; there are 0 .. "
            f"{num_devices - 1}."
        )
    if len(set(devices)) < len(devices):
        raise UserError(
            f"A device may hold one shard of table '{load.name}'. Received shards on "
            f"devices {devices}"
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
    for what, (first, count) in whole.items():
        ranges = [
            (shard.first_row, shard.num_rows)
            if what == "rows"
            else (shard.first_column, shard.num_columns)
            for shard in shards
        ]
        if what == split:
            _check_sequence(load, what, sorted(ranges), count)
        elif any(each != (first, count) for each in ranges):
            raise UserError(
                f"A {kind} shard of table '{load.name}' must have all {what}, "
                f"(0, {count}). Received (first, number): {ranges}"
            )
    if kind == "table_wise" and len(shards) > 1:
        devices = [shard.device for shard in shards]
        raise UserError(
            f"Table '{load.name}' is table_wise and must be on one device. Received: "
            f"{devices}"
        )


def _check_sequence(
    load: TableLoad, what: str, ranges: list[tuple[int, int]], count: int
) -> None:
    position = 0
    for first, number in ranges:
        if first != position or number < 1:
            wrong = "twice" if first < position else "on no device"
            wrong = wrong if number >= 1 else "in an empty shard"
            raise UserError(
                f"Table '{load.name}': {what} from {min(first, position)} are {wrong}. "
                f"Received (first, number): {ranges}"
            )
        position = first + number
    if position != count:
        raise UserError(
            f"Table '{load.name}' has {count} {what}; its shards have {position}. "
            f"Received (first, number): {ranges}"
        )


def check_same(loads: Sequence[TableLoad], tables: Sequence[EmbeddingTable]) -> None:
    """Raise unless a plan's loads are these tables.

    Args:
        loads: The plan's `TableLoad`s.
        tables: `EmbeddingTable`s.

    Raises:
        ValueError: With the first table that differs.
    """
    planned = {load.name: load for load in loads}
    given = {table.name: table for table in tables}
    missing = [name for name in given if name not in planned]
    if missing:
        raise UserError(f"The plan does not cover tables {missing}: make a new plan.")
    unknown = [name for name in planned if name not in given]
    if unknown:
        raise UserError(f"The plan covers tables that are not there: {unknown}")
    for name, table in given.items():
        load = planned[name]
        expected = (load.num_rows, load.embedding_dim, load.features)
        received = (table.vocabulary_size, table.embedding_dim, tuple(table.features))
        if expected != received:
            raise UserError(
                f"The plan was made for another table '{name}': (rows, width, "
                f"features) {expected}. Received: {received}"
            )
