"""Checkpoints of a training run: files, the state of a model, positions in data."""

from tf_dlrm.training.checkpoints.files import CheckpointFolder
from tf_dlrm.training.checkpoints.positions import (
    Position,
    ResumableInput,
    changed_files,
)
from tf_dlrm.training.checkpoints.state import restore

__all__ = [
    "CheckpointFolder",
    "Position",
    "ResumableInput",
    "changed_files",
    "restore",
]
