"""Public names of the click metrics: `tf_dlrm.metrics.ClickAUC` and so on."""

from tf_dlrm.training.metrics import (
    Calibration,
    ClickAUC,
    LogLoss,
    NormalizedEntropy,
    click_metrics,
)

__all__ = [
    "Calibration",
    "ClickAUC",
    "LogLoss",
    "NormalizedEntropy",
    "click_metrics",
]
