"""Huge pages for tables, which need fewer address translations for random rows.

With pages of 4 kB, lookups in a table of gigabytes miss the processor's translation
cache at nearly every row. Linux can move the table to pages of 2 MB. The request is
only advice: if the system cannot follow it, nothing changes.
"""

import ctypes
import os
import sys

import numpy as np
import tensorflow as tf

_MIN_BYTES = 64 << 20  # smaller tables do not benefit
_PAGE_BYTES = 2 << 20
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # linux/mman.h; collapsing since Linux 6.1


def use_for(variable: tf.Variable) -> bool:
    """Move a variable on a CPU to huge pages, unless TF_DLRM_HUGE_PAGES=0.

    Call it for a new variable: after rows were written, reading its address would copy
    it.

    Returns:
        Whether the system followed the advice.
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
    # Delete the view first: writing to a buffer with a view would copy it.
    del view, value
    madvise = ctypes.CDLL(None, use_errno=True).madvise
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if madvise(start, end - start, _MADV_HUGEPAGE):
        return False
    return madvise(start, end - start, _MADV_COLLAPSE) == 0
