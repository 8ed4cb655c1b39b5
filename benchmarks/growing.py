"""Growing tables: cost of a step, in any capacity, shared rows by load, and a soak.

    python benchmarks/growing.py cost capacity shared soak --out results/growing.json

cost: a step of `fit` in the shape of Criteo Kaggle, with growing tables at a load of
0.7 and with static tables of the same ids, in turns. capacity: the time to find the
ids of a batch, and with 1 % new ones, by the number of slots. shared: the share of ids
that find no slot, by load. soak: 10,000 steps in which ids come and go.
"""

import argparse
import json
import os
import platform
import resource
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

import tf_dlrm
from pipelines.synthetic import Planted
from tf_dlrm import EmbeddingTable, GrowingIds

SIZES = Planted().vocabulary_sizes
BATCH_SIZE, NUM_DENSE, WIDTH = 2048, 13, 16
LOAD = 0.7


def make_ids(rng, size, shape):
    """Ids by rank, with a Zipf exponent near 1.1, as in Criteo's logs."""
    u = rng.random(shape)
    return np.minimum(size - 1, (size + 1.0) ** (u**1.5) - 1).astype(np.int64)


def make_model(growing):
    tables = []
    for number, size in enumerate(SIZES):
        rules = GrowingIds(fallback="none") if growing else None
        rows = int(size / LOAD) + 1 if growing else size
        tables.append(EmbeddingTable(f"C{number}", rows, WIDTH, growing=rules))
    spec = tf_dlrm.FeatureSpec([f"I{i}" for i in range(NUM_DENSE)], tables)
    model = tf_dlrm.DLRM(spec, (512, 256, 64, WIDTH), (512, 256, 1))
    model.compile("adagrad", "binary_crossentropy")
    return model


def fill(layer):
    """Let all ids claim rows, by rank: frequent ids come first, as in a log."""
    claim = tf.function(layer.claim, reduce_retracing=True)
    sizes = np.array(SIZES)
    for first in range(0, max(SIZES), 20_000):
        ids = np.arange(first, first + 20_000)[:, None].repeat(len(SIZES), axis=1)
        claim(np.where(ids < sizes, ids, -1))


def measure_cost():
    """Milliseconds of a step, static and growing; medians of alternating rounds.

    CPU time depends less on other work of the machine.
    """
    rng = np.random.default_rng(0)
    num_rows = 40 * BATCH_SIZE
    ids = np.stack([make_ids(rng, size, num_rows) for size in SIZES], axis=1)
    features = {
        "dense_features": rng.random((num_rows, NUM_DENSE), dtype=np.float32),
        "sparse_features": ids,
    }
    label = (rng.random(num_rows) < 0.25).astype(np.float32)
    data = tf.data.Dataset.from_tensor_slices((features, label))
    data = data.batch(BATCH_SIZE, drop_remainder=True).cache().prefetch(4)
    models = {"static": make_model(False), "growing": make_model(True)}
    layer = models["growing"].embedding
    fill(layer)
    times = {name: [] for name in models}
    for turn in range(9):
        for name, model in models.items():
            start, of_cpu = time.perf_counter(), time.process_time()
            model.fit(data, verbose=0)
            spent = time.perf_counter() - start, time.process_time() - of_cpu
            if turn:  # the first one traces
                times[name].append([seconds / 40 * 1e3 for seconds in spent])
    seen = [layer.occupancy(f"C{number}") for number in range(len(SIZES))]
    load = sum(s.num_ids for s in seen) / sum(s.num_slots for s in seen)
    wall, cpu = (
        {name: float(np.median([t[i] for t in own])) for name, own in times.items()}
        for i in range(2)
    )
    return {
        "load": load,
        "wall_ms": wall,
        "cpu_ms": cpu,
        "wall_ratio": wall["growing"] / wall["static"],
        "cpu_ratio": cpu["growing"] / cpu["static"],
    }


