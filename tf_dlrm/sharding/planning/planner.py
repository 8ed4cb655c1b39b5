"""`plan`: placement of tables that balances memory and lookups over devices."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.sharding.planning import splitting, traffic
from tf_dlrm.sharding.planning.coverage import KINDS
from tf_dlrm.sharding.planning.loads import (
    DEFAULT_OPTIMIZER,
    Hotness,
    TableLoad,
    check_names,
    make_loads,
)
from tf_dlrm.sharding.planning.packing import Packing
from tf_dlrm.sharding.planning.plans import Plan, Shard

STRATEGIES = ("auto", *KINDS)
DEFAULT_BATCH_SIZE = 8192
TOLERANCE = 1.03  # memory over the mean, above which rows are moved
ACCEPTED = 1.05  # memory over the mean, above which columns are given up for rows


def plan(
    tables: Sequence[EmbeddingTable],
    num_devices: int,
    device_memory_bytes: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    hotness: Hotness = 1,
    strategy: str | Mapping[str, str] = "auto",
    optimizer: Any = DEFAULT_OPTIMIZER,
) -> Plan:
    """Plan the placement of tables on devices.

    A table can be placed in one of four ways:

    - `"table_wise"`: the whole table on one device.
    - `"row_wise"`: ranges of its rows on several devices, which return partial sums.
    - `"column_wise"`: ranges of its columns on several devices, which return parts of
      vectors. Widths are multiples of 4 if the table's width is one.
    - `"data_parallel"`: a copy on each device; gradients are summed over devices.

    `"auto"` chooses for each table. A table becomes data-parallel if copies need no
    more traffic than the exchange of its vectors, roughly if
    `rows <= batch_size / num_devices`. A table that exceeds a device's fair share of
    memory, or 1.25 times the fair share of lookups, is split. It is split by columns if
    each part keeps at least 16 columns (64 bytes, which memory delivers at once), if
    ids need less traffic than partial sums, and if no optimizer state belongs to whole
    rows. Otherwise it is split by rows into as few parts as memory allows; because each
    part returns a vector, lookups alone cause such a split only if bags have 8 ids or
    more. The pieces are then placed in descending order of weight, each on the device
    whose share of memory or lookups, whichever is larger, rises least. Finally, rows
    move from full devices until none holds more than 1.03 times the mean, and pieces
    are exchanged if that balances the lookups.

    The same arguments give the same plan. The plan assumes that all rows are equally
    frequent. If ids are sorted by frequency, the first rows are looked up most, so the
    first ranges of row-wise tables are spread over the devices.

    Args:
        tables: `EmbeddingTable`s.
        num_devices: Number of devices.
        device_memory_bytes: Maximum number of bytes of rows and optimizer state on a
            device. Default: no limit.
        batch_size: Global batch size, used to compute costs.
        hotness: Average number of ids per example: one number for all features, or a
            dict of table or feature names to numbers (default: 1).
        strategy: `"auto"` or one of the four placements for all tables, or a dict of
            table names to these (default: `"auto"`). `"row_wise"` uses all devices,
            `"column_wise"` at most one device for every 4 columns.
        optimizer: Optimizer of the tables, which determines the size of their state:
            anything that `tf_dlrm.optimizers.get` accepts, or the number of floats of
            state per row, or a dict of table names to these (default: `"adagrad"`).

    Returns:
        A `Plan`.

    Raises:
        ValueError: If an argument breaks a rule above, or if the tables exceed
            `device_memory_bytes`; the message names device, table and excess bytes.
        TypeError: If `tables` holds anything but `EmbeddingTable`s.

    Example:

    >>> import tf_dlrm
    >>> tables = [tf_dlrm.EmbeddingTable(f"C{i}", rows, 16)
    ...           for i, rows in enumerate((4_000_000, 900_000, 700_000, 40))]
    >>> plan = tf_dlrm.sharding.plan(tables, num_devices=4)
    >>> {table.name: plan.placement(table.name) for table in tables}
    {'C0': 'row_wise', 'C1': 'table_wise', 'C2': 'table_wise', 'C3': 'data_parallel'}
    >>> round(plan.imbalance, 2)
    1.0
    >>> tf_dlrm.sharding.plan(tables, 4, device_memory_bytes=100_000_000)
    Traceback (most recent call last):
        ...
    tf_dlrm.runtime.errors.UserError: Device 0 would hold ...

    Reference:
        Naumov et al. 2019, arXiv 1906.00091, section 3: model-parallel tables and
        data-parallel MLPs. The greedy order is Graham's longest processing time first.
    """
    for name, value in (("num_devices", num_devices), ("batch_size", batch_size)):
        _check_positive(name, value)
    if device_memory_bytes is not None:
        _check_positive("device_memory_bytes", device_memory_bytes)
    loads = make_loads(tables, hotness, optimizer)
    strategies = _strategies(strategy, loads)
    job = _Job(
        loads,
        strategies,
        int(num_devices),
        int(batch_size),
        math.inf if device_memory_bytes is None else int(device_memory_bytes),
    )
    packing, kinds = job.run()
    shards = splitting.to_shards(packing, kinds)
    new_plan = Plan(tuple(shards), loads, job.num_devices, job.batch_size)
    if device_memory_bytes is not None:
        _check_fit(new_plan, int(device_memory_bytes))
    return new_plan


@dataclasses.dataclass(frozen=True)
class _Job:
    """One planning problem."""

    loads: tuple[TableLoad, ...]
    strategies: tuple[str, ...]
    num_devices: int
    batch_size: int
    limit: float

    def run(self) -> tuple[Packing, list[str]]:
        """Return the first attempt that is good enough, or else the best one.

        Columns are coarse. If they leave memory uneven, further attempts split tables
        by rows instead: one, two, four, ... of those with significant memory, smallest
        first.
        """
        packing, kinds = self.attempt()
        best = self._rank(packing), packing, kinds
        slack = (TOLERANCE - 1) * float(packing.memory.mean())
        counting = [
            (load.memory_bytes(), i)
            for i, (load, kind) in enumerate(zip(self.loads, kinds))
            if kind == "column_wise" and load.memory_bytes() > slack
        ]
        by_size = [i for _, i in sorted(counting)]
        counts = [2**i for i in range(len(by_size).bit_length())]
        attempts: list[dict[str, Any]] = [
            {"by_rows": set(by_size[:count])} for count in counts
        ]
        attempts.append({"by_rows": set(range(len(self.loads)))})
        # Balance memory at the expense of lookups only if there is a limit.
        attempts += [{"by_memory": True}] if self.limit < math.inf else []
        for arguments in attempts:
            if best[0][:2] == (False, False):
                break
            packing, kinds = self.attempt(**arguments)
            rank = self._rank(packing)
            if rank < best[0]:
                best = rank, packing, kinds
        return best[1], best[2]

    def _rank(self, packing: Packing) -> tuple[bool, bool, float]:
        """Return `(exceeds the limit, is too uneven, imbalance)`; smaller is better."""
        fullest = packing.memory.max()
        imbalance = float(fullest / packing.memory.mean())
        uneven = "auto" in self.strategies and imbalance > ACCEPTED
        return bool(fullest > self.limit), uneven, round(imbalance, 6)

    def attempt(
        self, by_rows: Collection[int] = (), by_memory: bool = False
    ) -> tuple[Packing, list[str]]:
        """Pack the tables once.

        Args:
            by_rows: Numbers of the tables that `"auto"` must not split by columns.
            by_memory: Whether to ignore lookups.
        """
        everywhere = self._data_parallel()
        kinds = [
            "data_parallel" if i in everywhere else strategy
            for i, strategy in enumerate(self.strategies)
        ]
        fair = self._fair(everywhere)
        copies = [self.loads[i] for i in everywhere]
        means = (
            fair[0] + sum(load.memory_bytes() for load in copies),
            sum(_lookup_bytes(load) for load in self.loads) / self.num_devices,
        )
        packing = Packing(self.loads, self.num_devices, means, self.limit, by_memory)
        pieces, movable, divisible = [], set(), set()
        for i, (load, kind) in enumerate(zip(self.loads, kinds)):
            whole = (i, load.num_rows, load.embedding_dim)
            if kind == "data_parallel":
                packing.add_everywhere(i)
            elif kind == "row_wise":
                sizes = splitting.even_rows(load, self.num_devices)
                if len(sizes) == self.num_devices:
                    packing.add_rows_everywhere(i, sizes)
                else:
                    pieces += [(i, rows, load.embedding_dim) for rows in sizes]
            elif kind == "column_wise":
                widths = splitting.even_widths(load.embedding_dim, self.num_devices)
                pieces += [(i, load.num_rows, width) for width in widths]
            elif kind == "table_wise":
                pieces.append(whole)
                movable.add(i)
            elif kind != "auto":
                raise NotImplementedError(f"Cannot split tables of kind {kind!r}.")
            else:
                kinds[i], parts = splitting.split(
                    load, fair, self.num_devices, TOLERANCE, i not in by_rows
                )
                pieces += [(i, *part) for part in parts]
                movable.add(i)
                if kinds[i] != "column_wise":
                    divisible.add(i)
        packing.place_all(pieces)
        packing.exchange(movable, self.limit)
        if divisible:
            mean = packing.memory.mean()
            target = max(mean, min(TOLERANCE * mean, self.limit))
            packing.level(divisible, target)
            packing.exchange(movable, max(target, packing.memory.max()))
        for i in divisible:
            split = packing.present[:, i].sum() > 1
            kinds[i] = "row_wise" if split else "table_wise"
        return packing, kinds

    def _data_parallel(self) -> set[int]:
        """Return the numbers of the data-parallel tables.

        These are the tables with strategy `"data_parallel"`, and those with `"auto"`
        that need no more traffic as copies, if memory allows.
        """
        if self.num_devices == 1:
            return {i for i, s in enumerate(self.strategies) if s == "data_parallel"}
        replicated, rest, room = set(), [], self.limit * self.num_devices
        for i, (load, strategy) in enumerate(zip(self.loads, self.strategies)):
            memory = load.memory_bytes()
            if strategy == "data_parallel":
                replicated.add(i)
                memory *= self.num_devices
            elif strategy == "auto" and traffic.replicates_cheaply(
                load, self.num_devices, self.batch_size
            ):
                rest.append((memory, i))
            room -= memory
        for memory, i in sorted(rest):
            room -= memory * (self.num_devices - 1)
            if room < 0:
                break
            replicated.add(i)
        return replicated

    def _fair(self, everywhere: Collection[int]) -> tuple[float, float]:
        """Return a device's fair share of memory and lookups of the other tables."""
        shared = [load for i, load in enumerate(self.loads) if i not in everywhere]
        memory = sum(load.memory_bytes() for load in shared)
        lookups = sum(_lookup_bytes(load) for load in shared)
        return memory / self.num_devices, lookups / self.num_devices


