"""What the peers' scripts share: the job, random batches, timing, the report.

No TensorFlow and nothing of this repository: peers run in environments of their own.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

LEARNING_RATE = 0.01


def read_job() -> dict:
    """The job that the one argument holds as JSON (`pipelines.benchmark.jobs.Job`)."""
    return json.loads(sys.argv[1])


def make_pool(workload: Mapping, batch_size: int, seed: int = 0) -> list[tuple]:
    """Random batches, to be used again and again.

    Must agree number by number with `pipelines.benchmark.workloads.make_pool`; a test
    compares them.

    Args:
        workload: The fields of a `Workload`.
        batch_size: Rows of a batch.
        seed: Seed of all batches.

    Returns:
        Batches `(dense, label, bags)`: float32 `(B, num_dense)`, float32 `(B, 1)`, and
        for each table `(ids, lengths)`: int32 flat ids, int32 `(B,)` bag lengths.
    """
    generator = np.random.default_rng(seed)
    one_hot = workload["max_hotness"] == 1
    samples = 65_536 if one_hot else 16_384
    pool = []
    for _ in range(max(8, min(512, samples // batch_size))):
        dense = generator.random((batch_size, workload["num_dense"]), dtype=np.float32)
        label = generator.integers(0, 2, (batch_size, 1)).astype(np.float32)
        bags = []
        for rows in workload["table_sizes"]:
            lengths = np.ones(batch_size, np.int32)
            if not one_hot:
                lengths = generator.integers(1, workload["max_hotness"] + 1, batch_size)
                lengths = lengths.astype(np.int32)
            ids = generator.integers(0, rows, int(lengths.sum())).astype(np.int32)
            bags.append((ids, lengths))
        pool.append((dense, label, bags))
    return pool


def time_calls(call: Callable, pool: Sequence, job: Mapping) -> list[float]:
    """Seconds of single calls over the pool, after the warm-up.

    Args:
        call: Takes a batch of the pool, and returns when its work is done.
        pool: Batches.
        job: `warmup_steps`, and `seconds` to measure.
    """
    times, end, i = [], None, 0
    while end is None or time.perf_counter() < end or len(times) < 3:
        start = time.perf_counter()
        call(pool[i % len(pool)])
        if i >= job["warmup_steps"]:
            times.append(time.perf_counter() - start)
            end = end or time.perf_counter() + job["seconds"]
        i += 1
    return times


def report(
    job: Mapping, seconds: Sequence[float], seconds_to_build: float, versions: Mapping
) -> None:
    """Prints the result as one JSON line, with the fields of `tf-dlrm benchmark`."""
    p10, p50, p90, p99 = np.percentile(np.asarray(seconds), (10, 50, 90, 99)) * 1e3
    workload = job["workload"]
    rows = sum(workload["table_sizes"])
    width = workload["embedding_dim"]
    state = {"adagrad": width, "rowwise_adagrad": 1, "adam": 2 * width}
    if job["mode"] != "train":
        state = {}
    result = {
        "workload": workload["name"],
        "mode": job["mode"],
        "batch_size": job["batch_size"],
        "optimizer": job["optimizer"] if job["mode"] == "train" else None,
        "precision": job["precision"],
        "samples_per_s": round(job["batch_size"] / p50 * 1e3, 1),
        "ms_per_step_p50": round(p50, 4),
        "ms_per_step_p10": round(p10, 4),
        "ms_per_step_p90": round(p90, 4),
        "ms_per_step_p99": round(p99, 4),
        "num_steps": len(seconds),
        "seconds_to_build": round(seconds_to_build, 3),
        "peak_rss_mb": round(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1
        ),
        "table_mb": round(4 * rows * width / 2**20, 1),
        "state_mb": round(4 * rows * state.get(job["optimizer"], 0) / 2**20, 1),
        "versions": dict(versions),
    }
    print(json.dumps(result), flush=True)
