"""Layers of the model: MLPs, interactions and embedding tables."""

from tf_dlrm.embedding.collection import EmbeddingCollection
from tf_dlrm.embedding.contract import EmbeddingLayer
from tf_dlrm.layers.interactions import (
    CatInteraction,
    CrossInteraction,
    DotInteraction,
)
from tf_dlrm.layers.mlp import MLP
from tf_dlrm.layers.scorer import Scorer

__all__ = [
    "MLP",
    "CatInteraction",
    "CrossInteraction",
    "DotInteraction",
    "EmbeddingCollection",
    "EmbeddingLayer",
    "Scorer",
]
