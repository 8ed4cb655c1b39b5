"""Growing tables: which row an id reads, and which id may claim a row."""

from tf_dlrm.embedding.growing.growing_tables import GrowingTables
from tf_dlrm.embedding.growing.occupancy import Occupancy

__all__ = ["GrowingTables", "Occupancy"]
