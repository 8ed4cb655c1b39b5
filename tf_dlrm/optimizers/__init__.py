"""Exact row-sparse optimizers: the cost of a step depends only on the batch's rows."""

from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.optimizers.factory import (
    check_dense_optimizer,
    for_tables,
    from_keras,
    get,
)
from tf_dlrm.optimizers.schedules import WarmupPolynomialDecay
from tf_dlrm.optimizers.sparse_adagrad import RowWiseAdagrad, SparseAdagrad
from tf_dlrm.optimizers.sparse_adam import SparseAdam
from tf_dlrm.optimizers.sparse_ftrl import SparseFtrl
from tf_dlrm.optimizers.sparse_sgd import SparseSGD

__all__ = [
    "RowWiseAdagrad",
    "SparseAdagrad",
    "SparseAdam",
    "SparseFtrl",
    "SparseOptimizer",
    "SparseSGD",
    "WarmupPolynomialDecay",
    "check_dense_optimizer",
    "for_tables",
    "from_keras",
    "get",
]
