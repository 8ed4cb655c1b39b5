"""Training runs: configs by name, and the job from files to a trained model.

Functions that need TensorFlow are imported at first use, so `tf-dlrm runs` starts
without it.
"""

from pipelines.lazy_names import import_lazily
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
__getattr__, __dir__ = import_lazily(__name__, _MEMBERS)
