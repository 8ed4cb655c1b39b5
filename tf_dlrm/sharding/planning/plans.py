"""`Plan`: which device holds which part of which table, checked to cover them all."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np

from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.sharding.planning import coverage, summaries, traffic
from tf_dlrm.sharding.planning.loads import Hotness, TableLoad, check_tables

Key = TypeVar("Key", int, str)


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a table, and the device that holds it.

    Args:
        table: Name of the table.
        kind: `"table_wise"`, `"row_wise"`, `"column_wise"` or `"data_parallel"`;
            all shards of a table are of one kind.
        device: Number of the device, from 0.
        first_row: First row of the shard.
        num_rows: Number of rows.
        first_column: First column of the shard.
        num_columns: Number of columns.
    """

    table: str
    kind: str
    device: int
    first_row: int
    num_rows: int
    first_column: int
    num_columns: int

    @property
    def rows(self) -> slice:
        """The shard's rows, to slice a table with."""
        return slice(self.first_row, self.first_row + self.num_rows)

    @property
    def columns(self) -> slice:
        """The shard's columns, to slice a table with."""
        return slice(self.first_column, self.first_column + self.num_columns)


@dataclasses.dataclass(frozen=True)
class Plan(Sequence[Shard]):
    """An immutable sequence of `Shard`s that holds each value of each table once.

    Data-parallel tables are the exception: each device has all of them. Made by
    `tf_dlrm.sharding.plan`; printing it shows a table by device.

    Args:
        shards: The `Shard`s.
        tables: The tables' `TableLoad`s: sizes, ids looked up, optimizer state.
        num_devices: Number of devices.
        batch_size: Global batch size that the costs are for.

    Raises:
        ValueError: If the shards do not cover the tables: the message says where.

    Example:

    >>> import tf_dlrm
    >>> tables = [tf_dlrm.EmbeddingTable("item", 1_000_000, 16),
    ...           tf_dlrm.EmbeddingTable("country", 200, 16)]
    >>> plan = tf_dlrm.sharding.plan(tables, num_devices=2)
    >>> plan.placement("item"), plan.placement("country")
    ('row_wise', 'data_parallel')
    >>> [(shard.device, shard.num_rows) for shard in plan.of_table("item")]
    [(0, 500000), (1, 500000)]
    >>> plan.memory_bytes
    (64025600, 64025600)
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    shards: tuple[Shard, ...]
    tables: tuple[TableLoad, ...]
    num_devices: int
    batch_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "shards", tuple(self.shards))
        object.__setattr__(self, "tables", tuple(self.tables))
        coverage.check(self.shards, self.tables, self.num_devices)

    @functools.cached_property
    def _shards_by_device(self) -> dict[int, tuple[Shard, ...]]:
        return _group(self.shards, lambda shard: shard.device)

    @functools.cached_property
    def _shards_by_table(self) -> dict[str, tuple[Shard, ...]]:
        return _group(self.shards, lambda shard: shard.table)

    @functools.cached_property
    def _loads(self) -> dict[str, TableLoad]:
        return {load.name: load for load in self.tables}

    # A sequence

    def __getitem__(self, index: Any) -> Any:
        return self.shards[index]

    def __len__(self) -> int:
        return len(self.shards)

    # What is where

    def shards_on(self, device: int) -> tuple[Shard, ...]:
        """Return the shards that a device holds, in the order of the tables.

        Raises:
            ValueError: If there is no such device.
        """
        if device not in range(self.num_devices):
            raise UserError(
                f"`device` must be in 0 .. {self.num_devices - 1}. Received: "
                f"device={device!r}"
            )
        return self._shards_by_device.get(int(device), ())

    def of_table(self, name: str) -> tuple[Shard, ...]:
        """Return the shards of a table, from its first row and column on.

        Raises:
            ValueError: If the plan has no such table.
        """
        self.load(name)
        return self._shards_by_table[name]

    def placement(self, name: str) -> str:
        """Return the placement of a table: the kind of its shards."""
        return self.of_table(name)[0].kind

    def load(self, name: str) -> TableLoad:
        """Return the load of a table: its size, ids looked up, optimizer state."""
        if name not in self._loads:
            raise UserError(
                f"The plan has no table '{name}'. Tables: {', '.join(self._loads)}"
            )
        return self._loads[name]

    # What it costs

    @property
    def memory_bytes(self) -> tuple[int, ...]:
        """Bytes of rows and optimizer state on each device."""
        total = [0] * self.num_devices
        for shard in self.shards:
            load = self._loads[shard.table]
            total[shard.device] += load.memory_bytes(shard.num_rows, shard.num_columns)
        return tuple(total)

    @property
    def num_lookups(self) -> tuple[float, ...]:
        """Ids that each device is expected to look up in a batch.

        Ids are taken to fall on all rows alike. A data-parallel table is looked up
        on each device by that device's part of the batch.
        """
        total = np.zeros(self.num_devices)
        for shard in self.shards:
            ids = self._loads[shard.table].ids_to(shard.num_rows)
            total[shard.device] += ids * self.examples_of(shard)
        return tuple(total.tolist())

    @property
    def lookup_bytes(self) -> tuple[int, ...]:
        """Bytes of embeddings that each device is expected to read for a batch.

        `num_lookups`, each times 4 bytes times the columns that the device has.
        """
        total = np.zeros(self.num_devices)
        for shard in self.shards:
            load = self._loads[shard.table]
            read = load.lookup_bytes(shard.num_rows, shard.num_columns)
            total[shard.device] += read * self.examples_of(shard)
        return tuple(int(round(value)) for value in total)

    def examples_of(self, shard: Shard, batch_size: int | None = None) -> float:
        """Return how many examples a shard serves: all, or the device's own."""
        batch_size = self.batch_size if batch_size is None else batch_size
        if shard.kind == "data_parallel":
            return batch_size / self.num_devices
        return float(batch_size)

    @property
    def imbalance(self) -> float:
        """The fullest device's bytes over the devices' mean; 1.0 is perfect."""
        return max(self.memory_bytes) / (sum(self.memory_bytes) / self.num_devices)

    @property
    def lookup_imbalance(self) -> float:
        """The busiest device's `lookup_bytes` over the devices' mean."""
        return max(self.lookup_bytes) / max(
            sum(self.lookup_bytes) / self.num_devices, 1
        )

    def exchange_bytes(
        self,
        batch_size: int | None = None,
        hotness: Hotness | None = None,
        *,
        id_bytes: int = 8,
        bag_bytes: int = 0,
        routed: bool = True,
        data_parallel: str = "cheapest",
    ) -> dict[str, int]:
        """Return the bytes that one training step sends from device to device.

        With N devices, a batch of B examples, b_d of them on device d (B/N, the
        first `B % N` devices one more), and for each shard s of a table with F
        features, h ids an example, D columns and V rows: its device d, rows v_s and
        columns w_s. What stays on a device is not counted, so each sum has the
        examples of the *other* devices, B - b_d:

        - `ids`: Σ_s (B - b_d) (h v_s/V `id_bytes` + F `bag_bytes`), ids on their way
          to the owners of their rows; in table- and column-wise shards v_s = V. Not
          `routed`, each row-wise owner gets all ids: v_s/V becomes 1.
        - `pooled`: Σ_s (B - b_d) F w_s 4, float32 vectors on their way back: whole
          vectors, parts of them by column, or a partial sum from each owner of rows.
        - `gradients`: the same again, of the pooled vectors, to the owners.
        - `all_reduce`: Σ over data-parallel tables of 2 (N - 1) V (D + 1) 4, an
          all-reduce of the table's dense gradient and of its rows' numbers of ids; or
        - `all_gather`: (N - 1) B (h `id_bytes` + F `bag_bytes` + 4 F D), ids and
          gradients of the bags to all devices; for each table what is less.

        Args:
            batch_size: Global batch size B; by default the plan's.
            hotness: Ids that an example has on average: a number for all features, or a
                dict of table or feature name to number (others: 1). By default what
                the plan was made for.
            id_bytes: Bytes of an id: 8 for int64, as batches have them; 4 for int32.
                Weights, where there are some, add 4.
            bag_bytes: Bytes that each bag adds, such as the 4 or 8 of a length where
                bags are ragged.
            routed: Whether an id goes to the one device that has its row, or to all
                that have rows of the table.
            data_parallel: `"cheapest"`, `"all_reduce"` or `"all_gather"`.

        Returns:
            Dict of bytes, summed over all devices: `ids`, `pooled`, `gradients`,
            `all_reduce`, `all_gather`, and `total`. `ids` is an expectation where
            tables are row-wise; all else is exact.

        Example:

        >>> import tf_dlrm
        >>> tables = [tf_dlrm.EmbeddingTable("item", 1000, 16)]
        >>> plan = tf_dlrm.sharding.plan(tables, 2, strategy="table_wise")
        >>> found = plan.exchange_bytes(batch_size=100)
        >>> found["ids"], found["pooled"], found["total"]  # 50 ids, 50 vectors
        (400, 3200, 6800)
        """
        found = traffic.of_plan(
            self,
            batch_size,
            hotness,
            id_bytes=id_bytes,
            bag_bytes=bag_bytes,
            routed=routed,
            data_parallel=data_parallel,
        )
        sent = {name: int(round(each.sent.sum())) for name, each in found.items()}
        return {**sent, "total": sum(sent.values())}

    # Checks, text, pictures

    def validate(self, tables: Sequence[EmbeddingTable]) -> None:
        """Check that this is a plan for these tables.

        Args:
            tables: `EmbeddingTable`s.

        Raises:
            ValueError: If a table is missing, is not known, or has another size; or
                other features read it.
        """
        coverage.check_same(self.tables, check_tables(tables))

    def summary(self) -> str:
        """Return a readable table: bytes, rows, lookups, cost by device; then tables.

        `print(plan)` shows the same.
        """
        return summaries.describe(self)

    __str__ = summary

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        tables = [dataclasses.asdict(load) for load in self.tables]
        shards = [list(dataclasses.astuple(shard)) for shard in self.shards]
        head = {
            "num_devices": self.num_devices,
            "batch_size": self.batch_size,
            "shard_fields": [field.name for field in dataclasses.fields(Shard)],
        }
        # One table or shard a line: small, and readable in a diff.
        parts = [json.dumps(head)[:-1]]
        for key, values in (("tables", tables), ("shards", shards)):
            lines = ",\n  ".join(json.dumps(value) for value in values)
            parts.append(f'"{key}": [\n  {lines}\n ]')
        return ",\n ".join(parts) + "}"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Make a plan from `to_json()`.

        Raises:
            ValueError: If the text is not a plan, or does not cover its tables.
        """
        try:
            found = json.loads(text)
            fields = found["shard_fields"]
            shards = [Shard(**dict(zip(fields, each))) for each in found["shards"]]
            loads = [TableLoad(**_as_tuples(each)) for each in found["tables"]]
            numbers = found["num_devices"], found["batch_size"]
        except (
            KeyError,
            TypeError,
            RecursionError,
            ValueError,
            AttributeError,
        ) as error:
            raise UserError(
                "This is not the JSON text of a Plan, as `to_json()` writes it: "
                f"{type(error).__name__}: {error}"
            ) from None
        return cls(tuple(shards), tuple(loads), *numbers)


def _group(
    shards: Iterable[Shard], key: Callable[[Shard], Key]
) -> dict[Key, tuple[Shard, ...]]:
    groups: dict[Key, list[Shard]] = {}
    for shard in shards:
        groups.setdefault(key(shard), []).append(shard)
    return {name: tuple(group) for name, group in groups.items()}


def _as_tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
