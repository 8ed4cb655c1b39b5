"""Tables in Keras' files, by name, independent of fusion and placement."""

import warnings
from collections.abc import Mapping, MutableMapping, Set
from typing import Any

import numpy as np

from tf_dlrm.embedding.growing import GrowingTables, growing_files
from tf_dlrm.embedding.row_trainer import RowTrainer
from tf_dlrm.embedding.table_store import TableStore
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError


class TableFiles:
    """Writer and reader of tables and their optimizer state in Keras' files.

    Args:
        store: The tables.
        trainer: The optimizers of the tables.
        growing: The growing tables, if there are any.

    Attributes:
        skips_mismatches: Whether to skip tables that are missing in a file or have
            another shape there.
    """

    def __init__(
        self,
        store: TableStore,
        trainer: RowTrainer,
        growing: GrowingTables | None = None,
    ) -> None:
        self._store, self._trainer, self._growing = store, trainer, growing
        self._load_error: ValueError | None = None
        self.skips_mismatches = False

    def save(self, file: MutableMapping[str, Any]) -> None:
        """Write tables and optimizer state to a mapping of names to arrays."""
        self._store.settle()
        for name in self._store.by_name:
            file[f"table:{name}"] = self._store.read(name)
            for slot in self._store.slot_widths(name):
                file[self._slot_key(name, slot)] = self._store.read(name, slot)
        if self._growing is not None:
            growing_files.save(self._growing, file)
        if self._trainer.iterations is not None:
            file["iterations"] = np.asarray(self._trainer.iterations.numpy())
        for name, optimizer in self._trainer.optimizers.items():
            if isinstance(optimizer.learning_rate, float):
                file[f"learning_rate:{name}"] = np.asarray(optimizer.learning_rate)

    def _slot_key(self, name, slot):
        """Return the key of a slot in a file.

        It includes the width, because slots of Adagrad and row-wise Adagrad differ only
        in that.
        """
        return f"slot:{name}:{slot}:{self._store.shape(name, slot)[1]}"

    def load(self, file: Mapping[str, Any]) -> None:
        """Load tables and optimizer state that `save` wrote.

        Raises:
            ValueError: If the file has other tables. Nothing is loaded.
        """
        keys = set(file.keys())
        if not keys and self._load_error is not None:
            # After an error, Keras tries a second, empty location in the file and would
            # report only that.
            error, self._load_error = self._load_error, None
            raise error
        try:
            self._load(file, keys)
        except ValueError as error:
            self._load_error = error
            raise
        self._load_error = None

    def _load(self, file, keys: Set[str]):
        mismatches: dict[str, str] = {}
        moved = growing_files.Moves(self._store, self._growing, file, keys)
        for name in self._store.by_name:
            if name in moved.names:
                mismatches |= moved.find_mismatch(name)
                continue
            if f"table:{name}" not in keys:
                mismatches[name] = f"'{name}' is not in the file"
                continue
            try:
                check_shape(self._store, name, None, file[f"table:{name}"])
            except ValueError as error:
                mismatches[name] = str(error)
        if mismatches:
            self._report(mismatches, keys)
        self._store.settle()
        names = [name for name in self._store.by_name if name not in mismatches]
        moved.load_ids(names)
        for name in names:
            self._write(moved, name, None, file[f"table:{name}"])
        self._load_state(file, keys, names, moved, complete=not mismatches)

    def _load_state(self, file, keys, names, moved, complete: bool):
        iterations = self._trainer.iterations
        if iterations is None or "iterations" not in keys:
            return
        widths = {name: self._store.slot_widths(name) for name in names}
        slots = [(name, slot) for name in names for slot in widths[name]]
        expected = {self._slot_key(name, slot) for name, slot in slots}
        held = {key for key in keys if key.startswith("slot:")}
        if not expected <= held or (expected != held and complete):
            warnings.warn(
                "The file holds the state of another optimizer for the tables. The "
                "tables' optimizer restarts from its initial state.",
                stacklevel=2,
            )
            return
        for name, slot in slots:
            self._write(moved, name, slot, file[self._slot_key(name, slot)])
        iterations.assign(int(np.asarray(file["iterations"])))
        for name, optimizer in self._trainer.optimizers.items():
            key = f"learning_rate:{name}"
            if key in keys and isinstance(optimizer.learning_rate, float):
                optimizer.learning_rate = float(np.asarray(file[key]))

    def _write(self, moved, name, slot, values):
        if name in moved.placements:
            moved.write(name, slot, values)
        else:
            write(self._store, name, slot, values)

    def _report(self, mismatches, keys):
        held = sorted(key.partition(":")[2] for key in keys if key.startswith("table:"))
        text = f"{'; '.join(mismatches.values())}. Tables in the file: {held}"
        if not self.skips_mismatches:
            raise UserError(f"The file does not match the tables: {text}")
        warnings.warn(f"Skipped tables keep their current rows: {text}", stacklevel=2)


def write(store: TableStore, name: str, slot: str | None, values: Any) -> None:
    """Overwrite a table or slot, block by block.

    Raises:
        ValueError: If there is no such table or slot, or the shape differs.
    """
    values = values if hasattr(values, "shape") else np.asarray(values)
    check_shape(store, name, slot, values)
    for a, b in row_ops.block_ranges(*values.shape):
        store.write_rows(name, slot, a, np.asarray(values[a:b]))


def check_shape(store: TableStore, name: str, slot: str | None, values: Any) -> None:
    """Check that values have the shape of a table or slot.

    Raises:
        ValueError: If there is no such table or slot, or the shape differs.
    """
    if slot is not None and slot not in store.slot_widths(name):
        raise UserError(
            f"Table '{name}' has no optimizer slot '{slot}'. Slots: "
            f"{list(store.slot_widths(name))}"
        )
    shape = store.shape(name, slot)
    if tuple(values.shape) != shape:
        label = name if slot is None else f"{name}/{slot}"
        raise UserError(
            f"'{label}' has shape {shape}. Received values of shape "
            f"{tuple(values.shape)}"
        )
