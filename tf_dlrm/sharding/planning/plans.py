"""`Plan`: which device holds which part of which table, checked for completeness."""

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
        kind: `"table_wise"`, `"row_wise"`, `"column_wise"` or `"data_parallel"`, the
            same for all shards of a table.
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
        """The shard's rows, as a slice of the table."""
        return slice(self.first_row, self.first_row + self.num_rows)

    @property
    def columns(self) -> slice:
        """The shard's columns, as a slice of the table."""
        return slice(self.first_column, self.first_column + self.num_columns)


@dataclasses.dataclass(frozen=True)
class Plan(Sequence[Shard]):
    """An immutable sequence of `Shard`s that contains each value of each table once.

    Data-parallel tables are the exception: each device has a copy. Create plans with
    `tf_dlrm.sharding.plan`, and print them to see memory and lookups by device.

    Args:
        shards: The `Shard`s.
        tables: The `TableLoad`s of the tables: sizes, ids per example, optimizer state.
        num_devices: Number of devices.
        batch_size: Global batch size for the costs.

    Raises:
        ValueError: If the shards do not cover the tables exactly; the message says
            where.

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

    # The methods of a sequence

    def __getitem__(self, index: Any) -> Any:
        return self.shards[index]

    def __len__(self) -> int:
        return len(self.shards)

    # Placement

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
        """Return the shards of a table, in the order of rows and columns.

        Raises:
            ValueError: If the plan has no such table.
        """
        self.load(name)
        return self._shards_by_table[name]

    def placement(self, name: str) -> str:
        """Return the placement of a table, which is the kind of its shards.

        Raises:
            ValueError: If the plan has no such table.
        """
        return self.of_table(name)[0].kind

    def load(self, name: str) -> TableLoad:
        """Return the load of a table: its size, ids per example, optimizer state.

        Raises:
            ValueError: If the plan has no such table.
        """
        if name not in self._loads:
            raise UserError(
                f"The plan has no table '{name}'. Tables: {', '.join(self._loads)}"
            )
        return self._loads[name]

    # Costs

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
        """Expected number of ids that each device looks up in a batch.

        All rows count as equally frequent. For a data-parallel table, each device looks
        up its own part of the batch.
        """
        total = np.zeros(self.num_devices)
        for shard in self.shards:
            ids = self._loads[shard.table].ids_to(shard.num_rows)
            total[shard.device] += ids * self.examples_of(shard)
        return tuple(total.tolist())

    @property
    def lookup_bytes(self) -> tuple[int, ...]:
        """Expected bytes of embeddings that each device reads for a batch.

        This is `num_lookups` times 4 bytes times the number of columns on the device.
        """
        total = np.zeros(self.num_devices)
        for shard in self.shards:
            load = self._loads[shard.table]
            read = load.lookup_bytes(shard.num_rows, shard.num_columns)
            total[shard.device] += read * self.examples_of(shard)
        return tuple(int(round(value)) for value in total)

    def examples_of(self, shard: Shard, batch_size: int | None = None) -> float:
        """Return the number of examples that look ids up in a shard.

        These are all examples of the batch, or those of the device for a data-parallel
        table.
        """
        batch_size = self.batch_size if batch_size is None else batch_size
        if shard.kind == "data_parallel":
            return batch_size / self.num_devices
        return float(batch_size)

    @property
    def imbalance(self) -> float:
        """Bytes of the fullest device divided by the mean; 1.0 is perfect."""
        return max(self.memory_bytes) / (sum(self.memory_bytes) / self.num_devices)

    @property
    def lookup_imbalance(self) -> float:
        """The largest `lookup_bytes` of a device divided by the mean."""
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
        """Return the bytes that one training step sends between devices.

        N is the number of devices and B the number of examples in a batch, of which
        device d has b_d (B/N, and one more on each of the first `B % N` devices). A
        table has F features, h ids per example, D columns and V rows. A shard s of it
        is on device d and has v_s rows and w_s columns. Data that stay on a device do
        not count, so the sums contain the examples of the *other* devices, B - b_d:

        - `ids`: Σ_s (B - b_d) (h v_s/V `id_bytes` + F `bag_bytes`), the ids that go to
          the owners of their rows. For table-wise and column-wise shards, v_s = V.
          Unless `routed`, each row-wise owner gets all ids, and v_s/V becomes 1.
        - `pooled`: Σ_s (B - b_d) F w_s 4, the float32 vectors that come back: whole
          vectors, some of their columns, or a partial sum from each owner of rows.
        - `gradients`: the same number again, for the gradients of the pooled vectors.
        - `all_reduce`: Σ over data-parallel tables of 2 (N - 1) V (D + 1) 4, for an
          all-reduce of the table's dense gradient and of the number of ids per row.
        - `all_gather`: (N - 1) B (h `id_bytes` + F `bag_bytes` + 4 F D), the ids and
          gradients of bags that go to all devices. Each data-parallel table uses
          all-reduce or all-gather, whichever needs fewer bytes.

        Args:
            batch_size: Global batch size B. Default: that of the plan.
            hotness: Average number of ids per example: one number for all features, or
                a dict of table or feature names to numbers (default: 1). By default,
                the hotness of the plan.
            id_bytes: Bytes per id: 8 for int64, 4 for int32, and 4 more with weights.
            bag_bytes: Additional bytes per bag, such as 4 or 8 for the lengths of
                ragged bags.
            routed: Whether an id goes only to the device that has its row, or to all
                devices that have rows of the table.
            data_parallel: `"cheapest"`, `"all_reduce"` or `"all_gather"`.

        Returns:
            Dict of bytes, summed over all devices: `ids`, `pooled`, `gradients`,
            `all_reduce`, `all_gather`, and `total`. For row-wise tables, `ids` is an
            expected value. All other values are exact.

        Example:

        >>> import tf_dlrm
        >>> tables = [tf_dlrm.EmbeddingTable("item", 1000, 16)]
        >>> plan = tf_dlrm.sharding.plan(tables, 2, strategy="table_wise")
        >>> num_bytes = plan.exchange_bytes(batch_size=100)  # 50 ids, 50 vectors
        >>> num_bytes["ids"], num_bytes["pooled"], num_bytes["total"]
        (400, 3200, 6800)
        """
        flows = traffic.of_plan(
            self,
            batch_size,
            hotness,
            id_bytes=id_bytes,
            bag_bytes=bag_bytes,
            routed=routed,
            data_parallel=data_parallel,
        )
        sent = {name: int(round(flow.sent.sum())) for name, flow in flows.items()}
        return {**sent, "total": sum(sent.values())}

    # Checks and text

    def validate(self, tables: Sequence[EmbeddingTable]) -> None:
        """Check that this plan was made for these tables.

        Args:
            tables: `EmbeddingTable`s.

        Raises:
            ValueError: If a table is missing, unknown, or differs in size or features.
        """
        coverage.check_same(self.tables, check_tables(tables))

    def summary(self) -> str:
        """Return a text with bytes, rows, lookups and cost by device, and all tables.

        `print(plan)` prints the same text.
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
        # One table or shard per line, which is compact and readable in a diff.
        parts = [json.dumps(head)[:-1]]
        for key, values in (("tables", tables), ("shards", shards)):
            lines = ",\n  ".join(json.dumps(value) for value in values)
            parts.append(f'"{key}": [\n  {lines}\n ]')
        return ",\n ".join(parts) + "}"

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Create a plan from the text that `to_json()` returned.

        Raises:
            ValueError: If the text is not a plan, or its shards do not cover its
                tables.
        """
        try:
            content = json.loads(text)
            fields = content["shard_fields"]
            shards = [Shard(**dict(zip(fields, row))) for row in content["shards"]]
            loads = [TableLoad(**_as_tuples(load)) for load in content["tables"]]
            numbers = content["num_devices"], content["batch_size"]
        except (
            KeyError,
            TypeError,
            RecursionError,
            ValueError,
            AttributeError,
        ) as error:
            raise UserError(
                "The text is not a Plan in the JSON form of `to_json()`: "
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
