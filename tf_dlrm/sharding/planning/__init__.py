"""Planning of which device holds which part of which table, in pure Python."""

from tf_dlrm.sharding.planning import traffic
from tf_dlrm.sharding.planning.loads import DEFAULT_OPTIMIZER, FLOAT_BYTES
from tf_dlrm.sharding.planning.planner import STRATEGIES, plan
from tf_dlrm.sharding.planning.plans import Plan, Shard

__all__ = [
    "DEFAULT_OPTIMIZER",
    "FLOAT_BYTES",
    "STRATEGIES",
    "Plan",
    "Shard",
    "plan",
    "traffic",
]
