"""Serving: export to versioned SavedModels, their signatures, and verification."""

from tf_dlrm.serving.export import export_saved_model
from tf_dlrm.serving.preprocessor import Preprocessor
from tf_dlrm.serving.quantization import TABLE_DTYPES
from tf_dlrm.serving.verification import verify_saved_model
from tf_dlrm.serving.versions import choose_version, existing_versions

__all__ = [
    "Preprocessor",
    "TABLE_DTYPES",
    "choose_version",
    "existing_versions",
    "export_saved_model",
    "verify_saved_model",
]
