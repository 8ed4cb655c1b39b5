"""Huge pages for tables: fewer address translations for random rows.

A table of gigabytes in pages of 4 kB misses the processor's translation cache at
nearly every row. Linux can put it into pages of 2 MB after the fact. This is advice:
where it cannot be followed, nothing changes.
"""

import ctypes
import os
import sys

import numpy as np
import tensorflow as tf

_MIN_BYTES = 64 << 20  # smaller tables are in the caches anyway
_PAGE_BYTES = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # linux/mman.h; collapsing since Linux 6.1


def use_for(variable: tf.Variable) -> bool:
    """Move a variable on a CPU into huge pages, unless TF_DLRM_HUGE_PAGES=0.

    For a variable that was just made: once rows of it were written, looking at it
    would copy it.

    Returns:
        Whether the system took the advice.
    """
    wanted = os.environ.get("TF_DLRM_HUGE_PAGES", "1") != "0"
    if not (wanted and sys.platform == "linux" and tf.executing_eagerly()):
        return False
    if "CPU" not in variable.device:
        return False
    num_bytes = int(np.prod(variable.shape)) * variable.dtype.size
    if num_bytes < _MIN_BYTES:
        return False
    value = variable.read_value()
    view = np.frombuffer(memoryview(value), np.uint8)
    start = -(-view.ctypes.data // _PAGE_BYTES) * _PAGE_BYTES
    end = (view.ctypes.data + view.nbytes) // _PAGE_BYTES * _PAGE_BYTES
    # The view goes first: a buffer that is looked at would be copied when written.
    del view, value
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if madvise(start, end - start, _MADV_HUGEPAGE):
        return False
    return madvise(start, end - start, _MADV_COLLAPSE) == 0