def _lookup_bytes(load: TableLoad) -> float:
    return load.lookup_bytes(load.num_rows, load.embedding_dim)


def _strategies(
    strategy: str | Mapping[str, str], loads: Sequence[TableLoad]
) -> tuple[str, ...]:
    names = {load.name for load in loads}
    check_names("strategy", strategy, names)
    by_table = (
        strategy if isinstance(strategy, Mapping) else dict.fromkeys(names, strategy)
    )
    for name, own in by_table.items():
        if not isinstance(own, str) or own not in STRATEGIES:
            raise UserError(
                f"`strategy` must be one of {STRATEGIES}, or a dict of table names to "
                f"these. Received for table '{name}': {own!r}"
            )
    return tuple(by_table.get(load.name, "auto") for load in loads)


def _check_positive(name: str, value: Any) -> None:
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or int(value) < 1:
        raise UserError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )


def _check_fit(new_plan: Plan, limit: int) -> None:
    """Raise an error if a device holds more than `limit` bytes."""
    memory = new_plan.memory_bytes
    device = int(np.argmax(memory))
    if memory[device] <= limit:
        return

    def size(shard: Shard) -> int:
        load = new_plan.load(shard.table)
        return load.memory_bytes(shard.num_rows, shard.num_columns)

    largest = max(new_plan.shards_on(device), key=size)
    load = new_plan.load(largest.table)
    excess = sum(memory) - limit * new_plan.num_devices
    if excess > 0:
        reason = (
            f"All devices together would hold {sum(memory):,} bytes, {excess:,} more "
            f"than {new_plan.num_devices} x {limit:,}. Use more or larger devices, or "
            "an optimizer with less state."
        )
    elif largest.kind == "table_wise" and size(largest) > limit:
        reason = (
            "This table alone exceeds the memory of a device. Place it 'row_wise', "
            "'column_wise' or 'auto'."
        )
    else:
        reason = "Use strategy 'auto' for all tables: it splits tables to fit."
    raise UserError(
        f"Device {device} would hold {memory[device]:,} bytes of rows and optimizer "
        f"state, {memory[device] - limit:,} more than device_memory_bytes={limit:,}. "
        f"Its largest shard is from table '{load.name}' ({load.num_rows:,} rows x "
        f"{load.embedding_dim}, {largest.kind}): {size(largest):,} of the table's "
        f"{load.memory_bytes():,} bytes. {reason}"
    )
