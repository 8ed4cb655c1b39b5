"""A warning for processors on which bfloat16 is slower than float32."""

import time
import warnings

import keras
import tensorflow as tf

from tf_dlrm.runtime import accelerators

_NUM_ROWS = 128
_NUM_TRIES = 3
_SLOWER = 1.2  # smaller ratios may be noise
_state = {"is_measured": False}


def warn_if_slow(model: keras.Model) -> None:
    """Warn, once per process, if the model's largest product is slow in bfloat16.

    Args:
        model: A built model.
    """
    if model.compute_dtype != "bfloat16" or accelerators.are_visible():
        return
    shapes = [v.shape for v in model.dense_variables if len(v.shape) == 2]
    if _state["is_measured"] or not shapes:
        return
    _state["is_measured"] = True
    inner, outer = max(shapes, key=lambda shape: shape[0] * shape[1])
    ratio = measure("bfloat16", inner, outer) / measure("float32", inner, outer)
    if ratio > _SLOWER:
        warnings.warn(
            f"`mixed_bfloat16` is slower than float32 on this processor: the product "
            f"of a {_NUM_ROWS} x {inner} and a {inner} x {outer} matrix takes "
            f"{ratio:.1f} times as long. The processor has no instructions that "
            "multiply bfloat16 (AVX512-BF16, AMX). Use dtype='float32'.",
            RuntimeWarning,
            stacklevel=2,
        )


def measure(dtype: str, inner: int, outer: int) -> float:
    """Return the seconds that a matrix product takes, the fastest of three tries."""
    left, right = tf.ones((_NUM_ROWS, inner), dtype), tf.ones((inner, outer), dtype)
    tf.linalg.matmul(left, right)  # warm-up: allocates memory and starts threads
    seconds = []
    for _ in range(_NUM_TRIES):
        start = time.perf_counter()
        tf.linalg.matmul(left, right)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
