"""`RowPlace`: where the rows of a table are in the variables that lookups read."""

from typing import NamedTuple


class RowPlace(NamedTuple):
    """A block of rows and columns of a table, which is whole rows of one variable.

    Attributes:
        variable: Number of the variable in `EmbeddingLayer.lookup_variables`.
        table: Name of the table.
        first_row: First row of the table in the block.
        num_rows: Number of rows.
        first_column: First column of the table in the block.
        num_columns: Number of columns, which is the width of the variable.
        place: Row of the variable that holds the first row.
    """

    variable: int
    table: str
    first_row: int
    num_rows: int
    first_column: int
    num_columns: int
    place: int
