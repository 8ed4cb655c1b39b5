"""Callbacks: what a training run tells TensorBoard, for stock `model.fit`."""

from tf_dlrm.training.watching.gradients import GradientNormLogger
from tf_dlrm.training.watching.histograms import HistogramLogger
from tf_dlrm.training.watching.hyperparameters import HyperparameterLogger
from tf_dlrm.training.watching.logger import TensorBoardLogger
from tf_dlrm.training.watching.pr_curve import PRCurveLogger
from tf_dlrm.training.watching.profiler import StepProfiler
from tf_dlrm.training.watching.projector import EmbeddingProjector
from tf_dlrm.training.watching.row_norms import RowNormLogger
from tf_dlrm.training.watching.touched_rows import TouchedRowLogger

__all__ = [
    "EmbeddingProjector",
    "GradientNormLogger",
    "HistogramLogger",
    "HyperparameterLogger",
    "PRCurveLogger",
    "RowNormLogger",
    "StepProfiler",
    "TensorBoardLogger",
    "TouchedRowLogger",
]
