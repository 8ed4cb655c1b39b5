"""`Schema`: the columns of a click log and their meaning; the layouts that ship.

Vocabulary, parser, readers, records, commands and exports take their columns from a
schema and from nothing else; Criteo's logs are one schema among others.
"""

from pipelines.schema.columns import Dense, Label, Parquet, Sparse, Text
from pipelines.schema.schema import Schema

__all__ = ["Dense", "Label", "Parquet", "Schema", "Sparse", "Text"]
