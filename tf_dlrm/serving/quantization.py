"""Quantized tables for serving: integers with a scale per row, or half precision.

The format is that of FBGEMM's fused row-wise tables (Guan et al. 2019, arXiv
1911.02079): a uint8 row holds its integers, followed by scale and offset as float16. A
lookup therefore reads one contiguous block of memory: 68 (int8) or 36 (int4) bytes for
a row of width 64, instead of 256 for float32. Rows are converted to float32 before
pooling.

# N rows, D width
"""

import functools
from collections.abc import Callable, Iterable

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime import replicas
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError

TABLE_DTYPES = ("float32", "float16", "bfloat16", "int8", "int4")
_BITS = {"int8": 8, "int4": 4}
_TAIL = 4  # bytes for the scale and offset of a row
_HALF = np.float16


class QuantizedTables:
    """Quantized copies of tables.

    Args:
        variables: float32 `tf.Variable`s `(N, D)`, such as the `lookup_variables` of an
            embedding layer.
        dtype: `"float16"`, `"bfloat16"`, `"int8"` or `"int4"`.

    Attributes:
        variables_of_tables: The copies, in the order of `variables`.

    Raises:
        ValueError: For any other dtype, or if float16 cannot represent a value.
    """

    def __init__(self, variables: Iterable[tf.Variable], dtype: str) -> None:
        if dtype not in TABLE_DTYPES[1:]:
            raise UserError(
                f"`table_dtype` must be one of {', '.join(TABLE_DTYPES)}. "
                f"Received: {dtype!r}"
            )
        self.dtype = dtype
        self._copies = {}  # copy and width, by the id of the original
        self.variables_of_tables = []
        for variable in variables:
            copy = replicas.on_device(
                variable.device, functools.partial(self._copy, variable)
            )
            self.variables_of_tables.append(copy)
            self._copies[id(variable)] = (copy, int(variable.shape[1]))

    def read(self, variable: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
        """Return the stored values of rows of an original variable: float32 `(..., D)`.

        Args:
            variable: One of the original variables.
            rows: Row numbers, `(...,)`.
        """
        copy, width = self._copies[id(variable)]
        stored = row_ops.gather(copy, rows)
        if self.dtype not in _BITS:
            return tf.cast(stored, tf.float32)
        return dequantize(stored, width, _BITS[self.dtype])

    def _copy(self, variable: tf.Variable) -> tf.Variable:
        num_rows, width = variable.shape
        if self.dtype in _BITS:
            stored_width, dtype = row_bytes(width, _BITS[self.dtype]), tf.uint8
        else:
            stored_width, dtype = width, tf.as_dtype(self.dtype)
        copy = tf.Variable(
            tf.zeros((num_rows, stored_width), dtype),
            trainable=False,
            name=f"{variable.name.split(':')[0]}_{self.dtype}",
        )
        for first, end in row_ops.block_ranges(num_rows, width):
            block = row_ops.read_range(variable, first, end - first)
            self._check_range(variable, block)
            if self.dtype in _BITS:
                block = quantize(block, _BITS[self.dtype])
            row_ops.write_range(copy, first, end - first, _reader(block))
        return copy

    def _check_range(self, variable: tf.Variable, block: np.ndarray) -> None:
        largest = float(np.abs(block).max(initial=0))
        if largest > largest_value(self.dtype):
            raise UserError(
                f"Weight '{variable.name}' contains {largest:.4g}, which exceeds "
                f"float16 ({self.dtype} tables store values or scales as float16). "
                "Export with table_dtype='bfloat16' or 'float32'."
            )


def stored_type(width: int, dtype: str) -> tuple[int, str]:
    """Return the width and NumPy dtype in which rows of a width are stored.

    Args:
        width: Number of columns of the rows.
        dtype: One of `TABLE_DTYPES`.
    """
    if dtype in _BITS:
        return row_bytes(width, _BITS[dtype]), "uint8"
    return width, dtype


def largest_value(dtype: str) -> float:
    """Return the largest magnitude that tables of a dtype store."""
    is_wide = dtype in ("float32", "bfloat16")
    return float(np.finfo(np.float32 if is_wide else _HALF).max)


def to_stored(rows: np.ndarray, dtype: str) -> np.ndarray:
    """Convert rows, float32 `(n, D)`, to the format in which an export stores them.

    Args:
        rows: Finite values.
        dtype: One of `TABLE_DTYPES`.
    """
    if dtype == "float32":
        return rows
    if dtype in _BITS:
        return quantize(rows, _BITS[dtype])
    stored: np.ndarray = tf.cast(rows, dtype).numpy()
    return stored


def _reader(block: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda first, end: block[first:end]


def row_bytes(width: int, bits: int) -> int:
    """Return the size in bytes of a quantized row: integers, scale and offset."""
    return -(-width * bits // 8) + _TAIL


def quantize(rows: np.ndarray, bits: int) -> np.ndarray:
    """Quantize each row between its smallest and largest value.

    Args:
        rows: Finite values, float32 `(N, D)`.
        bits: 8 or 4. With 4 bits, the low halves of bytes hold the first half of the
            columns, the high halves the second.

    Returns:
        uint8 `(N, row_bytes(D, bits))`, for `value = integer * scale + offset`, where
        scale and offset are little-endian float16. A row of zeros is represented
        exactly.
    """
    num_rows, width = rows.shape
    levels = (1 << bits) - 1
    low, high = rows.min(axis=1), rows.max(axis=1)
    # Round the offset down and the scale up, so that the range covers all values.
    offset = low.astype(_HALF)
    above = offset.astype(np.float32) > low
    offset = np.where(above, np.nextafter(offset, _HALF(-np.inf)), offset)
    span = high - offset.astype(np.float32)
    scale = (span / levels).astype(_HALF)
    short = scale.astype(np.float32) * levels < span
    scale = np.where(short, np.nextafter(scale, _HALF(np.inf)), scale)
    divisor = np.where(scale > 0, scale, _HALF(1)).astype(np.float32)
    steps = (rows - offset.astype(np.float32)[:, None]) / divisor[:, None]
    integers = np.rint(np.clip(steps, 0, levels)).astype(np.uint8)
    if bits == 4:
        half = -(-width // 2)
        packed = integers[:, :half].copy()
        packed[:, : width - half] |= integers[:, half:] << 4
        integers = packed
    tail = np.stack([scale, offset], axis=1).astype("<f2").view(np.uint8)
    return np.concatenate([integers, tail.reshape(num_rows, _TAIL)], axis=1)


def dequantize(stored: tf.Tensor, width: int, bits: int) -> tf.Tensor:
    """Convert rows from `quantize`, uint8 `(..., bytes)`, to float32 `(..., D)`."""
    integers, tail = tf.split(stored, [-1, _TAIL], axis=-1)
    shape = tf.concat([tf.shape(tail)[:-1], [2, 2]], 0)
    factors = tf.cast(tf.bitcast(tf.reshape(tail, shape), tf.float16), tf.float32)
    scale, offset = factors[..., :1], factors[..., 1:]
    if bits == 4:
        low = tf.bitwise.bitwise_and(integers, tf.constant(15, tf.uint8))
        high = tf.bitwise.right_shift(integers, tf.constant(4, tf.uint8))
        integers = tf.concat([low, high], axis=-1)[..., :width]
    return tf.cast(integers, tf.float32) * scale + offset
