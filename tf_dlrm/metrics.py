"""Public names of the click metrics: `tf_dlrm.metrics.ClickAUC` and so on."""

from tf_dlrm.training.metrics import (
    Calibration,
    ClickAUC,
    LogLoss,
    NormalizedEntropy,
    click_metrics,
)
from tf_dlrm.training.sliced_metrics import gauc, sliced_metrics

__all__ = [
    "Calibration",
    "ClickAUC",
    "LogLoss",
    "NormalizedEntropy",
    "click_metrics",
    "gauc",
    "sliced_metrics",
]
