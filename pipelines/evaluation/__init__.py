"""Metrics of a run's model: on all rows, by slice, and the reliability of predictions.

Names are imported at first use, so that reports can draw charts without TensorFlow.
"""

import importlib

_MEMBERS = {
    "SlicedEvaluation": "pipelines.evaluation.slices",
    "evaluate": "pipelines.evaluation.evaluation",
}

__all__ = [*_MEMBERS]


def __getattr__(name):
    if name in _MEMBERS:
        return getattr(importlib.import_module(_MEMBERS[name]), name)
    raise AttributeError(f"module 'pipelines.evaluation' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
