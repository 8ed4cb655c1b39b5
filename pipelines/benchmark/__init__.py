"""`tf-dlrm benchmark`: tf_dlrm and its peers, measured in alternating rounds.

`workloads` defines the models, `jobs` the measurements; `measurement` runs one job
in its own process, `arms` starts it and the peers (`benchmarks/peers` in the
repository), `runner` alternates them, `results` compares and `charts` draws.
"""

from pipelines.benchmark.workloads import KAGGLE_TABLE_SIZES, WORKLOADS

__all__ = ["KAGGLE_TABLE_SIZES", "WORKLOADS"]
