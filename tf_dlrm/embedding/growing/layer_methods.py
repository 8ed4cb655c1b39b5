"""The methods of a `TableLayer` for growing tables."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tf_dlrm.embedding import table_files
from tf_dlrm.embedding.growing import event_time, occupancy, table_state
from tf_dlrm.embedding.growing.growing_tables import GrowingTables
from tf_dlrm.embedding.growing.occupancy import Occupancy
from tf_dlrm.embedding.growing.slots import EMPTY
from tf_dlrm.embedding.growing.table_state import Placement
from tf_dlrm.embedding.table_store import TableStore
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Ids


class IdsAndRows(NamedTuple):
    """The ids of a growing table and their rows.

    Attributes:
        ids: int64 `(n,)` in ascending order.
        rows: float32 `(n, embedding_dim)`.
    """

    ids: np.ndarray
    rows: np.ndarray


class GrowingMethods:
    """Methods for growing tables, which other layers' tables refuse."""

    _growing_tables: GrowingTables | None
    _store: TableStore
    num_features: int

    def _find_growing(self, name: str) -> GrowingTables:
        self._store.find(name)
        growing = self._growing_tables
        if growing is None or name not in growing.number:
            raise UserError(
                f"Table '{name}' has no growing ids. Create it with "
                "`growing=tf_dlrm.GrowingIds()`."
            )
        return growing

    def get_weights(self) -> list[np.ndarray]:
        """Return copies of all tables, and of the state of growing tables."""
        growing = self._growing_tables
        tables: list[np.ndarray] = super().get_weights()  # type: ignore[misc]
        if growing is None:
            return tables
        return [*tables, *(v.numpy() for v in growing.variables.values())]

    def set_weights(self, weights: Sequence[npt.ArrayLike]) -> None:
        """Overwrite all tables, and the state of growing tables.

        Args:
            weights: The arrays that `get_weights` returned.

        Raises:
            ValueError: If the number of arrays or a shape differs. No table is changed.
        """
        growing = self._growing_tables
        variables = [] if growing is None else list(growing.variables.values())
        num_tables = len(self._store.tables)
        if growing is not None and len(weights) != self.num_arrays:
            raise UserError(
                f"There are {num_tables} tables and {len(variables)} arrays of the "
                f"state of growing tables. Received: {len(weights)} arrays"
            )
        state = [np.asarray(value) for value in weights[num_tables:]]
        for variable, value in zip(variables, state):
            if not variable.shape.is_compatible_with(value.shape):
                raise UserError(
                    f"'{variable.name}' of the growing tables has shape "
                    f"{variable.shape}. Received: {value.shape}"
                )
        tables = weights[:num_tables] if variables else weights
        super().set_weights(tables)  # type: ignore[misc]
        for variable, value in zip(variables, state):
            variable.assign(value)

    @property
    def num_arrays(self) -> int:
        """Number of the arrays that `get_weights` returns."""
        growing = self._growing_tables
        return len(self._store.tables) + (len(growing.variables) if growing else 0)

    def claim(self, ids: Ids) -> tf.Tensor | tf.RaggedTensor:
        """Let new ids claim rows: one training step in a loop of your own.

        `fit` and `train_on_batch` of a `DLRM` do this themselves. In your own loop,
        call `claim(ids)`, look the ids up, and pass them to `apply_gradients`.

        Args:
            ids: Ids of all features, as for a call of the layer.

        Returns:
            The ids, with the rows that ids of growing tables read; int64.
        """
        rows: Ids = self.translate(  # type: ignore[attr-defined]
            ids, claims_rows=True, starts_step=True
        )
        return rows

    def get_ids(self, name: str) -> np.ndarray:
        """Return the id of each row of a growing table, int64 `(vocabulary_size,)`.

        It is -1 for rows without an id: empty ones and shared rows.

        Raises:
            ValueError: If there is no such growing table.
        """
        growing = self._find_growing(name)
        size, _ = self._store.shape(name)
        ids = np.full(size, EMPTY, np.int64)
        own = growing.read_slots(name, growing.slots.ids)
        ids[: len(own)] = own
        return ids

    def find(self, name: str, ids: npt.ArrayLike) -> np.ndarray:
        """Return the rows of ids in a growing table, int64; -1 for ids without one.

        Args:
            name: Name of the table.
            ids: int64 `(n,)`.

        Raises:
            ValueError: If there is no such growing table.
        """
        growing = self._find_growing(name)
        first, _ = growing.range_of(name)
        values = tf.constant(np.asarray(ids, np.int64).reshape(-1))
        tables = tf.fill(tf.shape(values), growing.number[name])
        slots: np.ndarray = growing.slots.find(values, tables).numpy()
        return np.where(slots >= 0, slots - first, -1).reshape(np.shape(ids))

    def live_rows(self, name: str) -> IdsAndRows:
        """Return copies of the ids of a growing table, in ascending order, and rows.

        Raises:
            ValueError: If there is no such growing table.
        """
        ids = self.get_ids(name)
        own = np.flatnonzero(ids != EMPTY)
        own = own[np.argsort(ids[own])]
        rows = self.get_rows(name, own)  # type: ignore[attr-defined]
        return IdsAndRows(ids[own], rows)

    def set_rows(
        self,
        name: str,
        ids: npt.ArrayLike,
        rows: npt.ArrayLike,
        slots: Mapping[str, npt.ArrayLike] | None = None,
    ) -> int:
        """Replace all ids of a growing table, for example by those of a vocabulary.

        Args:
            name: Name of the table.
            ids: Distinct int64 ids `(n,)`. If not all find a slot, the first ones do.
            rows: float32 `(n, embedding_dim)`.
            slots: State of the rows by slot of the optimizer, `(n, width)` each.
                Default: the initial state.

        Returns:
            The number of ids that found no slot.

        Raises:
            ValueError: If there is no such growing table, or an array is invalid.
        """
        growing = self._find_growing(name)
        ids, rows = np.asarray(ids), np.asarray(rows, np.float32)
        width = self._store.shape(name)[1]
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or (ids < 0).any():
            raise UserError(
                "`ids` must be integers (n,) that are not negative. Received: "
                f"{ids.dtype} of shape {ids.shape}"
            )
        if len(np.unique(ids)) != len(ids):
            raise UserError("`ids` must be distinct. Received an id more than once.")
        if rows.shape != (len(ids), width):
            raise UserError(
                f"`rows` must have the shape {(len(ids), width)}. Received: "
                f"{rows.shape}"
            )
        self._store.settle()
        ids = ids.astype(np.int64)
        zeros = np.zeros(len(ids), np.int64)
        order = np.arange(len(ids), 0, -1)
        placement = table_state.place(growing, name, ids, zeros, order)
        number = growing.number[name]
        first, _ = growing.range_of(name)
        hits = growing.slots.hits
        own = tf.constant(placement.slots + first)
        tf.raw_ops.ResourceScatterUpdate(
            resource=hits.handle, indices=own, updates=tf.zeros_like(own)
        )
        placed = tf.constant(ids[placement.sources])
        tables = tf.fill(tf.shape(placed), number)
        growing.start_rows(placed, tables, tf.constant(placement.slots))
        table_state.move_rows(self._store, name, None, rows, placement)
        for slot, values in dict(slots or {}).items():
            table_state.move_rows(
                self._store, name, slot, np.asarray(values), placement
            )
        return placement.num_lost

    def copy_growing(self, name: str, source: "GrowingMethods") -> Placement | None:
        """Copy a growing table of another layer: ids, rows and optimizer state.

        Args:
            name: Name of the table in both layers.
            source: The other layer, whose table may have another number of rows.

        Returns:
            Where ids moved to, or `None` if all keep their rows.

        Raises:
            ValueError: If either layer has no such growing table, or the optimizers of
                the tables differ.
        """
        growing, other = self._find_growing(name), source._find_growing(name)
        if self._store.slot_widths(name) != source._store.slot_widths(name):
            raise UserError(f"The optimizers of the tables '{name}' differ.")
        self._store.settle()
        source._store.settle()
        growing.clock.assign(tf.maximum(growing.clock, other.clock))
        if len(other.moments.numpy()):
            growing.moments.assign(other.moments.read_value())
        placement = table_state.put(growing, name, table_state.get(other, name))
        is_same = self._store.shape(name) == source._store.shape(name)
        if placement is not None or not is_same:
            growing.start_shared_rows([name])
        for slot in (None, *self._store.slot_widths(name)):
            values = source._store.read(name, slot)
            if placement is None and is_same:
                table_files.write(self._store, name, slot, values)
                continue
            moved = placement or table_state.all_slots(growing, name)
            table_state.move_rows(self._store, name, slot, values, moved)
        return placement

    def occupancy(self, name: str) -> Occupancy:
        """Return how full a growing table is, and what happened in it.

        Raises:
            ValueError: If there is no such growing table.
        """
        return occupancy.measure(self._find_growing(name), name)

    def evicted(self, name: str) -> np.ndarray:
        """Return the ids that lost their rows in the last training step, int64.

        Raises:
            ValueError: If there is no such growing table.
        """
        growing = self._find_growing(name)
        ids, tables = (variable.numpy() for variable in growing.evicted)
        own: np.ndarray = ids[tables == growing.number[name]]
        return own

    def protect(self, name: str, ids: npt.ArrayLike) -> None:
        """Set the ids of a growing table that never give up their rows.

        Args:
            name: Name of the table.
            ids: The ids, which replace those of an earlier call.

        Raises:
            ValueError: If there is no such growing table, if an id is negative, or if
                there are as many ids as slots.
        """
        table_state.protect(self._find_growing(name), name, ids)

    def advance_clock(self, seconds: int) -> bool:
        """Set the event time, by which ids expire after `expire_after_seconds`.

        Call it whenever time has passed in the log, for example for each day or batch.
        Ids that training looks up from now on were seen at this time or later. The
        clock never goes backwards: an earlier time changes nothing.

        Args:
            seconds: The time, an integer.

        Returns:
            Whether the clock moved.

        Raises:
            ValueError: If no table has `expire_after_seconds`.
        """
        growing = self._growing_tables
        if growing is None:
            raise UserError("The layer has no growing tables.")
        return event_time.advance(growing, seconds)
