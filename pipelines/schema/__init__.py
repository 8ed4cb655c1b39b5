"""`Schema`: the columns of a click log and their meaning; the built-in layouts.

Vocabulary, parser, readers, records, commands and exports take their columns from a
schema only. Criteo's layout is one built-in schema.
"""

from pipelines.schema.columns import Dense, Label, Parquet, Sparse, Text
from pipelines.schema.schema import Schema

__all__ = ["Dense", "Label", "Parquet", "Schema", "Sparse", "Text"]
