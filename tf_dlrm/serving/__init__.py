"""Serving: export to a versioned SavedModel, signatures, verification."""

from tf_dlrm.serving.export import export_saved_model

__all__ = ["export_saved_model"]
