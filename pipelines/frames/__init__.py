"""DataFrames, of raw or of transformed columns -> batches, and back."""

from pipelines.frames.dataset import from_dataframe
from pipelines.frames.frame import to_dataframe

__all__ = ["from_dataframe", "to_dataframe"]
