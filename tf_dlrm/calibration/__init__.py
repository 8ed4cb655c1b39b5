"""Corrections of click probabilities: for sampled negatives, and fitted on new rows."""

from tf_dlrm.calibration.corrections import (
    Correction,
    IsotonicCorrection,
    PlattCorrection,
)
from tf_dlrm.calibration.fitting import METHODS, fit_correction
from tf_dlrm.calibration.negative_sampling import check_rate, recalibrate
from tf_dlrm.calibration.slices import SlicedCorrection, first_ids

__all__ = [
    "Correction",
    "IsotonicCorrection",
    "METHODS",
    "PlattCorrection",
    "SlicedCorrection",
    "check_rate",
    "first_ids",
    "fit_correction",
    "recalibrate",
]
