"""The least that a training step can take here: its products and its random rows.

    python benchmarks/floor.py --workload kaggle --batch-size 2048

Measures each matrix product of the MLPs and the interaction on its own (forward, and
the two of the gradient), and how long it takes to read and to change random rows in a
table of this size, and adds up the times. Each part is measured with TensorFlow's
operations and under XLA, and the faster one counts. Elementwise work, biases and the
optimizer of the MLPs are left out, so no step can reach the sum.
"""

import argparse
import itertools
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from pipelines.benchmark.workloads import WORKLOADS
from tf_dlrm.runtime import huge_pages

REPEATS = 30


def fastest(function, arguments) -> float:
    """Median time of a call, by TensorFlow's operations or under XLA.

    Args:
        function: A function of tensors.
        arguments: Lists of its arguments, taken in turn.
    """
    return min(
        seconds(tf.function(function, jit_compile=jit, autograph=False), arguments)
        for jit in (False, True)
    )


def seconds(function, arguments) -> float:
    """Median time of a call."""
    turn = itertools.cycle(arguments)
    for _ in range(5):
        function(*next(turn))
    times = []
    for _ in range(REPEATS):
        inputs = next(turn)
        start = time.perf_counter()
        function(*inputs)
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def products(workload, batch_size):
    """Name and shape of the matrix products of a step: (batch, inputs, outputs)."""
    num_vectors = len(workload.table_sizes) + 1
    width = workload.embedding_dim
    size = workload.num_dense
    for i, dim in enumerate(workload.bottom_mlp_dims):
        yield f"bottom {i}", (size, dim), i > 0
        size = dim
    size = width + num_vectors * (num_vectors - 1) // 2
    for i, dim in enumerate(workload.top_mlp_dims):
        yield f"top {i}", (size, dim), True
        size = dim


def product_seconds(workload, batch_size, dtype) -> dict[str, float]:
    """Time of the products of each layer, those of its gradient included."""
    idle = fastest(tf.identity, [(tf.constant(0),)])
    result = {}
    for name, (size, dim), passes_on in products(workload, batch_size):
        x = tf.cast(tf.random.normal((batch_size, size)), dtype)
        w = tf.cast(tf.random.normal((size, dim)), dtype)
        g = tf.cast(tf.random.normal((batch_size, dim)), dtype)
        calls = [(tf.matmul, x, w), (_product_ta, x, g)]
        if passes_on:
            calls.append((_product_tb, g, w))
        times = [fastest(call, [inputs]) for call, *inputs in calls]
        result[name] = sum(max(each - idle, 0.0) for each in times)
    vectors = (batch_size, len(workload.table_sizes) + 1, workload.embedding_dim)
    z = tf.cast(tf.random.normal(vectors), dtype)
    # The gradient is one product of the same size.
    result["interaction"] = 2 * max(fastest(_product_tb, [(z, z)]) - idle, 0.0)
    return result


def _product_ta(a, b):
    return tf.matmul(a, b, transpose_a=True)


def _product_tb(a, b):
    return tf.matmul(a, b, transpose_b=True)


def row_seconds(workload, batch_size) -> dict[str, float]:
    """Time of reading and of adding to as many random rows as a batch has ids."""
    shape = (sum(workload.table_sizes), workload.embedding_dim)
    table = tf.Variable(tf.zeros(shape))
    huge_pages.use_for(table)
    mean_hotness = (workload.max_hotness + 1) / 2
    num_rows = int(batch_size * len(workload.table_sizes) * mean_hotness)
    piece = min(num_rows, 1 << 14)
    num_pieces = num_rows // piece
    rows = [
        (tf.random.uniform((num_pieces, piece), 0, shape[0], tf.int32),)
        for _ in range(REPEATS)
    ]
    updates = tf.random.normal((piece, shape[1]))

    def read(rows):
        total = tf.zeros(())
        for some in tf.unstack(rows):  # pieces that stay in the cache
            total += tf.reduce_sum(tf.gather(table, some))
        return total

    def change(rows):
        for some in tf.unstack(rows):
            table.scatter_add(tf.IndexedSlices(updates, some))

    whole = num_rows / (num_pieces * piece)
    return {
        "read rows": whole * fastest(read, rows),
        "change rows": whole * fastest(change, rows),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="kaggle", choices=sorted(WORKLOADS))
    parser.add_argument("--batch-size", type=int, default=2048)
    options = parser.parse_args()
    workload = WORKLOADS[options.workload]
    rows = row_seconds(workload, options.batch_size)
    for dtype in (tf.float32, tf.bfloat16):
        parts = product_seconds(workload, options.batch_size, dtype) | rows
        total = sum(parts.values())
        print(f"{dtype.name}: {total * 1e3:.2f} ms, ", end="")
        print(f"{options.batch_size / total:,.0f} rows/s")
        print(json.dumps({k: round(v * 1e3, 3) for k, v in parts.items()}))


if __name__ == "__main__":
    main()
