"""Engines: ways of computing lookups and updates; one is chosen for each table."""

from tf_dlrm.embedding.engines.engine import Engine, PooledGradients, Step, TrainedPart
from tf_dlrm.embedding.engines.plain import PlainEngine
from tf_dlrm.embedding.engines.xla_cpu import XlaCpuEngine
from tf_dlrm.runtime import xla

__all__ = [
    "Engine",
    "PlainEngine",
    "PooledGradients",
    "Step",
    "TrainedPart",
    "XlaCpuEngine",
    "choose",
]


def choose() -> type[Engine]:
    """Return the engine for tables of this process's devices.

    XLA compiles on CPUs alone; accelerators have fast kernels of their own, and where
    there is one, a call may come from any device.
    """
    return XlaCpuEngine if xla.is_enabled_on_cpus() else PlainEngine
