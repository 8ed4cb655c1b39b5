"""DLRM, Facebook's deep learning recommendation model, for TensorFlow and Keras 3."""

import keras as _keras

if _keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tf_dlrm needs Keras' TensorFlow backend. Set KERAS_BACKEND=tensorflow before "
        f"importing. Received: {_keras.backend.backend()}"
    )

from tf_dlrm import (
    calibration,
    callbacks,
    embedding,
    interop,
    layers,
    metrics,
    optimizers,
    serving,
    sharding,
    training,
)
from tf_dlrm.features import EmbeddingTable, FeatureSpec
from tf_dlrm.growing_ids import GrowingIds
from tf_dlrm.model import DLRM
from tf_dlrm.serving import export_saved_model
from tf_dlrm.version import __version__

__all__ = [
    "DLRM",
    "EmbeddingTable",
    "FeatureSpec",
    "GrowingIds",
    "__version__",
    "calibration",
    "callbacks",
    "embedding",
    "export_saved_model",
    "interop",
    "layers",
    "metrics",
    "optimizers",
    "serving",
    "sharding",
    "training",
]
