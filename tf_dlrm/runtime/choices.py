"""Measurements behind choices, stored in a small file for later processes.

The file is optional: if it cannot be read or written, it is ignored.
"""

import contextlib
import hashlib
import json
import logging
import math
import os
import platform
import sys
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.runtime import disk
from tf_dlrm.version import __version__

_FORMAT = 1
# Environment variables that change how fast TensorFlow or XLA computes.
_SETTINGS = ("TF_ENABLE_ONEDNN_OPTS", "ONEDNN_MAX_CPU_ISA", "XLA_FLAGS")
_MAX_CHOICES = 200  # number of newest entries to keep, a few hundred bytes each
_LOG = logging.getLogger("tf_dlrm")


def tell(text: str) -> None:
    """Log a line to the logger `tf_dlrm`, and to standard error if TF_DLRM_LOG=1."""
    _LOG.info(text)
    if os.environ.get("TF_DLRM_LOG", "0") not in ("", "0"):
        print(f"tf_dlrm: {text}", file=sys.stderr, flush=True)


def file_path() -> Path | None:
    """Return the path of the file, or `None` if TF_DLRM_CACHE=off.

    The file is in the folder TF_DLRM_CACHE, by default `tf_dlrm` in XDG_CACHE_HOME or
    `~/.cache`.
    """
    folder = os.environ.get("TF_DLRM_CACHE")
    if folder == "off":
        return None
    if not folder:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join(caches, "tf_dlrm")
    return Path(folder) / "choices.json"


def find(key: dict[str, Any]) -> dict[str, float] | None:
    """Return the figures that `keep` stored for a key, or `None`.

    Args:
        key: JSON-safe values.
    """
    for entry in _read(file_path()):
        if entry["key"] == key:
            return entry["figures"]
    return None


def keep(key: dict[str, Any], figures: dict[str, float]) -> None:
    """Store figures for a key, replacing earlier ones.

    Args:
        key: JSON-safe values.
        figures: Positive numbers by name.
    """
    path = file_path()
    if path is None:
        return
    others = [entry for entry in _read(path) if entry["key"] != key]
    choices = [*others[-_MAX_CHOICES + 1 :], {"key": key, "figures": figures}]
    with contextlib.suppress(OSError, ValueError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with disk.replacing_file("the choices", path) as temporary:
            lines = ",\n".join(map(json.dumps, choices))
            temporary.write_text(f'{{"format": {_FORMAT}, "choices": [\n{lines}\n]}}\n')


def _read(path: Path | None) -> list[dict[str, Any]]:
    """Return the valid entries of a file, or none if it is damaged or missing."""
    if path is None:
        return []
    try:
        content = disk.read_json(path)
    except (OSError, ValueError):
        return []
    entries = content.get("choices")
    if content.get("format") != _FORMAT or not isinstance(entries, list):
        return []
    return [entry for entry in entries if _is_valid(entry)]


def _is_valid(entry) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("key"), dict):
        return False
    figures = entry.get("figures")
    return isinstance(figures, dict) and all(
        type(value) in (int, float) and math.isfinite(value) and value > 0
        for value in figures.values()
    )


def machine() -> dict[str, Any]:
    """Return the properties of the machine that affect a step's speed, JSON-safe."""
    return {
        "processor": _processor(),
        "cores": _num_cores(),
        "threads": tf.config.threading.get_intra_op_parallelism_threads(),
        "settings": {name: os.environ.get(name, "") for name in _SETTINGS},
        "versions": [tf.__version__, keras.__version__, __version__],
    }


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    """Return the processor's model with a digest of its features.

    Virtual machines may report the same name for several generations of processors.
    """
    values: dict[str, str] = {}
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            values.setdefault(name.strip(), value.strip())
    name = values.get("model name") or platform.processor() or platform.machine()
    features = values.get("flags") or values.get("Features") or ""
    digest = hashlib.sha256(" ".join(sorted(features.split())).encode())
    return f"{name} ({digest.hexdigest()[:8]})"


def is_deterministic() -> bool:
    """Return whether op determinism is enabled, which forbids tf.timestamp."""
    try:
        tf.timestamp()
    except tf.errors.FailedPreconditionError:
        return True
    return False
