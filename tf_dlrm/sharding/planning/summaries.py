"""The text of a printed plan."""

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tf_dlrm.runtime.units import format_bytes
from tf_dlrm.sharding.planning.coverage import KINDS
from tf_dlrm.sharding.planning.loads import TableLoad

if TYPE_CHECKING:
    from tf_dlrm.sharding.planning.plans import Plan

MAX_SPLIT_TABLES = 12
WIDTH = 80


def describe(plan: "Plan") -> str:
    """Return a text with bytes, rows, lookups and cost by device, and all tables."""
    return "\n".join([*_device_lines(plan), "", *_table_lines(plan)])


def _device_lines(plan: "Plan") -> Iterator[str]:
    memory, read, ids = plan.memory_bytes, plan.lookup_bytes, plan.num_lookups
    rows, shards = [0] * plan.num_devices, [0] * plan.num_devices
    for shard in plan:
        rows[shard.device] += shard.num_rows
        shards[shard.device] += 1
    yield (
        f"{_count(len(plan.tables), 'table')} on {_count(plan.num_devices, 'device')}, "
        f"{format_bytes(sum(memory))} with optimizer state, batches of "
        f"{plan.batch_size:,}"
    )
    rule = "-" * WIDTH
    yield rule
    yield _row(
        "Device", "Bytes", "Rows", "Shards", "Lookups", "Bytes read", "Cost share"
    )
    yield rule
    whole = max(sum(read), 1)
    for device in range(plan.num_devices):
        yield _row(
            str(device),
            format_bytes(memory[device]),
            f"{rows[device]:,}",
            f"{shards[device]:,}",
            f"{ids[device]:,.0f}",
            format_bytes(read[device]),
            f"{100 * read[device] / whole:.1f} %",
        )
    yield rule
    yield _row(
        "max/mean",
        f"{plan.imbalance:.3f}",
        "",
        "",
        "",
        f"{plan.lookup_imbalance:.3f}",
        "",
    )
    exchanged = plan.exchange_bytes()
    total = exchanged.pop("total")
    parts = [f"{k} {format_bytes(v)}" for k, v in exchanged.items() if v]
    if parts:
        text = f"A step exchanges {format_bytes(total)}: {', '.join(parts)}."
        yield from textwrap.wrap(text.replace("_", "-"), WIDTH)


def _table_lines(plan: "Plan") -> Iterator[str]:
    by_kind: dict[str, list[TableLoad]] = {kind: [] for kind in KINDS}
    for load in plan.tables:
        by_kind[plan.placement(load.name)].append(load)
    for kind, loads in by_kind.items():
        if not loads:
            continue
        loads.sort(key=lambda load: -load.memory_bytes())
        size = format_bytes(sum(load.memory_bytes() for load in loads))
        head = f"{kind}: {_count(len(loads), 'table')}, {size}"
        if kind == "data_parallel":
            names = ", ".join(load.name for load in loads)
            yield from _wrap(f"{head} on each device: {names}")
        elif kind == "table_wise":
            devices = [plan.of_table(load.name)[0].device for load in loads]
            places = [f"{load.name} on {d}" for load, d in zip(loads, devices)]
            yield from _wrap(f"{head}: {', '.join(places)}")
        else:
            yield head
            for load in loads[:MAX_SPLIT_TABLES]:
                yield from _split_lines(plan, load, kind)
            if len(loads) > MAX_SPLIT_TABLES:
                yield f"  and {len(loads) - MAX_SPLIT_TABLES} smaller tables"


def _split_lines(plan: "Plan", load: TableLoad, kind: str) -> list[str]:
    by_rows = kind == "row_wise"
    parts = [
        f"{shard.device}: {shard.num_rows if by_rows else shard.num_columns:,}"
        for shard in plan.of_table(load.name)
    ]
    unit = "rows" if by_rows else "columns"
    text = f"  {load.name}, {load.num_rows:,} x {load.embedding_dim}, {unit} on device "
    return _wrap(text + ", ".join(parts), indent="      ")


def _wrap(text: str, indent: str = "  ") -> list[str]:
    lines = textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False)
    return [*lines[:3], f"{indent}..."] if len(lines) > 4 else lines


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def _row(device: str, *cells: str) -> str:
    widths = (11, 15, 8, 13, 12, 12)
    row = f"{device:<9}" + "".join(f"{c:>{w}}" for c, w in zip(cells, widths))
    return row.rstrip()
