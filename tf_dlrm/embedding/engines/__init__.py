"""Engines, which compute lookups and updates in different ways."""

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
    """Return the engine for tables on this process's devices.

    XLA is used only on CPUs. Accelerators have fast kernels of their own, and in a
    process with an accelerator a call may come from any device.
    """
    return XlaCpuEngine if xla.is_enabled_on_cpus() else PlainEngine
