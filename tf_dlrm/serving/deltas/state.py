"""`ModelState`: all weights of one state of a published model, in host memory."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError
from tf_dlrm.serving.deltas import files
from tf_dlrm.serving.deltas.chain import Base, Delta, check_follows
from tf_dlrm.serving.deltas.channel import Channel
from tf_dlrm.serving.deltas.format import Layout, Position, TableRows

_KEY = "weights/{}/.ATTRIBUTES/VARIABLE_VALUE"
_SEQUENCE_KEY = "updates/sequence/.ATTRIBUTES/VARIABLE_VALUE"


def by_variable(
    layout: Layout, tables: Mapping[str, TableRows]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows of a delta by the variables of the export.

    Args:
        layout: Where the export stores its weights.
        tables: The rows by table.

    Returns:
        For each variable of tables: row numbers, int64 `(n,)`, and rows `(n, width)`.
    """
    parts: list[list[tuple[np.ndarray, np.ndarray]]] = [
        [] for _ in range(layout.num_table_variables)
    ]
    widths = [0] * layout.num_table_variables
    dtypes = {name: own.rows.dtype for name, own in tables.items()}
    for place in layout.places:
        widths[place.variable] = place.num_columns
        own = tables[place.table]
        begin, end = np.searchsorted(
            own.ids, [place.first_row, place.first_row + place.num_rows]
        )
        columns = slice(place.first_column, place.first_column + place.num_columns)
        numbers = own.ids[begin:end] - place.first_row + place.place
        parts[place.variable].append((numbers, own.rows[begin:end, columns]))
    dtype = next(iter(dtypes.values()))
    empty = [(np.zeros(0, np.int64), np.zeros((0, width), dtype)) for width in widths]
    return [
        (
            np.concatenate([nothing[0], *(numbers for numbers, _ in own)]),
            np.concatenate([nothing[1], *(rows for _, rows in own)]),
        )
        for nothing, own in zip(empty, parts, strict=True)
    ]


class ModelState:
    """All weights of one state, which takes as much memory as the export.

    Args:
        base: The base.
        tables: The variables that hold rows.
        dense: All other weights.
        others: The other tensors of the export's variables, by key.

    Attributes:
        base: The base.
        sequence: Sequence number of the last delta; 0 for the base.
        identity: Identity of the state.
        tables: The variables that hold rows.
        dense: All other weights.
    """

    def __init__(
        self,
        base: Base,
        tables: list[np.ndarray],
        dense: list[np.ndarray],
        others: dict[str, Any],
    ) -> None:
        self.base, self.sequence, self.identity = base, 0, base.identity
        self.tables, self.dense, self._others = tables, dense, others

    @classmethod
    def load(cls, channel: Channel, version: int, verify: bool = True) -> "ModelState":
        """Load a base.

        Args:
            channel: The channel.
            version: Version of the base.
            verify: Whether to verify the checksums of all its files.

        Raises:
            DeltaError: If the base is missing or damaged.
        """
        base = channel.read_base(version, verify)
        prefix = files.join(channel.version_dir(version), "variables", "variables")
        reader = tf.compat.v1.train.NewCheckpointReader(prefix)
        count = base.layout.num_table_variables
        weights = [
            reader.get_tensor(_KEY.format(i))
            for i in range(count + len(base.layout.dense))
        ]
        shapes = reader.get_variable_to_shape_map()
        own = {_KEY.format(i) for i in range(len(weights))}
        others = {key: reader.get_tensor(key) for key in shapes if key not in own}
        return cls(base, weights[:count], weights[count:], others)

    @property
    def position(self) -> Position:
        """Base and sequence number."""
        return Position(self.base.version, self.sequence)

    def apply(self, delta: Delta) -> None:
        """Apply a delta.

        Raises:
            DeltaError: If it does not follow this state, which is then unchanged.
        """
        check_follows(delta.manifest, self.sequence, self.identity)
        changes = by_variable(self.base.layout, delta.tables)
        for table, (numbers, rows) in zip(self.tables, changes, strict=True):
            table[numbers] = rows
        self.dense = list(delta.dense)
        self.sequence, self.identity = delta.manifest.sequence, delta.manifest.state

    def move_to(self, channel: Channel, sequence: int) -> None:
        """Apply the deltas up to a sequence number, which is not before this one.

        Raises:
            DeltaError: If a delta is refused; those before it are applied.
        """
        for name in channel.find_way(self.base, self.sequence, sequence):
            self.apply(channel.read_delta(self.base, name))

    def read_rows(self, table: str, ids: np.ndarray) -> np.ndarray:
        """Return stored rows of a table, `(n, stored columns)`."""
        places = self.base.layout.places_of(table)
        width = max(place.first_column + place.num_columns for place in places)
        result = np.empty((len(ids), width), self.tables[places[0].variable].dtype)
        for place in places:
            own = (ids >= place.first_row) & (ids < place.first_row + place.num_rows)
            columns = slice(place.first_column, place.first_column + place.num_columns)
            numbers = ids[own] - place.first_row + place.place
            result[np.flatnonzero(own), columns] = self.tables[place.variable][numbers]
        return result

    def save(self, folder: pathlib.Path) -> None:
        """Write the variables of a SavedModel, with the keys of the base.

        Args:
            folder: The folder `variables` of the SavedModel.
        """
        folder.mkdir()
        weights = [*self.tables, *self.dense]
        tensors = {_KEY.format(i): weight for i, weight in enumerate(weights)}
        tensors |= self._others | {_SEQUENCE_KEY: np.int64(self.sequence)}
        names = sorted(tensors)
        tf.raw_ops.SaveV2(
            prefix=os.fspath(folder / "variables"),
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.convert_to_tensor(tensors[name]) for name in names],
        )


def check_layout(prefix: str, layout: Layout, num_rows: list[int]) -> None:
    """Check that an export stores its weights as a layout says, before it is a base.

    Args:
        prefix: Prefix of the files of its variables.
        layout: The layout.
        num_rows: Number of rows of each variable that holds rows.

    Raises:
        ValueError: If a weight is missing, or has another shape.
    """
    reader = tf.compat.v1.train.NewCheckpointReader(prefix)
    shapes = reader.get_variable_to_shape_map()
    widths = {place.variable: place.num_columns for place in layout.places}
    expected = [[rows, widths[i]] for i, rows in enumerate(num_rows)]
    expected += [list(shape) for shape, _ in layout.dense]
    stored = [shapes.get(_KEY.format(i)) for i in range(len(expected))]
    if stored != expected or _KEY.format(len(expected)) in shapes:
        raise UserError(
            "The export stores its weights in another form than the model, so changes "
            "of the model cannot be applied to it: leave out the options of `export` "
            "that change the form of tables."
        )
