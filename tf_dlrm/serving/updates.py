"""`Updates`: the signature by which a server changes rows of a loaded model.

# N rows of a variable, W stored width, n rows that change
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

APPLY_DELTA = "apply_delta"
SEQUENCE = "sequence"


class Updates(tf.Module):
    """The sequence number of an exported model, and the function that moves it on.

    The function takes `from_sequence` and `to_sequence`, int64 scalars; for each
    variable of tables number i, `rows_i`, int64 `(n,)`, and `values_i`, `(n, W)`, in
    the format that the export stores; and the new `dense_j` of each other weight. It
    returns `sequence`, int64: the new one. It first checks `from_sequence` and all row
    numbers, and changes nothing if one is wrong. Then it replaces the rows, one after
    the other: a prediction that runs at the same time sees each row, and each of the
    other weights, before or after the change, so a server that must answer from exactly
    one sequence holds its predictions back during the call.

    Args:
        tables: Variables that hold rows, `(N, W)` or `(N,)`.
        dense: All other weights.

    Attributes:
        sequence: The sequence number, int64 variable.
        function: The `tf.function`.
    """

    def __init__(
        self, tables: Sequence[tf.Variable], dense: Sequence[tf.Variable]
    ) -> None:
        super().__init__(name="updates")
        self.sequence = tf.Variable(0, trainable=False, dtype=tf.int64, name=SEQUENCE)
        self.function = self._make(list(tables), list(dense))

    def _make(
        self, tables: list[tf.Variable], dense: list[tf.Variable]
    ) -> Callable[..., Any]:
        specs = [
            tf.TensorSpec((), tf.int64, "from_sequence"),
            tf.TensorSpec((), tf.int64, "to_sequence"),
        ]
        for i, table in enumerate(tables):
            specs.append(tf.TensorSpec((None,), tf.int64, f"rows_{i}"))
            shape = (None, *table.shape[1:])
            specs.append(tf.TensorSpec(shape, table.dtype, f"values_{i}"))
        for j, weight in enumerate(dense):
            specs.append(tf.TensorSpec(weight.shape, weight.dtype, f"dense_{j}"))

        def apply_delta(*inputs: tf.Tensor) -> dict[str, tf.Tensor]:
            expected, following, *rest = inputs
            pairs = list(
                zip(rest[: 2 * len(tables) : 2], rest[1 : 2 * len(tables) : 2])
            )
            now = self.sequence.read_value()
            checks = [
                tf.debugging.Assert(
                    tf.equal(now, expected),
                    [
                        "The delta follows sequence",
                        expected,
                        "but the model is at",
                        now,
                    ],
                )
            ]
            for table, (rows, values) in zip(tables, pairs):
                fits = tf.reduce_all((rows >= 0) & (rows < table.shape[0]))
                fits &= tf.equal(tf.shape(rows)[0], tf.shape(values)[0])
                message = "Row numbers are out of range, or rows and values differ."
                checks.append(tf.debugging.Assert(fits, [message]))
            with tf.control_dependencies(checks):
                changes = [
                    tf.raw_ops.ResourceScatterUpdate(
                        resource=table.handle, indices=rows, updates=values
                    )
                    for table, (rows, values) in zip(tables, pairs)
                ]
                changes += [
                    weight.assign(value, read_value=False)
                    for weight, value in zip(dense, rest[2 * len(tables) :])
                ]
            with tf.control_dependencies(changes):
                self.sequence.assign(following)
                return {SEQUENCE: tf.identity(following)}

        function: Callable[..., Any] = tf.function(
            apply_delta, input_signature=specs, autograph=False
        )
        return function
