"""`TableLoad`: bytes of a table's rows and optimizer state, and ids per example.

It holds only numbers, so that planning needs no model and no tensors.
"""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tf_dlrm import optimizers
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime.errors import UserError

Hotness = float | Mapping[str, float]

FLOAT_BYTES = 4
DEFAULT_OPTIMIZER = "adagrad"


@dataclasses.dataclass(frozen=True)
class TableLoad:
    """Size and use of a table, the input of the planner.

    Args:
        name: Name of the table.
        num_rows: Number of rows, its `vocabulary_size`.
        embedding_dim: Width of a row.
        features: Names of the features that read the table.
        hotness: Average number of ids per example, for each feature.
        state_per_value: Number of floats of optimizer state per value of a row.
        state_per_row: Number of floats of optimizer state per row.

    Example:

    >>> load = TableLoad("C1", num_rows=1000, embedding_dim=16, features=("C1",),
    ...                  hotness=(1,), state_per_value=1, state_per_row=0)
    >>> load.memory_bytes(), load.memory_bytes(num_rows=10, num_columns=4)
    (128000, 320)
    """

    name: str
    num_rows: int
    embedding_dim: int
    features: tuple[str, ...]
    hotness: tuple[float, ...]
    state_per_value: int
    state_per_row: int

    @property
    def num_features(self) -> int:
        """Number of features that read the table."""
        return len(self.features)

    @property
    def num_ids(self) -> float:
        """Number of ids that one example looks up, over all features of the table."""
        return sum(self.hotness)

    def row_bytes(self, num_columns: int | None = None) -> int:
        """Return the bytes of a row, or of some columns of it, with optimizer state."""
        width = self.embedding_dim if num_columns is None else num_columns
        state = width * self.state_per_value + self.state_per_row
        return FLOAT_BYTES * (width + state)

    def memory_bytes(
        self, num_rows: int | None = None, num_columns: int | None = None
    ) -> int:
        """Return the bytes of the table, or of a part of it, with optimizer state."""
        rows = self.num_rows if num_rows is None else num_rows
        return rows * self.row_bytes(num_columns)

    def ids_to(self, num_rows: int) -> float:
        """Return the expected ids per example in `num_rows` equally frequent rows."""
        return self.num_ids * num_rows / self.num_rows

    def lookup_bytes(self, num_rows: int, num_columns: int) -> float:
        """Return the expected bytes that an example reads from a part of the table."""
        return self.ids_to(num_rows) * num_columns * FLOAT_BYTES

    def with_hotness(self, hotness: Hotness) -> "TableLoad":
        """Return a copy with another hotness, a number or a dict."""
        return dataclasses.replace(self, hotness=_hotness_of(self, hotness))


def make_loads(
    tables: Sequence[EmbeddingTable],
    hotness: Hotness = 1,
    optimizer: Any = DEFAULT_OPTIMIZER,
) -> tuple[TableLoad, ...]:
    """Return the loads of tables.

    Args:
        tables: `EmbeddingTable`s.
        hotness: Average number of ids per example: one number for all features, or a
            dict of table or feature names to numbers. The name of a feature takes
            precedence over that of its table; the default is 1.
        optimizer: Optimizer of the tables: anything that `tf_dlrm.optimizers.get`
            accepts, or an integer number of floats of state per row, or a dict of table
            names to such values (default: `"adagrad"`).

    Raises:
        ValueError: If two tables have the same name, a name in a dict is unknown, or a
            value breaks a rule above.
        TypeError: If `tables` holds anything but `EmbeddingTable`s.
    """
    tables = check_tables(tables)
    names = {table.name for table in tables}
    check_names("optimizer", optimizer, names)
    check_hotness_names(hotness, tables)
    loads = []
    for table in tables:
        own = optimizer
        if isinstance(optimizer, Mapping):
            own = optimizer.get(table.name, DEFAULT_OPTIMIZER)
        per_value, per_row = state_floats(own, table.embedding_dim)
        load = TableLoad(
            name=table.name,
            num_rows=table.vocabulary_size,
            embedding_dim=table.embedding_dim,
            features=tuple(table.features),
            hotness=(1.0,) * len(table.features),
            state_per_value=per_value,
            state_per_row=per_row,
        )
        loads.append(load.with_hotness(hotness))
    return tuple(loads)


