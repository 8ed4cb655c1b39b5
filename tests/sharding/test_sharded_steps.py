"""A sharded collection on some devices equals a plain one, by weights.

Every placement, form of ids, optimizer and widths is a case, with tables of every
combiner side by side. The full product is slow; the integration tier has a set of cases
in which every two values of different factors meet.
"""

import dataclasses
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices

import tf_dlrm
from tf_dlrm import optimizers
from tf_dlrm.embedding.recording import recorded
from tf_dlrm.runtime import replicas, xla

COMBINERS = ("sum", "mean", "sqrtn")
SIZES = (11, 50, 7, 101, 3) * len(COMBINERS)  # of the tables of each combiner
WIDTHS = {"equal": (8,) * 5, "different": (8, 12, 8, 4, 12)}
BATCH_SIZES = (10, 7, 2, 16, 1)  # 2 and 1 leave replicas without a row
PLANS = ("table_wise", "row_wise", "column_wise", "data_parallel", "auto", "mixed")
FACTORS = (
    PLANS,
    ("one_hot", "padded", "ragged"),
    ("sgd", "adagrad", "row_wise_adagrad", "adam", "ftrl", "dense_adam", "dense_sgd"),
    ("equal", "different"),
)
NUM_DEVICES = (2, 4, 8, 1)


def pairwise(factors):
    """Few combinations in which every two values of different factors meet."""
    combinations = [
        (values, set(itertools.combinations(enumerate(values), 2)))
        for values in itertools.product(*factors)
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


def optimizer_of(name):
    if name == "dense_sgd":  # which moves all rows only with a penalty
        return optimizers.DenseSGD(None, l2=0.5)
    if name == "sgd_l2":
        return optimizers.SparseSGD(None, l2=0.5)
    if name == "dense_adam":
        return optimizers.DenseAdam(None, epsilon=1e-3, l2=0.5)
    return optimizers.get(name)


def check(num_devices, plan, form, name, widths, compiled=False, seed=7):
    """Runs where there are the devices; compiling takes most of the time."""
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": not compiled}
    )
    with xla.disabled(not compiled):
        check_steps(num_devices, plan, form, name, widths, compiled, seed)


def check_steps(num_devices, plan, form, name, widths, compiled, seed):
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(num_devices)])
    tables = make_tables(widths)
    if name == "sgd_l2":  # and with a penalty on the rows of the batch
        l2 = keras.regularizers.L2(0.1)
        tables = [dataclasses.replace(table, regularizer=l2) for table in tables]
    if plan == "mixed":
        plan = dict(zip((t.name for t in tables), itertools.cycle(PLANS[:5])))
    make = lambda: optimizer_of(name)  # noqa: E731
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
            with recorded(sharded) as recording:
                pooled = sharded(own_ids, own_weights)
            sharded.apply_gradients(gradients_of(pooled), own_ids, own_weights, 0.1)
            return [pooled, *recording.losses]

        return strategy.run(in_replica)

    rng = np.random.default_rng(seed)
    for size in BATCH_SIZES:
        ids, weights = make_batch(rng, form, size)
        batch = (ids,) if weights is None else (ids, weights)
        got = map(strategy.experimental_local_results, tf.nest.flatten(step(*batch)))
        expected = plain(ids, weights)
        penalties = [] if (penalty := plain.penalty([ids])) is None else [penalty]
        plain.apply_gradients(gradients_of(expected), ids, weights, 0.1)
        for y, parts in zip(tf.nest.flatten([expected, penalties]), got, strict=True):
            if len(y.shape):
                np.testing.assert_allclose(tf.concat(parts, 0), y, atol=1e-6)
            else:  # the penalty on the rows of all replicas
                np.testing.assert_allclose(parts, [y] * len(parts), rtol=1e-5)
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


PAIRWISE = pairwise((NUM_DEVICES, *FACTORS))
PRODUCT = list(itertools.product(NUM_DEVICES, *FACTORS))
NAMES = "num_devices, plan, form, name, widths"


def ids_of(cases):
    return ["-".join(map(str, case)) for case in cases]


@pytest.mark.breadth(1, 6)
@pytest.mark.parametrize(NAMES, PAIRWISE, ids=ids_of(PAIRWISE))
def test_steps_equal_those_of_one_device(num_devices, plan, form, name, widths):
    on_devices(num_devices)(check)(num_devices, plan, form, name, widths)


@pytest.mark.parametrize(
    NAMES,
    [
        (2, "mixed", "ragged", "dense_adam", "different"),
        pytest.param(
            *(2, "mixed", "padded", "sgd_l2", "different"),
            marks=pytest.mark.integration,
        ),
        pytest.param(
            *(2, "mixed", "padded", "dense_sgd", "equal"), marks=pytest.mark.integration
        ),
    ],
    ids=["adam", "lazy", "sgd"],
)
def test_decay_of_all_rows_equals_that_of_one_device(
    num_devices, plan, form, name, widths
):
    """On every placement at once, whose shards are uneven."""
    on_devices(num_devices)(check)(num_devices, plan, form, name, widths)


@pytest.mark.integration
def test_compiled_steps_equal_those_of_one_device():
    """In the smallest case; the others are slow."""
    case = (2, "table_wise", "one_hot", "sgd", "equal")
    on_devices(2)(check)(*case, compiled=True)


@pytest.mark.slow
@pytest.mark.parametrize(NAMES, PRODUCT, ids=ids_of(PRODUCT))
def test_all_steps_equal_those_of_one_device(num_devices, plan, form, name, widths):
    case = (num_devices, plan, form, name, widths)
    number = PRODUCT.index(case)
    on_devices(num_devices)(check)(*case, number % 10 == 0, number)
