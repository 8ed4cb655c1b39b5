"""Click metrics for `compile`, and metrics by slice or group of rows."""

from tf_dlrm.metrics.click import (
    Calibration,
    ClickAUC,
    LogLoss,
    NormalizedEntropy,
    click_metrics,
    find_click_auc,
)
from tf_dlrm.metrics.sliced import (
    GroupAUC,
    GroupedRows,
    Slices,
    gauc,
    sliced_metrics,
)

__all__ = [
    "Calibration",
    "ClickAUC",
    "GroupAUC",
    "GroupedRows",
    "LogLoss",
    "NormalizedEntropy",
    "Slices",
    "click_metrics",
    "find_click_auc",
    "gauc",
    "sliced_metrics",
]
