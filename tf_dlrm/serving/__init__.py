"""Serving: export to versioned SavedModels, their signatures, and verification."""

from tf_dlrm.serving.deltas.format import DeltaError, Position
from tf_dlrm.serving.deltas.gate import Bounds, Gate
from tf_dlrm.serving.deltas.health import HealthMonitor
from tf_dlrm.serving.deltas.operations import (
    compact,
    release,
    remove_old_bases,
    rollback,
)
from tf_dlrm.serving.deltas.publisher import Publisher
from tf_dlrm.serving.deltas.replica import Replica
from tf_dlrm.serving.export import export_saved_model
from tf_dlrm.serving.preprocessor import Preprocessor
from tf_dlrm.serving.quantization import TABLE_DTYPES
from tf_dlrm.serving.split import export_split
from tf_dlrm.serving.verification import verify_saved_model
from tf_dlrm.serving.versions import choose_version, existing_versions

__all__ = [
    "Bounds",
    "DeltaError",
    "Gate",
    "HealthMonitor",
    "Position",
    "Preprocessor",
    "Publisher",
    "Replica",
    "TABLE_DTYPES",
    "choose_version",
    "compact",
    "existing_versions",
    "export_saved_model",
    "export_split",
    "release",
    "remove_old_bases",
    "rollback",
    "verify_saved_model",
]
