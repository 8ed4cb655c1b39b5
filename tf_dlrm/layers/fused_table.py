"""Tables of equal width as one variable, and the optimizer state of its rows."""

import dataclasses

import numpy as np
import tensorflow as tf

from tf_dlrm import rows as row_ops
from tf_dlrm.layers import bags


@dataclasses.dataclass
class _Part:
    """The tables of a fused variable that one optimizer trains, and its slots.

    Slot variables hold the part's tables one under the other and then a null row, as
    the fused variable does with all tables.
    """

    optimizer: object
    first_slot_row: dict
    slots: dict


class FusedTable:
    """One variable with the rows of several tables and a null row at the end.

    Args:
        width: Embedding dim of the tables.
        tables: The tables fused here.
        all_tables: All tables of the collection, for the places of the features.
    """

    def __init__(self, width, tables, all_tables):
        self.width, self.tables = width, tables
        self.by_name = {table.name: table for table in tables}
        sizes = np.array([table.vocabulary_size for table in tables], np.int64)
        firsts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        self.first_row = {t.name: int(row) for t, row in zip(tables, firsts)}
        self.num_rows = int(sizes.sum())
        self.null_row = self.num_rows
        self.row_dtype = tf.int32 if self.num_rows + 1 < 1 << 31 else tf.int64
        owners = [table for table in all_tables for _ in table.features]
        self.columns = [i for i, t in enumerate(owners) if t.embedding_dim == width]
        features = [owners[column] for column in self.columns]
        self._sizes = np.array([table.vocabulary_size for table in features], np.int64)
        self._offsets = np.array([self.first_row[table.name] for table in features])
        self._combiners = [table.combiner for table in features]
        self.variable = None
        self._parts: list[_Part] = []

    def lookup(self, ids, weights) -> bags.Lookup:
        """Finds the rows of standardized ids of this table's features."""
        return bags.make_lookup(
            ids,
            weights,
            self._sizes,
            self._offsets,
            self._combiners,
            self.null_row,
            self.row_dtype,
        )

    def build_optimizer(self, optimizers: dict) -> None:
        """Creates the slots: `optimizers` maps each table's name to its optimizer."""
        self._parts = []
        for optimizer in {id(o): o for o in optimizers.values()}.values():
            tables = [t for t in self.tables if optimizers[t.name] is optimizer]
            first_slot_row, num_rows = {}, 0
            for table in tables:
                first_slot_row[table.name] = num_rows
                num_rows += table.vocabulary_size
            slots = {
                name: tf.Variable(
                    tf.fill((num_rows + 1, width), tf.constant(value, tf.float32)),
                    trainable=False,
                    name=f"{name}_{self.width}",
                )
                for name, (width, value) in optimizer.slots(self.width).items()
            }
            self._parts.append(_Part(optimizer, first_slot_row, slots))

    def update(self, rows, gradients, rates, step) -> None:
        """Applies the gradients `(V, D)` of rows `(V,)` by each table's optimizer."""
        for part in self._parts:
            part_rows, part_gradients = rows, gradients
            if len(self._parts) > 1:
                of_part = tf.gather(self._belongs_to(part), self._table_of(rows))
                part_rows = tf.boolean_mask(rows, of_part)
                part_gradients = tf.boolean_mask(gradients, of_part)
            part.optimizer.update(
                self.variable,
                part.slots,
                part_rows,
                part_gradients,
                rates[id(part.optimizer)],
                step,
                lambda unique, part=part: self._slot_rows(part, unique),
            )
        # Missing ids sent their gradients here, which is cheaper than masking them.
        null = tf.constant([self.null_row], self.row_dtype)
        row_ops.replace(self.variable, null, tf.zeros((1, self.width)))

    def slot_names(self, name: str) -> list[str]:
        """Names of the slots of a table; none before `build_optimizer`."""
        return [s for p in self._parts if name in p.first_slot_row for s in p.slots]

    def find_slot(self, name: str, slot: str):
        """The variable of a table's slot and the table's first row in it."""
        for part in self._parts:
            if name in part.first_slot_row and slot in part.slots:
                return part.slots[slot], part.first_slot_row[name]
        raise ValueError(
            f"Table '{name}' has no optimizer slot '{slot}'. Slots: "
            f"{self.slot_names(name)}"
        )

    # Rows to slots where tables have different optimizers. The table of a row is
    # found by bisection; the null row is one table further and belongs to no part.

    def _table_of(self, rows):
        ends = np.cumsum([table.vocabulary_size for table in self.tables])
        ends = tf.constant(ends, self.row_dtype)
        return tf.searchsorted(ends, rows, side="right")

    def _belongs_to(self, part):
        flags = [table.name in part.first_slot_row for table in self.tables]
        return tf.constant([*flags, False])

    def _slot_rows(self, part, rows):
        if len(self._parts) == 1:
            return rows
        shifts = [
            part.first_slot_row.get(table.name, 0) - self.first_row[table.name]
            for table in self.tables
        ]
        shifts = tf.constant([*shifts, 0], self.row_dtype)
        return rows + tf.gather(shifts, self._table_of(rows))
