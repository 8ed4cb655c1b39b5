"""A small DLRM with plain or sharded tables, data for it, and how two are compared."""

import functools

import keras
import numpy as np
import tensorflow as tf

import tf_dlrm
from tf_dlrm.sharding import ShardedEmbeddingCollection

SIZES = (11, 50, 7, 101, 3)
TABLES = [tf_dlrm.EmbeddingTable(f"C{i}", n, 8) for i, n in enumerate(SIZES)]
SPEC = tf_dlrm.FeatureSpec(("a", "b"), TABLES)
MIXED = dict(
    zip(
        (table.name for table in TABLES),
        ("table_wise", "row_wise", "column_wise", "data_parallel", "data_parallel"),
    )
)
COPIES = "copies"  # an EmbeddingCollection, which is not sharded


def make_data(form, num_rows, batch_size):
    """Batches whose last one does not divide by the devices."""
    rng = np.random.default_rng(0)
    if form == "one_hot":
        ids = np.stack([rng.integers(-1, n, num_rows) for n in SIZES], 1)
    elif form == "padded":
        ids = np.stack([rng.integers(-1, n, (num_rows, 3)) for n in SIZES], 1)
    else:
        lengths = rng.integers(0, 4, (num_rows, 5))
        values = [
            rng.integers(0, n, lengths[row, i])
            for row in range(num_rows)
            for i, n in enumerate(SIZES)
        ]
        bags = tf.RaggedTensor.from_row_lengths(
            np.concatenate(values), lengths.reshape(-1)
        )
        ids = tf.RaggedTensor.from_uniform_row_length(bags, 5)
    features = {
        "dense_features": rng.random((num_rows, 2)).astype("float32"),
        "sparse_features": ids,
    }
    label = rng.integers(0, 2, num_rows).astype("float32")
    weight = rng.uniform(0.5, 2, num_rows).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((features, label, weight))
    return data.batch(batch_size)


def make_model(optimizer="adagrad", plan=COPIES, **options):
    keras.utils.set_random_seed(1)
    if plan == COPIES:
        embedding = tf_dlrm.layers.EmbeddingCollection(TABLES, seed=1)
    else:
        embedding = ShardedEmbeddingCollection(TABLES, plan, seed=1)
    model = tf_dlrm.DLRM(SPEC, (16, 8), (16, 1), embedding=embedding)
    options = {"jit_compile": False, **options}
    metrics = [tf_dlrm.metrics.ClickAUC(), tf_dlrm.metrics.Calibration()]
    model.compile(optimizer, metrics=metrics, **options)
    return model


@functools.cache  # two strategies of the same devices would mix up their operations
def strategy_of(num_devices, any_number=False):
    """With `any_number` a process may use several numbers of devices.

    Collective operations know one number of devices in a process.
    """
    if num_devices == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(num_devices)],
        tf.distribute.ReductionToOneDevice() if any_number else None,
    )


def compare(one, many, atol=1e-5):
    for a, b in zip(one.dense_variables, many.dense_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=atol, err_msg=a.path)
    for table in TABLES:
        np.testing.assert_allclose(
            one.embedding.get_table(table.name),
            many.embedding.get_table(table.name),
            atol=atol,
            err_msg=table.name,
        )
    a, b = one.embedding.get_state(), many.embedding.get_state()
    assert a["iterations"] == b["iterations"] > 0
    for name, slots in a["slots"].items():
        for slot, values in slots.items():
            np.testing.assert_allclose(b["slots"][name][slot], values, atol=atol)


def check_copies(embedding):
    """All devices have the same copy."""
    if not isinstance(embedding, tf_dlrm.layers.EmbeddingCollection):
        return
    for group in zip(*embedding._store.copies):
        first, *others = [fused.variable.numpy() for fused in group]
        for other in others:
            np.testing.assert_array_equal(other, first)
