"""Runs in a process of its own: `python sharded_cases.py NUM_DEVICES [FIRST STEP]`.

A sharded collection on some devices against a plain one, by weights. Every placement,
form of ids, optimizer and widths is a case, with tables of every combiner side by side:
three combinations of the full product. From case FIRST on, each STEP-th runs; without
them those of a set in which every two values of different factors meet.
"""

import itertools
import os
import sys
import traceback

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import numpy as np
import tensorflow as tf

import tf_dlrm
from tf_dlrm import optimizers
from tf_dlrm.runtime import replicas, xla

COMBINERS = ("sum", "mean", "sqrtn")
SIZES = (11, 50, 7, 101, 3) * len(COMBINERS)  # of the tables of each combiner
WIDTHS = {"equal": (8,) * 5, "different": (8, 12, 8, 4, 12)}
BATCH_SIZES = (10, 7, 2, 16, 1)  # 2 and 1 leave replicas without a row
PLANS = ("table_wise", "row_wise", "column_wise", "data_parallel", "auto", "mixed")
FACTORS = (
    PLANS,
    ("one_hot", "padded", "ragged"),
    ("sgd", "adagrad", "row_wise_adagrad", "adam", "ftrl"),
    ("equal", "different"),
)
CASES = list(itertools.product(*FACTORS))
NUM_DEVICES = (1, 2, 4, 8)


def pairwise(factors):
    """Few combinations in which every two values of different factors meet."""
    combinations = [
        (each, set(itertools.combinations(enumerate(each), 2)))
        for each in itertools.product(*factors)
    ]
    uncovered = set().union(*(pairs for _, pairs in combinations))
    chosen = []
    while uncovered:
        best, pairs = max(combinations, key=lambda c: len(c[1] & uncovered))
        chosen.append(best)
        uncovered -= pairs
    return chosen


def make_tables(widths):
    names = [(c, i) for c in COMBINERS for i in range(len(WIDTHS[widths]))]
    return [
        tf_dlrm.EmbeddingTable(f"{c}_{i}", size, WIDTHS[widths][i], combiner=c)
        for (c, i), size in zip(names, SIZES, strict=True)
    ]


def make_batch(rng, form, size):
    """Ids with repeats, missing ones and empty bags; weights but for one-hot."""
    if form == "one_hot":
        return np.stack([rng.integers(-1, n, size) for n in SIZES], 1), None
    if form == "padded":
        ids = np.stack([rng.integers(-1, n, (size, 4)) for n in SIZES], 1)
        return ids, rng.random(ids.shape).astype("float32")
    lengths = rng.integers(0, 4, (size, len(SIZES)))
    values = [
        rng.integers(0, n, lengths[row, i])
        for row in range(size)
        for i, n in enumerate(SIZES)
    ]
    values = np.concatenate([np.zeros(0, int), *values])
    bags = tf.RaggedTensor.from_row_lengths(values, lengths.reshape(-1))
    ids = tf.RaggedTensor.from_uniform_row_length(bags, len(SIZES), nrows=size)
    weights = tf.constant(rng.random(len(values)), tf.float32)
    return ids, ids.with_flat_values(weights)


def any_rows(value):
    """The type of a batch of any size."""
    spec = tf.type_spec_from_value(value)
    if isinstance(value, tf.RaggedTensor):
        return tf.RaggedTensorSpec([None, len(SIZES), None], value.dtype, 2)
    return tf.TensorSpec([None, *value.shape[1:]], spec.dtype)


def own_part(value):
    """What MirroredStrategy gives this replica: even parts, and a rest maybe empty."""
    if value is None:
        return None
    num_rows = (
        value.nrows()
        if isinstance(value, tf.RaggedTensor)
        else tf.shape(value, tf.int64)[0]
    )
    part = -(-num_rows // replicas.count())
    first = tf.minimum(part * replicas.number(), num_rows)
    return value[first : tf.minimum(first + part, num_rows)]


def run(strategy, case, seed, compiled):
    plan, form, name, widths = case
    tables = make_tables(widths)
    if plan == "mixed":
        plan = dict(zip((t.name for t in tables), itertools.cycle(PLANS[:5])))
    make = lambda: optimizers.get(name)  # noqa: E731
    plain = tf_dlrm.layers.EmbeddingCollection(tables, seed=1)
    plain.build_optimizer(make())
    with strategy.scope():
        sharded = tf_dlrm.sharding.ShardedEmbeddingCollection(tables, plan, seed=1)
        sharded.build_optimizer(make())
    for table in tables:
        name = table.name
        np.testing.assert_array_equal(plain.get_table(name), sharded.get_table(name))

    def gradients_of(pooled):
        return tf.nest.map_structure(lambda y: 2 * tf.cos(y), pooled)

    ids, weights = make_batch(np.random.default_rng(seed), form, 2)

    @tf.function(input_signature=[any_rows(v) for v in (ids, weights) if v is not None])
    def step(ids, weights=None):
        """One trace for all batches: each replica takes its rows of the global one."""

        def in_replica():
            own_ids, own_weights = own_part(ids), own_part(weights)
            with xla.disabled(not compiled):  # a setting of the replica's thread
                pooled = sharded(own_ids, own_weights)
                gradients = gradients_of(pooled)
                sharded.apply_gradients(gradients, own_ids, own_weights, 0.1)
            return pooled

        return strategy.run(in_replica)

    rng = np.random.default_rng(seed)
    for size in BATCH_SIZES:
        ids, weights = make_batch(rng, form, size)
        batch = (ids,) if weights is None else (ids, weights)
        got = map(strategy.experimental_local_results, tf.nest.flatten(step(*batch)))
        expected = plain(ids, weights)
        plain.apply_gradients(gradients_of(expected), ids, weights, 0.1)
        for y, parts_of_y in zip(tf.nest.flatten(expected), got, strict=True):
            np.testing.assert_allclose(tf.concat(parts_of_y, 0), y, atol=1e-6)
    for table in tables:
        name = table.name
        np.testing.assert_allclose(
            sharded.get_table(name), plain.get_table(name), atol=1e-5, err_msg=name
        )
    one, other = plain.get_state(), sharded.get_state()
    assert one["iterations"] == other["iterations"] == len(BATCH_SIZES)
    for name, slots in one["slots"].items():
        for slot, values in slots.items():
            # Where large terms of a sum cancel, their rounding stays.
            atol = max(1e-5, 3e-7 * np.abs(values).max(initial=0))
            np.testing.assert_allclose(
                other["slots"][name][slot], values, rtol=1e-6, atol=atol
            )


def main():
    num_devices, *chosen = map(int, sys.argv[1:])
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(num_devices)])
    is_product = bool(chosen)
    if is_product:
        chosen = CASES[chosen[0] :: chosen[1]]
    else:
        chosen = [c for n, *c in pairwise((NUM_DEVICES, *FACTORS)) if n == num_devices]
    failed = []
    for i, case in enumerate(chosen):
        # Compiling takes most of the time, then Grappler.
        compiled = i % 10 == 0 and (is_product or num_devices == 2)
        tf.config.optimizer.set_experimental_options(
            {"disable_meta_optimizer": not compiled}
        )
        try:
            with xla.disabled(not compiled):
                run(strategy, case, i, compiled)
        except Exception:
            traceback.print_exc()
            failed.append(case)
    if failed:
        sys.exit(f"{num_devices} devices, {len(failed)} of {len(chosen)}: {failed}")
    print(f"{len(chosen)} cases passed")


if __name__ == "__main__":
    main()
