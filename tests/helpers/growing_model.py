"""A small DLRM with growing tables beside a plain one, and data for it."""

import keras
import numpy as np
import tensorflow as tf

import tf_dlrm
from tf_dlrm import EmbeddingTable, GrowingIds

RULES = {
    "lru": GrowingIds(max_probes=8),
    "lfu": GrowingIds(max_probes=8, evict="lfu", fallback="none"),
    "counts": GrowingIds(max_probes=16, min_count=2, expire_after_steps=3),
    "sketch": GrowingIds(min_count=2, admission="sketch"),
}
PLAIN = 20
LARGEST = 2**63 - 1


def make_tables(num_rows=70, width=8, names=tuple(RULES), **options):
    growing = [
        EmbeddingTable(name, num_rows, width, growing=RULES[name], **options)
        for name in names
    ]
    two = EmbeddingTable(
        "two", num_rows, width, "mean", features=("a", "b"), growing=GrowingIds()
    )
    return (*growing, EmbeddingTable("plain", PLAIN, width), two)


def make_data(num_rows, batch_size, form="one_hot", seed=0, first=0):
    """Batches with new ids in each; the last column but two is the plain table's."""
    rng = np.random.default_rng(seed)
    shape = (num_rows, len(RULES) + 3, *(() if form == "one_hot" else (3,)))
    drift = (first + np.arange(num_rows)).reshape(-1, *[1] * (len(shape) - 1)) // 2
    ids = (rng.random(shape) ** 3 * 300).astype(np.int64) + drift
    ids[:, : len(RULES)] = ids[:, : len(RULES)] * 0x2545F4914F6CDD1D & LARGEST
    ids[:, len(RULES)] %= PLAIN
    ids[rng.random(shape) < 0.1] = -1
    if form == "ragged":
        bags = tf.RaggedTensor.from_tensor(ids.reshape(-1, 3))
        bags = tf.ragged.boolean_mask(bags, bags >= 0)
        ids = tf.RaggedTensor.from_uniform_row_length(bags, shape[1])
    features = {
        "dense_features": rng.random((num_rows, 2)).astype("float32"),
        "sparse_features": ids,
    }
    label = rng.integers(0, 2, num_rows).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((features, label))
    return data.batch(batch_size)


def make_model(optimizer="adagrad", tables=None, plan=None, seed=1, **options):
    keras.utils.set_random_seed(seed)
    spec = tf_dlrm.FeatureSpec(("x", "y"), tables or make_tables())
    embedding = tf_dlrm.layers.EmbeddingCollection(spec.tables, seed=1)
    if plan is not None:
        embedding = tf_dlrm.sharding.ShardedEmbeddingCollection(
            spec.tables, plan, seed=1
        )
    model = tf_dlrm.DLRM(spec, (16, 8), (16, 1), embedding=embedding)
    model.compile(optimizer, jit_compile=options.pop("jit_compile", False), **options)
    return model


def growing_names(model):
    return [t.name for t in model.spec.tables if t.growing is not None]


def compare_ids(one, other):
    for name in growing_names(one):
        a, b = one.embedding, other.embedding
        np.testing.assert_array_equal(a.get_ids(name), b.get_ids(name))
        assert a.occupancy(name) == b.occupancy(name)


def compare(one, other, atol=0.0):
    """Ids are equal; weights and state are within `atol`, also of empty slots."""
    compare_ids(one, other)
    for a, b in zip(one.dense_variables, other.dense_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=0, atol=atol)
    own, others = one.embedding.get_state(), other.embedding.get_state()
    assert own["iterations"] == others["iterations"] > 0
    for table in one.spec.tables:
        name = table.name
        pairs = [(m.embedding.get_table(name)) for m in (one, other)]
        np.testing.assert_allclose(*pairs, rtol=0, atol=atol, err_msg=name)
        for slot, values in own["slots"].get(name, {}).items():
            expected = others["slots"][name][slot]
            np.testing.assert_allclose(values, expected, rtol=0, atol=atol)
