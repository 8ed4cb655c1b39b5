"""The embedding engine: tables, lookups, and row-sparse updates."""

from tf_dlrm.embedding.bags import standardize_ids
from tf_dlrm.embedding.collection import EmbeddingCollection
from tf_dlrm.embedding.contract import EmbeddingLayer

__all__ = ["EmbeddingCollection", "EmbeddingLayer", "standardize_ids"]
