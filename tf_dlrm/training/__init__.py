"""Training: the row-sparse step, metrics, callbacks, the adapter to Keras."""

from tf_dlrm.training import callbacks
from tf_dlrm.training.guard import NotFiniteError
from tf_dlrm.training.resuming import ResumableTraining
from tf_dlrm.training.stopping import EvaluateWithinEpochs, StopEarly
from tf_dlrm.training.warm_starting import WarmStart, warm_start

__all__ = [
    "EvaluateWithinEpochs",
    "NotFiniteError",
    "ResumableTraining",
    "StopEarly",
    "WarmStart",
    "callbacks",
    "warm_start",
]