def measure_capacity(largest):
    """Milliseconds to find 53,248 ids, and to let 1 % new ones claim rows."""
    results = []
    rng = np.random.default_rng(0)
    for power in range(5, int(np.log10(largest)) + 1):
        slots = 10**power
        rules = GrowingIds(fallback="none")
        table = EmbeddingTable("a", slots, 1, growing=rules)
        layer = tf_dlrm.layers.EmbeddingCollection([table])
        num_ids = int(LOAD * slots)
        layer.set_rows("a", np.arange(num_ids), np.zeros((num_ids, 1), np.float32))
        count = BATCH_SIZE * len(SIZES)
        claim = tf.function(layer.claim, reduce_retracing=True)
        find = tf.function(layer.translate, reduce_retracing=True)
        own = {"find_ms": [], "claim_ms": []}
        for turn in range(12):
            ids = rng.integers(0, num_ids, (count, 1))
            for name, call in (("find_ms", find), ("claim_ms", claim)):
                if name == "claim_ms":
                    new = rng.integers(1 << 40, 1 << 62, count // 100)
                    ids[: len(new), 0] = new
                tensor = tf.constant(ids)
                start = time.perf_counter()
                call(tensor).numpy()
                if turn >= 2:
                    own[name].append((time.perf_counter() - start) * 1e3)
        results.append({"slots": slots, **{k: min(v) for k, v in own.items()}})
        del layer, claim, find
    return results


def measure_shared():
    """Share of distinct ids that find no slot, by load, without eviction."""
    results = []
    for load in (0.5, 0.7, 0.9, 0.95, 1.0):
        table = EmbeddingTable("a", 1_000_000, 1, growing=GrowingIds(evict=None))
        layer = tf_dlrm.layers.EmbeddingCollection([table])
        num_slots = layer.occupancy("a").num_slots
        claim = tf.function(layer.claim, reduce_retracing=True)
        ids = np.random.default_rng(0).integers(0, 1 << 62, int(load * num_slots))
        for first in range(0, len(ids), 50_000):
            claim(ids[first : first + 50_000, None])
        seen = layer.occupancy("a")
        missing = 1 - seen.num_ids / len(np.unique(ids))
        results.append({"load": load, "share": missing, "probes": seen.mean_probes})
    return results


def memory_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def measure_soak(num_steps):
    """Resident memory while ids come and go: a new tenth of the ids in 1,000 steps."""
    rules = GrowingIds(min_count=2, evict="lru")
    tables = [EmbeddingTable(f"C{i}", 20_000, WIDTH, growing=rules) for i in range(4)]
    spec = tf_dlrm.FeatureSpec(("x",), tables)
    model = tf_dlrm.DLRM(spec, (16, WIDTH), (16, 1))
    model.compile("adagrad", "binary_crossentropy")
    rng, used = np.random.default_rng(0), []
    dense = np.zeros((256, 1), np.float32)
    for step in range(num_steps):
        ids = make_ids(rng, 30_000, (256, 4)) * 10 + step // 1000
        features = {"dense_features": dense, "sparse_features": ids}
        label = (rng.random(256) < 0.3).astype(np.float32)
        model.train_on_batch(features, label)
        if (step + 1) % (num_steps // 10) == 0:
            used.append(memory_bytes() >> 20)
    seen = model.embedding.occupancy("C0")
    facts = {"claims": seen.claims, "evictions": seen.evictions, "load": seen.load}
    return {"steps": num_steps, "resident_mib": used, **facts}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="+")
    parser.add_argument("--largest", type=float, default=1e8)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--out")
    options = parser.parse_args()
    parts = {
        "cost": measure_cost,
        "capacity": lambda: measure_capacity(options.largest),
        "shared": measure_shared,
        "soak": lambda: measure_soak(options.steps),
    }
    results = {"machine": platform.processor() or platform.machine()}
    for name in options.parts:
        results[name] = parts[name]()
        print(json.dumps({name: results[name]}, indent=1), flush=True)
    if options.out:
        with open(options.out, "w") as file:
            json.dump(results, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
