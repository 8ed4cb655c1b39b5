"""`tf-dlrm benchmark`: this package beside its peers, in rounds that alternate.

`workloads` says what is measured and `jobs` how; `measurement` is one of this
package in a process of its own, `arms` starts it and the peers (`benchmarks/peers` in
the repository), `runner` alternates them, `results` compares, `charts` draws.
"""

from pipelines.benchmark.workloads import KAGGLE_TABLE_SIZES, WORKLOADS

__all__ = ["KAGGLE_TABLE_SIZES", "WORKLOADS"]
