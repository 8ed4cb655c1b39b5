"""Training: the row-sparse step, metrics, callbacks, the adapter to Keras."""

from tf_dlrm.training import callbacks

__all__ = ["callbacks"]
