"""Batches from data frames of raw or transformed columns, and back."""

from pipelines.frames.dataset import from_dataframe
from pipelines.frames.frame import to_dataframe

__all__ = ["from_dataframe", "to_dataframe"]
