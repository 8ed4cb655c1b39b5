"""Operations on some rows of a table: in place, and only on those rows.

All of them take the `tf.Variable` itself. A dense read of it anywhere (an `identity`,
a cast, Keras' `ops.take`) would make the next update copy the whole table.
"""

import numpy as np
import tensorflow as tf

_BLOCK_VALUES = 1 << 22  # 16 MiB of float32 in flight when a table is read or written

# Shapes: V values in the batch, U unique rows, D width.


def gather(table: tf.Variable, rows):
    """Reads rows: `(...,)` to `(..., D)`."""
    return tf.gather(table, rows)


def add(table: tf.Variable, rows, values) -> None:
    """Adds to rows; repeated rows add up."""
    tf.raw_ops.ResourceScatterAdd(
        resource=table.handle, indices=rows, updates=tf.cast(values, table.dtype)
    )


def subtract(table: tf.Variable, rows, values) -> None:
    """Subtracts from rows; repeated rows add up."""
    tf.raw_ops.ResourceScatterSub(
        resource=table.handle, indices=rows, updates=tf.cast(values, table.dtype)
    )


def replace(table: tf.Variable, rows, values) -> None:
    """Overwrites rows, which must not repeat."""
    tf.raw_ops.ResourceScatterUpdate(
        resource=table.handle, indices=rows, updates=tf.cast(values, table.dtype)
    )


def sum_repeated(rows, gradients):
    """Sums the gradients of rows that occur more than once.

    Args:
        rows: `(V,)` int32 or int64.
        gradients: `(V, D)` float.

    Returns:
        `(U,)` unique rows in the order of first occurrence, `(U, D)` sums.
    """
    unique, places = tf.unique(rows)
    return unique, tf.math.unsorted_segment_sum(gradients, places, tf.size(unique))


def gather_for_any_optimizer(
    table: tf.Variable, rows, null_row: int, sparse: bool = True
):
    """Reads rows; the gradient is exact in the hands of stock Keras optimizers.

    They do not sum repeated rows of `tf.IndexedSlices` (one Adagrad step with a
    doubled row ends elsewhere), so the gradient holds each row once, and never the
    null row. With `sparse` false the gradient is dense, of the table's shape.
    """

    # The variable goes in as its handle: a variable that `tf.custom_gradient` finds
    # for itself is read, and so copied, whole at every call.
    @tf.custom_gradient
    def lookup(rows, handle):
        def gradient(upstream):
            flat = tf.reshape(rows, (-1,))
            kept = tf.not_equal(flat, null_row)
            values = tf.reshape(upstream, (-1, table.shape[1]))
            unique, sums = sum_repeated(
                tf.boolean_mask(flat, kept), tf.boolean_mask(values, kept)
            )
            if not sparse:
                return None, tf.math.unsorted_segment_sum(sums, unique, table.shape[0])
            shape = tf.constant(table.shape.as_list(), unique.dtype)
            return None, tf.IndexedSlices(sums, unique, shape)

        values = tf.raw_ops.ResourceGather(
            resource=handle, indices=rows, dtype=table.dtype
        )
        return values, gradient

    tf.gather(table, tf.zeros((0,), rows.dtype))  # tapes take notice of the variable
    return lookup(rows, table.handle)


def block_ranges(num_rows: int, width: int):
    """Yields `(first, last + 1)` of row blocks small enough to copy at once."""
    step = max(1, _BLOCK_VALUES // width)
    for first in range(0, num_rows, step):
        yield first, min(first + step, num_rows)


def read_range(table: tf.Variable, first: int, num_rows: int) -> np.ndarray:
    """Copies consecutive rows to NumPy, block by block."""
    table = local_variables(table)[0]
    width = int(table.shape[1])
    result = np.empty((num_rows, width), table.dtype.as_numpy_dtype)
    for a, b in block_ranges(num_rows, width):
        result[a:b] = gather(table, tf.range(first + a, first + b)).numpy()
    return result


def write_range(table: tf.Variable, first: int, num_rows: int, make_block) -> None:
    """Overwrites consecutive rows, block by block.

    Args:
        table: Variable of rank 2, or a mirrored one.
        first: First row to write.
        num_rows: Number of rows.
        make_block: Function of `(a, b)` that returns rows a .. b - 1 of the range.
    """
    for a, b in block_ranges(num_rows, int(table.shape[1])):
        block = make_block(a, b)
        for variable in local_variables(table):
            replace(variable, tf.range(first + a, first + b), block)


def local_variables(variable) -> tuple:
    """The plain variables of this process behind a (possibly mirrored) variable."""
    return tf.distribute.get_strategy().experimental_local_results(variable)
