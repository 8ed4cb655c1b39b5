"""`plan`: where tables go, so that memory and lookups are shared evenly."""

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
TOLERANCE = 1.03  # of memory over the mean, before rows are cut off to level it
ACCEPTED = 1.05  # above this, columns are given up for rows


def plan(
    tables: Sequence[EmbeddingTable],
    num_devices: int,
    device_memory_bytes: int | None = None,
    batch_size: int = DEFAULT_BATCH_SIZE,
    hotness: Hotness = 1,
    strategy: str | Mapping[str, str] = "auto",
    optimizer: Any = DEFAULT_OPTIMIZER,
) -> Plan:
    """Place tables on devices.

    Each table goes one of four ways:

    - `"table_wise"`: whole, on one device.
    - `"row_wise"`: ranges of its rows on several devices, which return partial sums.
    - `"column_wise"`: ranges of its columns, multiples of 4 wide where the width is
      one, which return parts of vectors.
    - `"data_parallel"`: whole, on all devices, which add up its gradients.

    `"auto"` chooses. A table is data-parallel where copies cost no more traffic than
    exchanging its vectors, about `rows <= batch_size / num_devices`. One that exceeds
    a device's fair share of memory, or 1.25 times that of lookups, is split. By
    columns, where each part keeps 16 of them (64 bytes, which memory delivers at
    once), ids cost less than partial sums and no optimizer state belongs to whole
    rows. By rows elsewhere, into as few parts as memory allows; for the sake of
    lookups only where bags hold 8 ids or more, since each part returns a vector. The
    heaviest pieces are then placed first, each on the device whose greater share of
    memory or lookups it raises least; rows are cut off full devices until none holds
    1.03 times the mean; and pieces change places where that evens out the lookups.

    The same arguments give the same plan. Ids are taken to fall on all rows alike.
    Where they are numbered by frequency, first rows are looked up most: the first
    ranges of row-wise tables are therefore spread over the devices.

    Args:
        tables: `EmbeddingTable`s.
        num_devices: Number of devices.
        device_memory_bytes: Largest number of bytes of rows and optimizer state on a
            device. Default: no limit.
        batch_size: Global batch size, for the costs.
        hotness: Ids that an example has on average: a number for all features, or a
            dict of table or feature name to number (others: 1).
        strategy: `"auto"`, or one of the four ways for all tables, or a dict of table
            name to one of these (others: `"auto"`). `"row_wise"` uses all devices,
            `"column_wise"` as many as there are parts of 4 columns.
        optimizer: What trains the tables, for its state: anything that
            `tf_dlrm.optimizers.get` takes, or floats of state a row, or a dict of
            table name to one of these (others: `"adagrad"`).

    Returns:
        A `Plan`.

    Raises:
        ValueError: If an argument breaks a rule above, or the tables do not fit in
            `device_memory_bytes`: with device, table and missing bytes.
        TypeError: If `tables` does not hold `EmbeddingTable`s.

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
        Naumov et al. 2019, arXiv 1906.00091, section 3: tables model-parallel, MLPs
        data-parallel. The greedy order is Graham's longest processing time first.
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
    found = Plan(tuple(shards), loads, job.num_devices, job.batch_size)
    if device_memory_bytes is not None:
        _check_fit(found, int(device_memory_bytes))
    return found


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

        Columns are coarse. Where they leave memory uneven, tables are split by rows
        instead: one, two, four, ... of those whose memory counts, from the smallest.
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
        # Without a limit, lookups are never given up for memory.
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
        """Smaller is better: too large, too uneven, how uneven."""
        fullest = packing.memory.max()
        imbalance = float(fullest / packing.memory.mean())
        uneven = "auto" in self.strategies and imbalance > ACCEPTED
        return bool(fullest > self.limit), uneven, round(imbalance, 6)

    def attempt(
        self, by_rows: Collection[int] = (), by_memory: bool = False
    ) -> tuple[Packing, list[str]]:
        """Pack the tables once.

        Args:
            by_rows: Tables that auto must not split by columns.
            by_memory: Whether lookups are left out of account.
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
                raise NotImplementedError(f"No way to cut tables for {kind!r}.")
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
        """Return the tables that all devices hold.

        They are those that must be, and those of auto that cost no more traffic as
        copies, as far as memory allows.
        """
        if self.num_devices == 1:
            return {i for i, s in enumerate(self.strategies) if s == "data_parallel"}
        chosen, rest, room = set(), [], self.limit * self.num_devices
        for i, (load, strategy) in enumerate(zip(self.loads, self.strategies)):
            memory = load.memory_bytes()
            if strategy == "data_parallel":
                chosen.add(i)
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
            chosen.add(i)
        return chosen

    def _fair(self, everywhere: Collection[int]) -> tuple[float, float]:
        """A device's share of memory and lookups of the tables that are shared out."""
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
    given = (
        strategy if isinstance(strategy, Mapping) else dict.fromkeys(names, strategy)
    )
    for name, each in given.items():
        if not isinstance(each, str) or each not in STRATEGIES:
            raise UserError(
                f"`strategy` must be one of {STRATEGIES}, or a dict of table name to "
                f"such. Received for table '{name}': {each!r}"
            )
    return tuple(given.get(load.name, "auto") for load in loads)


def _check_positive(name: str, value: Any) -> None:
    whole = hasattr(value, "__index__") and not isinstance(value, bool)
    if not whole or int(value) < 1:
        raise UserError(
            f"`{name}` must be a positive integer. Received: {name}={value!r}"
        )


def _check_fit(found: Plan, limit: int) -> None:
    """Raise where a device holds more than `limit` bytes."""
    memory = found.memory_bytes
    device = int(np.argmax(memory))
    if memory[device] <= limit:
        return

    def size(shard: Shard) -> int:
        return found.load(shard.table).memory_bytes(shard.num_rows, shard.num_columns)

    largest = max(found.shards_on(device), key=size)
    load = found.load(largest.table)
    missing = sum(memory) - limit * found.num_devices
    if missing > 0:
        reason = (
            f"All devices together would hold {sum(memory):,} bytes, {missing:,} more "
            f"than {found.num_devices} x {limit:,}: more or larger devices are "
            "needed, or an optimizer with less state."
        )
    elif largest.kind == "table_wise" and size(largest) > limit:
        reason = (
            "This table alone is larger than a device: place it 'row_wise', "
            "'column_wise' or 'auto'."
        )
    else:
        reason = "Strategy 'auto' splits tables to fit, where it may choose for all."
    raise UserError(
        f"Device {device} would hold {memory[device]:,} bytes of rows and optimizer "
        f"state, {memory[device] - limit:,} more than device_memory_bytes={limit:,}. "
        f"Its largest part is of table '{load.name}' ({load.num_rows:,} rows x "
        f"{load.embedding_dim}, {largest.kind}): {size(largest):,} bytes here, "
        f"{load.memory_bytes():,} in all. {reason}"
    )
