"""Training: the row-sparse step, metrics, callbacks, the adapter to Keras."""

from tf_dlrm.training import callbacks
from tf_dlrm.training.guard import NotFiniteError
from tf_dlrm.training.resuming import ResumableTraining
from tf_dlrm.training.stopping import EvaluateWithinEpochs, StopEarly

__all__ = [
    "EvaluateWithinEpochs",
    "NotFiniteError",
    "ResumableTraining",
    "StopEarly",
    "callbacks",
]
