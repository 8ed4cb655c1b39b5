"""Generated click logs: planted, random and traces.

`Planted` (Criteo's columns) and `SchemaLog` (those of any schema) have labels to learn,
with a known best possible score. `Drifting` has days
in which ids come and go. `Random` has any number of features, ids and ids in a
bag. `Trace` has the locality of a measured log. `write` writes them as text,
`write_binary` as records.
"""

from pipelines.synthetic.blocks import Block
from pipelines.synthetic.distances import stack_distances
from pipelines.synthetic.drifting import Drifting
from pipelines.synthetic.planted import Planted, PlantedBlock
from pipelines.synthetic.profiles import FeatureProfile, Profile
from pipelines.synthetic.profiling import profile, profile_logs
from pipelines.synthetic.random_ids import Random
from pipelines.synthetic.schema_log import SchemaBlock, SchemaLog
from pipelines.synthetic.source import Report
from pipelines.synthetic.traces import Trace
from pipelines.synthetic.tsv import category_text

__all__ = [
    "Block",
    "Drifting",
    "FeatureProfile",
    "Planted",
    "PlantedBlock",
    "Profile",
    "Random",
    "Report",
    "SchemaBlock",
    "SchemaLog",
    "Trace",
    "category_text",
    "profile",
    "profile_logs",
    "stack_distances",
]
