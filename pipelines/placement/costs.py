"""A model of step time: the cost of a plan for given speeds of devices and links.

It predicts which placement is fastest, not milliseconds: it uses peak rates and no
overlap.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from pipelines.text_tables import align
from tf_dlrm.sharding.planning import (
    DEFAULT_OPTIMIZER,
    FLOAT_BYTES,
    STRATEGIES,
    Plan,
    plan,
    traffic,
)

LINE_BYTES = 64  # a burst of HBM2 or a cache line of a CPU
BACKWARD = 2  # gradients of inputs and of weights each cost a forward pass
V100_MEMORY_BYTES_PER_SECOND = 900e9
V100_FLOPS_PER_SECOND = 15.7e12  # float32


class Link(NamedTuple):
    """The connection of a device to the others.

    Attributes:
        name: Name in tables and charts.
        published_bytes_per_second: Rate that the vendor publishes.
        bytes_per_second: Rate at which a device can send while it receives at the same
            rate. NVLink's published rates add both directions, so this is half of them.
        latency_seconds: Time to start a message; assumed, not published.
    """

    name: str
    published_bytes_per_second: float
    bytes_per_second: float
    latency_seconds: float


LINKS = (
    Link("NVLink, H100", 900e9, 450e9, 3e-6),
    Link("NVLink, V100", 300e9, 150e9, 3e-6),
    Link("PCIe 4.0 x16", 32e9, 32e9, 5e-6),
    Link("25 Gbit Ethernet", 3.1e9, 3.1e9, 20e-6),
)


def step_time(
    plan: Plan,
    batch_size: int | None = None,
    hotness=None,
    mlp_flops: float = 0.0,
    link_bytes_per_second: float = LINKS[1].bytes_per_second,
    memory_bytes_per_second: float = V100_MEMORY_BYTES_PER_SECOND,
    flops_per_second: float = V100_FLOPS_PER_SECOND,
    *,
    latency_seconds: float = 3e-6,
    mlp_bytes: float | None = None,
    id_bytes: int = 8,
) -> dict[str, float]:
    """Predict the seconds of a training step on N devices, part by part.

    This is an alpha-beta model: a message of n bytes takes alpha + n/beta, where alpha
    is `latency_seconds` and beta is `link_bytes_per_second`. Each part takes as long as
    its slowest device:

    - `lookup`: bytes moved through the device's memory, divided by
      `memory_bytes_per_second`. Each id reads its row (the columns on this device);
      each row that a batch touches, at most the rows on the device, is then read and
      written with its optimizer state. Memory delivers whole lines of 64 bytes, so
      narrow parts of rows cost more. A data-parallel table is read for the device's own
      examples, but updated on each device for the whole batch.
    - `exchange`: three personalized all-to-alls (the paper's butterfly shuffle): ids to
      the owners, pooled vectors back, their gradients to the owners. Each takes N - 1
      turns, in which every device sends to one device and receives from another:
      (N - 1) alpha + max over devices of (bytes sent, received) / beta.
    - `mlp`: 3 `mlp_flops` (forward, and twice that backward) for each example of the
      largest local batch, divided by `flops_per_second`.
    - `all_reduce`: gradients of the MLPs and of data-parallel tables, in a ring:
      2 (N - 1) alpha + 2 (N - 1)/N bytes / beta; and the all-gather of data-parallel
      tables that are too large for that.
    - `total`: the sum of these parts, without overlap.

    Links are full duplex, equally fast and do not slow each other down; bytes are those
    of `Plan.exchange_bytes`. Caches, kernel launches and input are ignored.

    Args:
        plan: The `Plan`.
        batch_size: Global batch size; default: that of the plan.
        hotness: Mean number of ids per lookup, as in `tf_dlrm.sharding.plan`; default:
            that of the plan.
        mlp_flops: Floating-point operations of MLPs and interaction, forward, for one
            example.
        link_bytes_per_second: Rate at which a device sends while it receives at the
            same rate.
        memory_bytes_per_second: Bandwidth of a device's memory.
        flops_per_second: Floating-point operations per second of a device.
        latency_seconds: Time to start a message.
        mlp_bytes: Bytes of the MLPs' gradients; default: `2 * mlp_flops`, as a weight
            of 4 bytes takes 2 operations per example.
        id_bytes: Bytes of an id.

    Returns:
        Seconds by part: `lookup`, `exchange`, `mlp`, `all_reduce`, `total`.

    Raises:
        ValueError: If a rate is not positive.

    Example:

    >>> import tf_dlrm
    >>> tables = [tf_dlrm.EmbeddingTable("item", 1_000_000, 16)]
    >>> plan = tf_dlrm.sharding.plan(tables, num_devices=2, batch_size=1000)
    >>> fast = step_time(plan, mlp_flops=1e6, link_bytes_per_second=150e9)
    >>> slow = step_time(plan, mlp_flops=1e6, link_bytes_per_second=3e9)
    >>> fast["mlp"] == slow["mlp"], slow["total"] > fast["total"]
    (True, True)

    Reference:
        Naumov et al. 2019, arXiv 1906.00091, section 3.
    """
    rates = {
        "link_bytes_per_second": link_bytes_per_second,
        "memory_bytes_per_second": memory_bytes_per_second,
        "flops_per_second": flops_per_second,
    }
    for name, value in rates.items():
        if not value > 0:
            raise ValueError(f"`{name}` must be positive. Received: {name}={value!r}")
    batch_size = plan.batch_size if batch_size is None else batch_size
    flows = traffic.of_plan(plan, batch_size, hotness, id_bytes=id_bytes)
    turns = plan.num_devices - 1

    def all_to_all(flow):
        most = max(flow.sent.max(), flow.received.max())
        return (turns * latency_seconds + most / link_bytes_per_second) * (most > 0)

    exchange = sum(all_to_all(flows[name]) for name in ("ids", "pooled", "gradients"))
    mlp_bytes = 2 * mlp_flops if mlp_bytes is None else mlp_bytes
    ring_bytes = 2 * turns / plan.num_devices * mlp_bytes
    ring_bytes += flows["all_reduce"].sent.max()
    ring = 2 * turns * latency_seconds + ring_bytes / link_bytes_per_second
    local = traffic.local_batches(batch_size, plan.num_devices).max()
    parts = {
        "lookup": max(_bytes_touched(plan, batch_size, hotness))
        / memory_bytes_per_second,
        "exchange": exchange,
        "mlp": (1 + BACKWARD) * mlp_flops * int(local) / flops_per_second,
        "all_reduce": ring * (ring_bytes > 0) + all_to_all(flows["all_gather"]),
    }
    parts = {name: float(seconds) for name, seconds in parts.items()}
    return {**parts, "total": sum(parts.values())}


def _bytes_touched(plan, batch_size, hotness) -> list[float]:
    """Return the bytes that a step moves through the memory of each device."""
    total = [0.0] * plan.num_devices
    loads = {load.name: load for load in plan.tables}
    if hotness is not None:
        loads = {name: load.with_hotness(hotness) for name, load in loads.items()}
    for shard in plan:
        load = loads[shard.table]
        ids = load.ids_to(shard.num_rows) * batch_size
        read = load.ids_to(shard.num_rows) * plan.examples_of(shard, batch_size)
        width = shard.num_columns
        row = _lines(FLOAT_BYTES * width)
        state = _lines(load.row_bytes(width) - FLOAT_BYTES * width)
        updated = min(ids, shard.num_rows) * 2 * (row + state)
        total[shard.device] += read * row + updated
    return total


def _lines(num_bytes: int) -> int:
    return LINE_BYTES * math.ceil(num_bytes / LINE_BYTES)


def scaling(
    tables: Sequence,
    mlp_flops: float,
    batch_size: int = 65_536,
    hotness=1,
    optimizer=DEFAULT_OPTIMIZER,
    *,
    num_devices: Sequence[int] = (1, 2, 4, 8, 16, 32, 64, 128),
    placements: Sequence[str] = STRATEGIES,
    links: Sequence[Link] = LINKS,
    **rates,
) -> list[dict]:
    """Predict step times for several numbers of devices, placements and links.

    The global batch size is constant, so that N devices learn the same as one.

    Args:
        tables: The `EmbeddingTable`s.
        mlp_flops: Floating-point operations of MLPs and interaction, forward, for one
            example.
        batch_size: Global batch size.
        hotness: Mean number of ids per lookup, as in `tf_dlrm.sharding.plan`.
        optimizer: Optimizer of the tables, as in `tf_dlrm.sharding.plan`.
        num_devices: Numbers of devices to predict for.
        placements: Strategies of `tf_dlrm.sharding.plan` to predict for.
        links: `Link`s to predict for.
        **rates: `memory_bytes_per_second`, `flops_per_second` and `mlp_bytes` of
            `step_time`; default: those of a V100 for every link, so that results differ
            only by link.

    Returns:
        A dict for each link, placement and number of devices: `link`, `placement`,
        `num_devices`, `memory_bytes` (of the fullest device), `exchange_bytes` (of
        all devices), the seconds of `step_time`, and `samples_per_second`.

    Example:

    >>> import tf_dlrm
    >>> tables = [tf_dlrm.EmbeddingTable("item", 1_000_000, 16)]
    >>> rows = scaling(tables, mlp_flops=1e6, num_devices=(1, 2), links=LINKS[:1])
    >>> len(rows), rows[-1]["num_devices"]
    (10, 2)
    """
    rows = []
    plans = {
        (placement, number): plan(
            tables,
            number,
            batch_size=batch_size,
            hotness=hotness,
            strategy=placement,
            optimizer=optimizer,
        )
        for placement in placements
        for number in num_devices
    }
    for link in links:
        for (placement, number), each in plans.items():
            seconds = step_time(
                each,
                mlp_flops=mlp_flops,
                link_bytes_per_second=link.bytes_per_second,
                latency_seconds=link.latency_seconds,
                **rates,
            )
            row = {
                "link": link.name,
                "placement": placement,
                "num_devices": number,
                "memory_bytes": max(each.memory_bytes),
                "exchange_bytes": each.exchange_bytes()["total"],
                **seconds,
                "samples_per_second": batch_size / seconds["total"],
            }
            rows.append(row)
    return rows


def format_scaling(rows: Sequence[dict]) -> str:
    """Return the rows of `scaling` as a table of ms per step for each link.

    The fastest placement in a line has a star.
    """
    placements = list(dict.fromkeys(row["placement"] for row in rows))
    lines = []
    for link in dict.fromkeys(row["link"] for row in rows):
        found = [row for row in rows if row["link"] == link]
        table = [["devices", *placements]]
        for number in dict.fromkeys(row["num_devices"] for row in found):
            of_line = [row for row in found if row["num_devices"] == number]
            times = {row["placement"]: 1000 * row["total"] for row in of_line}
            best = min(times.values())
            cells = [
                f"{times[name]:.3f}{'*' if times[name] == best else ' '}"
                for name in placements
            ]
            table.append([str(number), *cells])
        lines += [f"{link}: milliseconds per step", *align(table), ""]
    return "\n".join(lines)
