"""Hybrid parallelism: tables spread over devices according to a plan."""

from tf_dlrm.sharding import planning
from tf_dlrm.sharding.collection import ShardedEmbeddingCollection
from tf_dlrm.sharding.planning import Plan, Shard, plan

__all__ = ["Plan", "Shard", "ShardedEmbeddingCollection", "plan", "planning"]
