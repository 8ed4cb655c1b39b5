"""Operations on some rows of a table: in place, and only on those rows.

They take the plain `tf.Variable` of one device, or its handle, never a tensor made from
it: a dense read anywhere (an `identity`, a cast, Keras' `ops.take`) would make the next
update copy the whole table. Of a variable that a strategy made, `local_variables` gives
the plain ones.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime import accelerators, gradients

INT32_ROWS = (1 << 31) - 1  # tables of more rows, and ids of them, are int64
_BLOCK_VALUES = 1 << 20  # 4 MiB of float32 in flight when a table is read or written

# Shapes: V values in the batch, U unique rows, D width.


def row_dtype(num_rows: int) -> tf.DType:
    """Return the dtype for rows of a table and their number: int32 or int64."""
    return accelerators.index_dtype() if num_rows <= INT32_ROWS else tf.int64


def gather(table: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    """Read rows: `(...,)` to `(..., D)`."""
    return tf.gather(table, rows)


def subtract(table: tf.Variable, rows: tf.Tensor, values: tf.Tensor) -> None:
    """Subtract from rows; repeated rows add up."""
    tf.raw_ops.ResourceScatterSub(
        resource=table.handle, indices=rows, updates=tf.cast(values, table.dtype)
    )


def replace(table: tf.Variable, rows: tf.Tensor, values: tf.Tensor) -> None:
    """Overwrite rows, which must not repeat."""
    tf.raw_ops.ResourceScatterUpdate(
        resource=table.handle, indices=rows, updates=tf.cast(values, table.dtype)
    )


def sum_repeated(rows: tf.Tensor, gradients: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Sum the gradients of rows that occur more than once.

    Args:
        rows: `(V,)` int32 or int64.
        gradients: `(V, D)` float.

    Returns:
        `(U,)` unique rows in the order of first occurrence, `(U, D)` sums.
    """
    unique, places = tf.unique(rows)
    return unique, tf.math.unsorted_segment_sum(gradients, places, tf.size(unique))


def mean_squares(gradients: tf.Tensor) -> tf.Tensor:
    """Return means of the squares of rows: `(n, D)` to `(n, 1)`."""
    return tf.reduce_mean(tf.square(gradients), axis=1, keepdims=True)


def gather_from(handle: tf.Tensor, rows: tf.Tensor, width: int) -> tf.Tensor:
    """Read rows of a float32 variable by its handle: `(...,)` to `(..., width)`."""
    values = tf.raw_ops.ResourceGather(resource=handle, indices=rows, dtype=tf.float32)
    return tf.ensure_shape(values, [*rows.shape, width])


def read_for_any_optimizer(
    read: Callable[..., tuple[tf.Tensor, tf.Tensor]],
    table: tf.Variable,
    weights: tf.Tensor | None,
    rows_and_gradients: Callable[[tf.Tensor], tuple[Any, tf.Tensor | None]],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Read a table by some rows, with a gradient for stock Keras optimizers.

    They do not sum repeated rows of `tf.IndexedSlices` (one Adagrad step with a
    doubled row ends elsewhere), so the gradient holds each row once, and never the
    null row.

    Args:
        read: Function of the table's handle and `weights` that returns the values and
            a second tensor, which has no gradient.
        table: The variable.
        weights: A tensor whose gradient is wanted, or `None`.
        rows_and_gradients: Function of the gradient of the values that returns the
            gradient of the table, and that of `weights` (or `None`).

    Returns:
        What `read` returned.
    """

    # The variable goes in as its handle: a variable that `tf.custom_gradient` finds
    # for itself is read, and so copied, whole at every call.
    @gradients.custom_gradient
    def custom(handle, *weights):
        result = read(handle, *weights)

        def gradient(upstream, _):
            of_table, of_weights = rows_and_gradients(upstream)
            return of_table, *([of_weights] if weights else [])

        return result, gradient

    # A gather of nothing: tapes take notice of the variable.
    tf.gather(table, tf.zeros((0,), row_dtype(table.shape[0])))
    return custom(table.handle, *(() if weights is None else (weights,)))


def unique_slices(
    table: tf.Variable,
    rows: tf.Tensor,
    gradients: tf.Tensor,
    null_row: int,
    sparse: bool = True,
) -> tf.IndexedSlices | tf.Tensor:
    """Return a table's gradient from those of its rows: each row once, no null row.

    Args:
        table: The variable.
        rows: `(V,)`, repeated as they come.
        gradients: `(V, D)`.
        null_row: Row that is left out.
        sparse: With `False` the result is dense, of the table's shape.
    """
    kept = tf.not_equal(rows, null_row)
    rows, sums = sum_repeated(
        tf.boolean_mask(rows, kept), tf.boolean_mask(gradients, kept)
    )
    if not sparse:
        return tf.math.unsorted_segment_sum(sums, rows, table.shape[0])
    return tf.IndexedSlices(sums, rows, tf.constant(table.shape.as_list(), rows.dtype))


def block_ranges(num_rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield `(first, last + 1)` of row blocks small enough to copy at once."""
    step = max(1, _BLOCK_VALUES // width)
    for first in range(0, num_rows, step):
        yield first, min(first + step, num_rows)


def read_range(table: tf.Variable, first: int, num_rows: int) -> np.ndarray:
    """Copy consecutive rows to NumPy, block by block."""
    width = int(table.shape[1])
    result = np.empty((num_rows, width), table.dtype.as_numpy_dtype)
    for a, b in block_ranges(num_rows, width):
        result[a:b] = gather(table, _range(table, first + a, first + b)).numpy()
    return result


def write_range(
    table: tf.Variable, first: int, num_rows: int, make_block: Callable[[int, int], Any]
) -> None:
    """Overwrite consecutive rows, block by block.

    Args:
        table: Variable of rank 2.
        first: First row to write.
        num_rows: Number of rows.
        make_block: Function of `(a, b)` that returns rows a .. b - 1 of the range.
    """
    for a, b in block_ranges(num_rows, int(table.shape[1])):
        replace(table, _range(table, first + a, first + b), make_block(a, b))


def is_finite(table: tf.Variable) -> bool:
    """Return whether all values are finite; they are read block by block."""
    return all(
        bool(tf.reduce_all(tf.math.is_finite(gather(table, _range(table, a, b)))))
        for a, b in block_ranges(*table.shape)
    )


def _range(table: tf.Variable, first: int, end: int) -> tf.Tensor:
    """The rows first .. end - 1 of a table, of which there may be 2^31 and more."""
    return tf.range(first, end, dtype=row_dtype(table.shape[0]))


def local_variables(variable: tf.Variable) -> tuple[tf.Variable, ...]:
    """Return this process' plain variables behind a (possibly mirrored) variable."""
    return tf.distribute.get_strategy().experimental_local_results(variable)
