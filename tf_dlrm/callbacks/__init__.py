"""Callbacks for `model.fit`: checkpoints, early stopping, TensorBoard."""

from tf_dlrm.callbacks.early_stopping import EarlyStopping, EvaluateWithinEpochs
from tf_dlrm.callbacks.gradient_norms import GradientNormLogger
from tf_dlrm.callbacks.growing_tables import GrowingTableLogger
from tf_dlrm.callbacks.histograms import HistogramLogger
from tf_dlrm.callbacks.hyperparameters import HyperparameterLogger
from tf_dlrm.callbacks.plateau import ReduceLROnPlateau
from tf_dlrm.callbacks.pr_curve import PRCurveLogger
from tf_dlrm.callbacks.profiler import StepProfiler
from tf_dlrm.callbacks.projector import EmbeddingProjector
from tf_dlrm.callbacks.publish_deltas import PublishDeltas
from tf_dlrm.callbacks.resumable_training import ResumableTraining
from tf_dlrm.callbacks.row_norms import RowNormLogger
from tf_dlrm.callbacks.tensorboard import TensorBoardLogger
from tf_dlrm.callbacks.touched_rows import TouchedRowLogger
from tf_dlrm.serving.deltas.top_share import TopShare

__all__ = [
    "EarlyStopping",
    "EmbeddingProjector",
    "EvaluateWithinEpochs",
    "GradientNormLogger",
    "GrowingTableLogger",
    "HistogramLogger",
    "HyperparameterLogger",
    "PRCurveLogger",
    "PublishDeltas",
    "ReduceLROnPlateau",
    "ResumableTraining",
    "RowNormLogger",
    "StepProfiler",
    "TensorBoardLogger",
    "TopShare",
    "TouchedRowLogger",
]
