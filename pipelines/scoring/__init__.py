"""Compute click probabilities for files of raw lines, from a SavedModel alone."""

from pipelines.scoring.models import Model, Source, find, load, of_keras
from pipelines.scoring.scoring_job import BATCH_SIZE, check, score_files

__all__ = [
    "BATCH_SIZE",
    "Model",
    "Source",
    "check",
    "find",
    "load",
    "of_keras",
    "score_files",
]
