"""Training: the row-sparse step, checkpoints, warm starts."""

from tf_dlrm.training import checkpoints
from tf_dlrm.training.guard import NotFiniteError
from tf_dlrm.training.keras_hooks import build_metrics, forget_validation_size
from tf_dlrm.training.warm_start import WarmStartResult, warm_start

__all__ = [
    "NotFiniteError",
    "WarmStartResult",
    "build_metrics",
    "checkpoints",
    "forget_validation_size",
    "warm_start",
]
