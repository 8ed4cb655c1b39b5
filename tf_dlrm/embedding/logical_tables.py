"""State by logical table: neither fusion nor placement of tables shows in a file."""

import contextlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np


class LogicalTables:
    """Mix-in for an embedding layer: its tables and optimizer state, by table name.

    The layer says where things lie: `tables`, `_slot_names(name)`,
    `_shape(name, slot)`, `_read(name, slot)`, `_write(name, slot, values)`, where
    the slot `None` is the table itself, and `_read_rows(name, rows)`; `_iterations`
    and `_optimizers` (table name to optimizer) are those of `build_optimizer`.
    """

    _load_error = None
    _skips_mismatches = False

    def get_table(self, name: str) -> np.ndarray:
        """Returns a copy of a table: float32 `(vocabulary_size, embedding_dim)`.

        Raises:
            ValueError: If there is no such table.
        """
        return self._read(name, None)

    def get_rows(self, name: str, rows) -> np.ndarray:
        """Returns a copy of some rows of a table: float32 `(n, embedding_dim)`.

        Args:
            name: The table.
            rows: `(n,)` integers, in any order.

        Raises:
            ValueError: If there is no such table or row.
        """
        num_rows, _ = self._shape(name, None)
        rows = np.asarray(rows, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < num_rows:
            raise ValueError(
                f"Table '{name}' has rows 0 to {num_rows - 1:,}. Received rows from "
                f"{rows.min():,} to {rows.max():,}"
            )
        return self._read_rows(name, rows)

    def set_table(self, name: str, rows) -> None:
        """Overwrites a table with `(vocabulary_size, embedding_dim)` values.

        Raises:
            ValueError: If there is no such table or the shape differs.
        """
        self._set(name, None, rows)

    # As Keras' layers, but by logical table: neither the null row nor shards show.

    def get_weights(self) -> list[np.ndarray]:
        """Return a copy of all tables, in their order."""
        return [self.get_table(table.name) for table in self.tables]

    def set_weights(self, weights) -> None:
        """Overwrite all tables.

        Args:
            weights: One array `(vocabulary_size, embedding_dim)` for each table.

        Raises:
            ValueError: If there are not as many, or a shape differs; nothing is
                written then.
        """
        weights = [np.asarray(each) for each in weights]
        if len(weights) != len(self.tables):
            raise ValueError(
                f"There are {len(self.tables)} tables. Received: {len(weights)} arrays"
            )
        for table, values in zip(self.tables, weights):
            self._check_shape(table.name, None, values)
        for table, values in zip(self.tables, weights):
            self._write(table.name, None, values)

    def count_params(self) -> int:
        """Return the number of values in all tables."""
        return sum(table.num_parameters for table in self.tables)

    def get_state(self, tables: Sequence[str] | None = None) -> dict[str, Any]:
        """Returns the optimizer's state by logical table.

        Args:
            tables: Names; `None` for all. One at a time bounds the memory.

        Returns:
            `{"iterations": int, "slots": {table: {slot: (vocabulary_size, width)}}}`,
            with no slots before `build_optimizer`.
        """
        names = [t.name for t in self.tables] if tables is None else tables
        slots = {
            name: {slot: self._read(name, slot) for slot in self._slot_names(name)}
            for name in names
        }
        iterations = 0 if self._iterations is None else int(self._iterations.numpy())
        return {"iterations": iterations, "slots": slots}

    def set_state(self, state: dict[str, Any]) -> None:
        """Sets what `get_state` returned, of the same optimizers.

        Raises:
            ValueError: If a table, slot or shape is not one of this collection's.
        """
        if self._iterations is None:
            raise ValueError("Call `build_optimizer` before `set_state`.")
        for name, slots in state["slots"].items():
            for slot, values in slots.items():
                self._set(name, slot, values)
        self._iterations.assign(state["iterations"])

    def slot_bytes(self) -> int:
        """Bytes of the optimizer's state of all tables."""
        return sum(
            4 * math.prod(self._shape(table.name, slot))
            for table in self.tables
            for slot in self._slot_names(table.name)
        )

    def _set(self, name, slot, values):
        values = values if hasattr(values, "shape") else np.asarray(values)
        self._check_shape(name, slot, values)
        self._write(name, slot, values)

    def _check_shape(self, name, slot, values):
        shape = self._shape(name, slot)
        if tuple(values.shape) != shape:
            what = name if slot is None else f"{name}/{slot}"
            raise ValueError(
                f"'{what}' has shape {shape}. Received values of shape "
                f"{tuple(values.shape)}"
            )

    # Keras calls these for `.keras` and `.weights.h5`.

    def save_own_variables(self, store):
        for table in self.tables:
            store[f"table:{table.name}"] = self.get_table(table.name)
            for slot in self._slot_names(table.name):
                key = self._slot_key(table.name, slot)
                store[key] = self._read(table.name, slot)
        if self._iterations is not None:
            store["iterations"] = np.asarray(self._iterations.numpy())
        for name, optimizer in self._optimizers.items():
            if isinstance(optimizer.learning_rate, float):
                store[f"learning_rate:{name}"] = np.asarray(optimizer.learning_rate)

    def _slot_key(self, name, slot):
        """With the width: slots of Adagrad and row-wise Adagrad differ in it alone."""
        return f"slot:{name}:{slot}:{self._shape(name, slot)[1]}"

    def load_own_variables(self, store):
        keys = set(store.keys())
        if not keys and self._load_error is not None:
            # Keras tries a second, empty place in the file and would report that one.
            error, self._load_error = self._load_error, None
            raise error
        try:
            self._load(store, keys)
        except ValueError as error:
            self._load_error = error
            raise
        self._load_error = None

    @contextlib.contextmanager
    def skipping_mismatches(self, skips: bool):
        """Files that are loaded inside may lack tables, or have others of the name."""
        self._skips_mismatches = skips
        try:
            yield
        finally:
            self._skips_mismatches = False

    def _load(self, store, keys):
        names = [table.name for table in self.tables]
        mismatches = {}
        for name in names:
            if f"table:{name}" not in keys:
                mismatches[name] = f"'{name}' is not in the file"
                continue
            try:
                self._check_shape(name, None, store[f"table:{name}"])
            except ValueError as error:
                mismatches[name] = str(error)
        if mismatches:
            self._report(mismatches, keys)
        names = [name for name in names if name not in mismatches]
        for name in names:
            self.set_table(name, store[f"table:{name}"])
        if self._iterations is None or "iterations" not in keys:
            return
        slots = [(name, slot) for name in names for slot in self._slot_names(name)]
        wanted = {self._slot_key(name, slot) for name, slot in slots}
        held = {key for key in keys if key.startswith("slot:")}
        if not wanted <= held or (wanted != held and not mismatches):
            warnings.warn(
                "The file holds the state of another optimizer of the tables: their "
                "optimizer restarts from its initial state.",
                stacklevel=2,
            )
            return
        for name, slot in slots:
            self._set(name, slot, store[self._slot_key(name, slot)])
        self._iterations.assign(int(np.asarray(store["iterations"])))
        for name, optimizer in self._optimizers.items():
            key = f"learning_rate:{name}"
            if key in keys and isinstance(optimizer.learning_rate, float):
                optimizer.learning_rate = float(np.asarray(store[key]))

    def _report(self, mismatches, keys):
        held = sorted(key.partition(":")[2] for key in keys if key.startswith("table:"))
        text = f"{'; '.join(mismatches.values())}. Tables of the file: {held}"
        if not self._skips_mismatches:
            raise ValueError(f"The file does not fit the tables: {text}")
        warnings.warn(f"Tables that keep the rows that they have: {text}", stacklevel=2)


def check_names(optimizers: dict, tables: Sequence[str]) -> None:
    """Raises unless a dict of optimizers names each table.

    Raises:
        ValueError: If it names an unknown table or leaves one out.
    """
    unknown = sorted(set(optimizers) - set(tables))
    missing = sorted(set(tables) - set(optimizers))
    if unknown or missing:
        raise ValueError(
            "The optimizers by table must name each table once. Received unknown "
            f"tables: {unknown}, no optimizer for: {missing}"
        )
