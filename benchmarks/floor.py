"""The least that a training step can take here: its products and its random rows.

    python benchmarks/floor.py --workload kaggle --batch-size 2048

Measures each matrix product of the MLPs and the interaction on its own (forward, and
the two of the gradient), and the rates of reading and changing random rows in a table
of this size, and adds them up. Elementwise work, biases and the optimizer of the MLPs
are left out, so no step can reach the sum.
"""

import argparse
import json
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

from pipelines.benchmark.workloads import WORKLOADS
from tf_dlrm.runtime import huge_pages

REPEATS = 30


def seconds(function) -> float:
    """Median time of a compiled call, without that of calling."""
    for _ in range(5):
        function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
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
    idle = seconds(tf.function(lambda: tf.constant(0)))
    result = {}
    for name, (size, dim), passes_on in products(workload, batch_size):
        x = tf.cast(tf.random.normal((batch_size, size)), dtype)
        w = tf.cast(tf.random.normal((size, dim)), dtype)
        g = tf.cast(tf.random.normal((batch_size, dim)), dtype)
        calls = [
            tf.function(lambda x=x, w=w: tf.matmul(x, w)),
            tf.function(lambda x=x, g=g: tf.matmul(x, g, transpose_a=True)),
        ]
        if passes_on:
            calls.append(
                tf.function(lambda g=g, w=w: tf.matmul(g, w, transpose_b=True))
            )
        result[name] = sum(max(seconds(call) - idle, 0.0) for call in calls)
    vectors = (batch_size, len(workload.table_sizes) + 1, workload.embedding_dim)
    z = tf.cast(tf.random.normal(vectors), dtype)
    gram = tf.function(lambda: tf.matmul(z, z, transpose_b=True))
    # The gradient is one product of the same size.
    result["interaction"] = 2 * max(seconds(gram) - idle, 0.0)
    return result


def row_seconds(workload, batch_size) -> dict[str, float]:
    """Time of reading and of adding to as many random rows as a batch has ids."""
    shape = (sum(workload.table_sizes), workload.embedding_dim)
    table = tf.Variable(tf.zeros(shape))
    huge_pages.use_for(table)
    mean_hotness = (workload.max_hotness + 1) / 2
    num_rows = int(batch_size * len(workload.table_sizes) * mean_hotness)
    rows = [
        tf.random.uniform((num_rows,), 0, shape[0], tf.int32) for _ in range(REPEATS)
    ]
    updates = tf.random.normal((min(num_rows, 1 << 16), shape[1]))

    @tf.function(jit_compile=True)
    def read(rows):
        return tf.reduce_sum(tf.gather(table, rows), axis=0)

    @tf.function(jit_compile=True)
    def change(rows):
        for start in range(0, num_rows, len(updates)):
            some = rows[start : start + len(updates)]
            table.scatter_add(tf.IndexedSlices(updates[: some.shape[0]], some))

    turn = iter(range(10**9))
    return {
        "read rows": seconds(lambda: read(rows[next(turn) % REPEATS])),
        "change rows": seconds(lambda: change(rows[next(turn) % REPEATS])),
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