def check_tables(tables: Sequence[EmbeddingTable]) -> tuple[EmbeddingTable, ...]:
    """Return the tables as a tuple, after checking their types and names.

    Raises:
        ValueError: If there are no tables, or two have the same name.
        TypeError: If one is not an `EmbeddingTable`.
    """
    if isinstance(tables, EmbeddingTable) or not tables:
        raise UserError(
            "`tables` must be a non-empty sequence of EmbeddingTable. Received: "
            f"tables={tables!r}"
        )
    tables = tuple(tables)
    for table in tables:
        if not isinstance(table, EmbeddingTable):
            raise TypeError(
                "`tables` must hold tf_dlrm.EmbeddingTable objects. Received: "
                f"{table!r}"
            )
    names = [table.name for table in tables]
    if len(set(names)) < len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise UserError(
            f"Table names must be unique. Received more than once: {repeated}"
        )
    return tables


def check_names(argument: str, values: Any, names: Collection[str]) -> None:
    """Raise an error if `values` is a dict with keys that are not in `names`."""
    if isinstance(values, Mapping):
        unknown = [name for name in values if name not in names]
        if unknown:
            raise UserError(
                f"`{argument}` has unknown names: {unknown}. Known: "
                f"{', '.join(sorted(names))}"
            )


def check_hotness_names(
    hotness: Hotness, tables: Sequence[EmbeddingTable | TableLoad]
) -> None:
    """Raise an error if `hotness` is a dict with unknown table or feature names."""
    names = {table.name for table in tables}
    names.update(feature for table in tables for feature in table.features)
    check_names("hotness", hotness, names)


def state_floats(optimizer: Any, embedding_dim: int) -> tuple[int, int]:
    """Return the floats of optimizer state `(per value of a row, per whole row)`.

    Args:
        optimizer: Anything that `tf_dlrm.optimizers.get` accepts, or the number of
            floats per row. A multiple of `embedding_dim` counts as state per value, any
            other number as state per row.
        embedding_dim: Width of a row.

    Raises:
        ValueError: If `optimizer` is neither.

    Example:

    >>> state_floats("adam", 16), state_floats("row_wise_adagrad", 16)
    ((2, 0), (0, 1))
    >>> state_floats(32, 16), state_floats(3, 16)
    ((2, 0), (0, 3))
    """
    if hasattr(optimizer, "__index__") and not isinstance(optimizer, bool):
        floats = int(optimizer)
        if floats < 0:
            raise UserError(
                "`optimizer` as a number, the floats of state per row, must not be "
                f"negative. Received: optimizer={optimizer!r}"
            )
        whole = floats % embedding_dim == 0
        return (floats // embedding_dim, 0) if whole else (0, floats)
    try:
        sparse = optimizers.get(optimizer)
    except ValueError as error:
        raise UserError(
            "`optimizer` must be an optimizer of the tables or an integer number of "
            f"floats of state per row. Received: optimizer={optimizer!r} ({error})"
        ) from None
    one, two = (
        sum(floats for floats, _ in sparse.slots(width).values()) for width in (1, 2)
    )
    return two - one, 2 * one - two


def _hotness_of(load: TableLoad, hotness: Hotness) -> tuple[float, ...]:
    values = []
    for feature in load.features:
        value: Any = hotness
        if isinstance(hotness, Mapping):
            value = hotness.get(feature, hotness.get(load.name, 1))
        number = isinstance(value, (int, float)) or hasattr(value, "__float__")
        number = number and not isinstance(value, (bool, str))
        if not number or not 0 < float(value) < math.inf:
            raise UserError(
                "`hotness` must be a positive number, or a dict of table or feature "
                f"names to positive numbers. Received for feature '{feature}' of "
                f"table '{load.name}': {value!r}"
            )
        values.append(float(value))
    return tuple(values)
