"""Infrastructure below the model: XLA, devices, row operations, files, locks."""

from tf_dlrm.runtime import collectives, disk, huge_pages, locks, place, remote_files
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.units import format_bytes

__all__ = [
    "UserError",
    "collectives",
    "disk",
    "format_bytes",
    "huge_pages",
    "locks",
    "place",
    "remote_files",
]
