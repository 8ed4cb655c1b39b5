"""Hybrid parallel: which device holds which part of which table, and what it costs."""

from tf_dlrm.sharding.collection import ShardedEmbeddingCollection
from tf_dlrm.sharding.costs import LINKS, Link, format_scaling, scaling, step_time
from tf_dlrm.sharding.planner import plan
from tf_dlrm.sharding.plans import Plan, Shard

__all__ = [
    "LINKS",
    "Link",
    "Plan",
    "Shard",
    "ShardedEmbeddingCollection",
    "format_scaling",
    "plan",
    "scaling",
    "step_time",
]
