"""Training runs: configs by name, and the job from files to a trained model.

Functions that need TensorFlow are imported at first use, so `tf-dlrm runs` starts
without it.
"""

import importlib

from pipelines.runs.config import RunConfig
from pipelines.runs.named_runs import EXPERIMENTS, RUNS, get
from pipelines.runs.watching import Watching

_MEMBERS = {
    "RunFolder": "pipelines.runs.folder",
    "compile_model": "pipelines.runs.build_model",
    "export": "pipelines.runs.saving",
    "make_model": "pipelines.runs.build_model",
    "row_maps": "pipelines.runs.previous_run",
    "train": "pipelines.runs.training_job",
}

__all__ = ["EXPERIMENTS", "RUNS", "RunConfig", "Watching", "get", *_MEMBERS]


def __getattr__(name):
    if name in _MEMBERS:
        return getattr(importlib.import_module(_MEMBERS[name]), name)
    raise AttributeError(f"module 'pipelines.runs' has no attribute '{name}'")


def __dir__():
    return sorted(__all__)
