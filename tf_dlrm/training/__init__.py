"""Training: the row-sparse step, metrics, callbacks, the adapter to Keras."""

from tf_dlrm.training import callbacks
from tf_dlrm.training.resuming import ResumableTraining

__all__ = ["ResumableTraining", "callbacks"]
