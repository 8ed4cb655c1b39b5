"""DataFrames of transformed columns -> batches."""

from pipelines.frames.dataset import from_dataframe

__all__ = ["from_dataframe"]
