"""Generated click logs in Criteo's format, where no real ones can be shipped."""

from pipelines.synthetic.planted import Planted, PlantedBlock, PlantedReport
from pipelines.synthetic.tsv import category_text

__all__ = ["Planted", "PlantedBlock", "PlantedReport", "category_text"]
