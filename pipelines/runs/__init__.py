"""Training runs: configs by name, and the job from files to a trained model."""

from pipelines.runs.config import RunConfig
from pipelines.runs.named import EXPERIMENTS, RUNS, get

__all__ = ["EXPERIMENTS", "RUNS", "RunConfig", "get"]
