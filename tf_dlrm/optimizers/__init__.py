"""Exact optimizers of tables: row-sparse ones, and dense ones with weight decay.

A step of a row-sparse optimizer costs only as much as the rows of the batch.
"""

from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.optimizers.dense import DenseAdagrad, DenseAdam, DenseSGD
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
    "DenseAdagrad",
    "DenseAdam",
    "DenseSGD",
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
