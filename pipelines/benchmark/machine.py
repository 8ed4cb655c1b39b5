"""The machine in general terms, without anything that identifies it."""

import datetime
import os
import pathlib
import resource

_MEMORY = pathlib.Path("/proc/meminfo")
_LOAD = pathlib.Path("/proc/stat")
_PROCESSOR = pathlib.Path("/proc/cpuinfo")
# The first one that the processor supports is its class.
_CLASSES = (
    ("amx", {"amx_tile", "amx_bf16"}),
    ("avx512_bf16", {"avx512_bf16"}),
    ("avx512", {"avx512f"}),
    ("avx2", {"avx2"}),
)


def describe() -> dict:
    """Return cores, instruction set class, memory in GB of 2**30 bytes, and date."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "instruction_set": instruction_set(_read(_PROCESSOR)),
        "memory_gb": round(_memory("MemTotal") / 2**30),
        "date": datetime.date.today().isoformat(),
    }


def instruction_set(cpuinfo: str) -> str:
    """Return `"amx"`, `"avx512_bf16"`, `"avx512"`, `"avx2"` or `"other"`, by flags."""
    flags = set()
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            break
    return next((name for name, needed in _CLASSES if needed <= flags), "other")


def free_memory() -> int:
    """Return the bytes of memory that a new process can use."""
    return _memory("MemAvailable")


def busy_seconds() -> float:
    """Return the seconds that all cores worked since boot, including stolen time."""
    fields = _read(_LOAD).partition("\n")[0].split()[1:]
    if len(fields) < 8:
        return 0.0
    user, nice, system, _, _, irq, softirq, steal = (int(f) for f in fields[:8])
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """Return the CPU seconds of the finished child processes of this process."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _memory(name):
    for line in _read(_MEMORY).splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path):
    return path.read_text() if path.exists() else ""
