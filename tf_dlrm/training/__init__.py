"""Training: the row-sparse step, metrics, callbacks, the adapter to Keras."""

from tf_dlrm.training import callbacks
from tf_dlrm.training.resuming import ResumableTraining
from tf_dlrm.training.warm_starting import WarmStart, warm_start

__all__ = ["ResumableTraining", "WarmStart", "callbacks", "warm_start"]
