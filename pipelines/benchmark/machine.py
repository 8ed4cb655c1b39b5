"""The machine in general terms: nothing that names it."""

import datetime
import os
import pathlib
import resource

_MEMORY = pathlib.Path("/proc/meminfo")
_LOAD = pathlib.Path("/proc/stat")
_PROCESSOR = pathlib.Path("/proc/cpuinfo")
# The first that the processor has is its class.
_CLASSES = (
    ("amx", {"amx_tile", "amx_bf16"}),
    ("avx512_bf16", {"avx512_bf16"}),
    ("avx512", {"avx512f"}),
    ("avx2", {"avx2"}),
)


def describe() -> dict:
    """Cores, class of instruction set, memory in GB of 2**30 bytes, and the date."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "instruction_set": instruction_set(_read(_PROCESSOR)),
        "memory_gb": round(_memory("MemTotal") / 2**30),
        "date": datetime.date.today().isoformat(),
    }


def instruction_set(cpuinfo: str) -> str:
    """`"amx"`, `"avx512_bf16"`, `"avx512"`, `"avx2"` or `"other"`, by the flags."""
    flags = set()
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            break
    return next((name for name, needed in _CLASSES if needed <= flags), "other")


def free_memory() -> int:
    """Bytes that a new process can have."""
    return _memory("MemAvailable")


def busy_seconds() -> float:
    """Seconds that all cores worked since the start, stolen time included."""
    fields = _read(_LOAD).partition("\n")[0].split()[1:]
    if len(fields) < 8:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = (int(f) for f in fields[:8])
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """Seconds that the processes which this one waited for used of all cores."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _memory(name):
    for line in _read(_MEMORY).splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path):
    return path.read_text() if path.exists() else ""
