"""Growing tables in Keras' files: their ids, and rows that move to other slots."""

import warnings
from collections.abc import Mapping, MutableMapping, Sequence, Set
from typing import Any

import numpy as np

from tf_dlrm.embedding.growing import table_state
from tf_dlrm.embedding.growing.growing_tables import GrowingTables
from tf_dlrm.embedding.growing.table_state import Placement
from tf_dlrm.embedding.table_store import TableStore


def save(growing: GrowingTables, file: MutableMapping[str, Any]) -> None:
    """Write the ids of growing tables to a mapping of names to arrays."""
    for table in growing.tables:
        for key, values in table_state.get(growing, table.name).items():
            file[f"growing:{table.name}:{key}"] = values
    file["growing_clock"] = np.asarray(growing.clock.numpy())
    file["growing_moments"] = growing.moments.numpy()


class Moves:
    """The growing tables of a file, and their new slots in this layer.

    Args:
        store: The tables.
        growing: The growing tables of the layer, or `None`.
        file: The file.
        keys: Its keys.

    Attributes:
        names: The growing tables of the layer that the file holds.
        placements: The new slots in tables whose ids moved, after `load_ids`.
    """

    def __init__(
        self,
        store: TableStore,
        growing: GrowingTables | None,
        file: Mapping[str, Any],
        keys: Set[str],
    ) -> None:
        self._store, self._growing, self._file = store, growing, file
        self._keys = keys
        names = () if growing is None else growing.number
        self.names = {name for name in names if f"table:{name}" in keys}
        self.placements: dict[str, Placement] = {}

    def find_mismatch(self, name: str) -> dict[str, str]:
        """Return why a table cannot be loaded, by its name; empty if it can."""
        shape = tuple(self._file[f"table:{name}"].shape)
        width = self._store.shape(name)[1]
        if f"growing:{name}:slots_ids" not in self._keys:
            return {
                name: f"'{name}' has growing ids, but not in the file. Load the file "
                "into a model without them, and pass its rows to "
                f"`embedding.set_rows('{name}', ids, rows)`"
            }
        if shape[1] != width:
            return {name: f"'{name}' has width {width}, in the file {shape[1]}"}
        return {}

    def load_ids(self, names: Sequence[str]) -> None:
        """Load the ids of growing tables; warn if they move to other slots."""
        growing = self._growing
        own = [name for name in names if name in self.names]
        if growing is None or not own:
            return
        growing.clock.assign(int(np.asarray(self._file["growing_clock"])))
        growing.moments.assign(np.asarray(self._file["growing_moments"]))
        for name in own:
            prefix = f"growing:{name}:"
            state = {
                key.removeprefix(prefix): self._file[key]
                for key in self._keys
                if key.startswith(prefix)
            }
            placement = table_state.put(growing, name, state)
            if placement is None:
                if self._file[f"table:{name}"].shape != self._store.shape(name):
                    placement = table_state.all_slots(growing, name)
                else:
                    continue
            self.placements[name] = placement
            num_rows, _ = self._store.shape(name)
            warnings.warn(
                f"Growing table '{name}' has {num_rows:,} rows, in the file "
                f"{len(self._file[f'table:{name}']):,}, or other probes: "
                f"{len(placement.slots):,} ids were placed again, and "
                f"{placement.num_lost:,} found no slot. Counts of admission restart.",
                stacklevel=2,
            )
            growing.start_shared_rows([name])

    def write(self, name: str, slot: str | None, values: Any) -> None:
        """Write the rows of moved ids to a table or slot."""
        placement = self.placements[name]
        table_state.move_rows(self._store, name, slot, np.asarray(values), placement)
