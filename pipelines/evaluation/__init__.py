"""Metrics of a run's model: of all rows, by slices, and how far to trust predictions.

Names are imported when first used: a report draws its pictures without TensorFlow.
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
