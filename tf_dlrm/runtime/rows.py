"""In-place operations on some rows of a table.

They take the `tf.Variable` of one device, or its handle, never a tensor made from it: a
dense read anywhere (an `identity`, a cast, Keras' `ops.take`) would make the next
update copy the whole table. For a variable that a strategy created, `local_variables`
returns the variables of the devices.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime import accelerators, gradients

INT32_ROWS = (1 << 31) - 1  # row numbers of larger tables are int64
_BLOCK_VALUES = 1 << 20  # values (4 MiB) in a block when tables are read or written

# Shapes: V values in the batch, U unique rows, D width.


def row_dtype(num_rows: int) -> tf.DType:
    """Return the dtype for row numbers of a table: int32 or int64."""
    return accelerators.index_dtype() if num_rows <= INT32_ROWS else tf.int64


def gather(table: tf.Variable, rows: tf.Tensor) -> tf.Tensor:
    """Return rows `(...,)` of a table as `(..., D)`."""
    return tf.gather(table, rows)


def subtract(table: tf.Variable, rows: tf.Tensor, values: tf.Tensor) -> None:
    """Subtract values from rows; values of repeated rows add up."""
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
        rows: Rows, int32 or int64 `(V,)`.
        gradients: Gradients of the rows, float `(V, D)`.

    Returns:
        Unique rows `(U,)` in the order of first occurrence, and their sums `(U, D)`.
    """
    unique, places = tf.unique(rows)
    return unique, tf.math.unsorted_segment_sum(gradients, places, tf.size(unique))


def mean_squares(gradients: tf.Tensor) -> tf.Tensor:
    """Return the mean of the squares of each row of `(n, D)`, as `(n, 1)`."""
    return tf.reduce_mean(tf.square(gradients), axis=1, keepdims=True)


def gather_from(handle: tf.Tensor, rows: tf.Tensor, width: int) -> tf.Tensor:
    """Return rows `(...,)` of a float32 variable, by its handle, as `(..., width)`."""
    values = tf.raw_ops.ResourceGather(resource=handle, indices=rows, dtype=tf.float32)
    return tf.ensure_shape(values, [*rows.shape, width])


def read_for_any_optimizer(
    read: Callable[..., tuple[tf.Tensor, tf.Tensor]],
    table: tf.Variable,
    weights: tf.Tensor | None,
    rows_and_gradients: Callable[[tf.Tensor], tuple[Any, tf.Tensor | None]],
) -> tuple[tf.Tensor, tf.Tensor]:
    """Read some rows of a table, with a gradient for stock Keras optimizers.

    These optimizers do not sum repeated rows of `tf.IndexedSlices`, so an Adagrad step
    with a repeated row would be wrong. The gradient therefore contains each row once,
    and never the null row.

    Args:
        read: Function of the table's handle and `weights` that returns the values, and
            a second tensor without a gradient.
        table: The variable.
        weights: A tensor that needs a gradient, or `None`.
        rows_and_gradients: Function of the gradient of the values that returns the
            gradient of the table, and that of `weights` (or `None`).

    Returns:
        The result of `read`.
    """

    # Pass the variable as a handle: if `tf.custom_gradient` captured the variable, each
    # call would read, and thus copy, the whole table.
    @gradients.custom_gradient
    def custom(handle, *weights):
        result = read(handle, *weights)

        def gradient(upstream, _):
            table_gradient, weights_gradient = rows_and_gradients(upstream)
            return table_gradient, *([weights_gradient] if weights else [])

        return result, gradient

    # Gather no rows, so that tapes watch the variable.
    tf.gather(table, tf.zeros((0,), row_dtype(table.shape[0])))
    return custom(table.handle, *(() if weights is None else (weights,)))


def unique_slices(
    table: tf.Variable,
    rows: tf.Tensor,
    gradients: tf.Tensor,
    null_row: int,
    sparse: bool = True,
) -> tf.IndexedSlices | tf.Tensor:
    """Return a table's gradient from those of rows: each row once, without null row.

    Args:
        table: The variable.
        rows: Rows, `(V,)`, possibly with repetitions.
        gradients: Gradients of the rows, `(V, D)`.
        null_row: Row to omit.
        sparse: Whether to return `tf.IndexedSlices` instead of a dense tensor.
    """
    is_row = tf.not_equal(rows, null_row)
    rows, sums = sum_repeated(
        tf.boolean_mask(rows, is_row), tf.boolean_mask(gradients, is_row)
    )
    if not sparse:
        return tf.math.unsorted_segment_sum(sums, rows, table.shape[0])
    return tf.IndexedSlices(sums, rows, tf.constant(table.shape.as_list(), rows.dtype))


def block_ranges(num_rows: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges `(first, last + 1)` of blocks small enough to copy at once."""
    step = max(1, _BLOCK_VALUES // width)
    for first in range(0, num_rows, step):
        yield first, min(first + step, num_rows)


def read_range(table: tf.Variable, first: int, num_rows: int) -> np.ndarray:
    """Return a NumPy copy of consecutive rows, made block by block."""
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
    """Return whether all values are finite, reading block by block."""
    return all(
        bool(tf.reduce_all(tf.math.is_finite(gather(table, _range(table, a, b)))))
        for a, b in block_ranges(*table.shape)
    )


def _range(table: tf.Variable, first: int, end: int) -> tf.Tensor:
    """Return the rows first .. end - 1, also for tables with more than 2^31 rows."""
    return tf.range(first, end, dtype=row_dtype(table.shape[0]))


def local_variables(variable: tf.Variable) -> tuple[tf.Variable, ...]:
    """Return this process's device variables of a (possibly mirrored) variable."""
    return tf.distribute.get_strategy().experimental_local_results(variable)
