"""The model and its training against a float64 DLRM written by hand in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.oracle import NumpyDLRM, adagrad, sgd

import tf_dlrm

pytestmark = pytest.mark.engines

SIZES, COMBINERS, WIDTH, NUM_DENSE = (
    (11, 7, 1, 23),
    ("sum", "mean", "sum", "sqrtn"),
    4,
    3,
)


def make_model(self_interaction=False, **kwargs):
    """Four tables, one of one row, one read by two features: five features."""
    tables = [
        tf_dlrm.EmbeddingTable(
            f"t{i}", size, WIDTH, combiner, features=("a", "b") if i == 1 else None
        )
        for i, (size, combiner) in enumerate(zip(SIZES, COMBINERS))
    ]
    spec = tf_dlrm.FeatureSpec([f"d{i}" for i in range(NUM_DENSE)], tables)
    model = tf_dlrm.DLRM(
        spec, (8, WIDTH), (6, 5, 1), self_interaction=self_interaction, **kwargs
    )
    rng = np.random.default_rng(3)
    for name, size in zip(model.embedding.get_state()["slots"], SIZES):
        # Larger than the paper's start, so that a wrong row shows.
        rows = rng.normal(size=(size, WIDTH)).astype("float32")
        model.embedding.set_table(name, rows)
    return model


def make_oracle(model, self_interaction=False):
    def weights(mlp):
        return [(d.kernel.numpy(), d.bias.numpy()) for d in mlp.dense_layers]

    return NumpyDLRM(
        [model.embedding.get_table(f"t{i}") for i in range(len(SIZES))],
        COMBINERS,
        [0, 1, 1, 2, 3],
        weights(model.bottom_mlp),
        weights(model.top_mlp),
        self_interaction,
    )


def make_rows(num_rows, seed, weighted=False):
    """Ragged rows with empty bags and repeated ids, as lists."""
    rng = np.random.default_rng(seed)
    sizes = [SIZES[t] for t in (0, 1, 1, 2, 3)]
    bags = [
        [list(rng.integers(0, size, rng.integers(0, 5))) for size in sizes]
        for _ in range(num_rows)
    ]
    bags[0][0] = [2, 2, 2]
    bags[-1] = [[] for _ in sizes]
    weights = None
    if weighted:
        weights = [[list(rng.normal(1, 0.5, len(bag))) for bag in row] for row in bags]
        bags[1][3], weights[1][3] = [0, 0], [0.0, 0.0]  # a weight sum of zero
    dense = rng.normal(size=(num_rows, NUM_DENSE)).astype("float32")
    label = (rng.random(num_rows) < 0.4).astype("float32")
    return dense, bags, weights, label


def ragged(lists, dtype):
    flat = [value for row in lists for bag in row for value in bag]
    lengths = [len(bag) for row in lists for bag in row]
    bags = tf.RaggedTensor.from_row_lengths(
        tf.constant(flat, dtype), tf.constant(lengths, tf.int64)
    )
    return tf.RaggedTensor.from_uniform_row_length(bags, len(lists[0]))


def features_of(dense, bags, weights):
    features = {"dense_features": dense, "sparse_features": ragged(bags, tf.int64)}
    if weights is not None:
        features["sparse_weights"] = ragged(weights, tf.float32)
    return features


def model_parameters(model):
    values = [model.embedding.get_table(f"t{i}") for i in range(len(SIZES))]
    for mlp in (model.bottom_mlp, model.top_mlp):
        for layer in mlp.dense_layers:
            values += [layer.kernel.numpy(), layer.bias.numpy()]
    return values


@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("self_interaction", [False, True], ids=["strict", "diagonal"])
def test_forward_equals_numpy(self_interaction, weighted):
    model = make_model(self_interaction)
    dense, bags, weights, _ = make_rows(17, seed=1, weighted=weighted)
    expected = make_oracle(model, self_interaction).forward(dense, bags, weights)
    features = features_of(dense, bags, weights)
    # float32 sums of a few terms of size 1: 1e-6 each.
    np.testing.assert_allclose(model(features), expected, atol=1e-5)
    np.testing.assert_allclose(
        model.predict(tf.data.Dataset.from_tensors(features), verbose=0),
        expected,
        atol=1e-5,
    )


@pytest.mark.breadth(2, 3)
@pytest.mark.parametrize("mode", ["graph", "eager", "xla", "several_steps"])
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
@pytest.mark.parametrize("weighted", [False, True], ids=["unweighted", "weighted"])
def test_weights_after_three_steps_equal_numpy(optimizer, mode, weighted):
    """Two full batches and an uneven last one, by `fit` on a dataset."""
    model = make_model()
    oracle = make_oracle(model)
    options = {
        "graph": {},
        "eager": {"run_eagerly": True},
        "xla": {"jit_compile": True},
        "several_steps": {"steps_per_execution": 3},
    }[mode]
    keras_optimizer, update = {
        "sgd": (keras.optimizers.SGD(0.5), sgd(0.5)),
        "adagrad": (keras.optimizers.Adagrad(0.3), adagrad(0.3)),
    }[optimizer]
    model.compile(keras_optimizer, "binary_crossentropy", **options)
    batches = [make_rows(n, seed, weighted) for seed, n in enumerate((8, 8, 5))]
    dense = np.concatenate([batch[0] for batch in batches])
    bags = [row for batch in batches for row in batch[1]]
    weights = [row for b in batches for row in b[2]] if weighted else None
    label = np.concatenate([batch[3] for batch in batches])
    dataset = tf.data.Dataset.from_tensor_slices(
        (features_of(dense, bags, weights), label)
    ).batch(8)
    model.fit(dataset, verbose=0, shuffle=False)
    for dense, bags, weights, label in batches:
        oracle.step(update, dense, bags, label, weights)
    assert int(model.optimizer.iterations) == 3
    for got, expected in zip(model_parameters(model), oracle.parameters()):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_sample_and_class_weights_equal_numpy():
    dense, bags, _, label = make_rows(9, seed=5)
    sample_weight = np.linspace(0.1, 2.0, 9).astype("float32")
    class_weight = {0: 0.5, 1: 3.0}
    by_class = np.where(label == 1, 3.0, 0.5)
    features = features_of(dense, bags, None)
    cases = [
        ({"sample_weight": sample_weight}, sample_weight),
        ({"class_weight": class_weight}, by_class),
    ]
    for arguments, row_scale in cases:
        model = make_model()
        oracle = make_oracle(model)
        model.compile("sgd", "binary_crossentropy")
        model.train_on_batch(features, label, **arguments)
        oracle.step(sgd(0.01), dense, bags, label, row_scale=row_scale)
        for got, expected in zip(model_parameters(model), oracle.parameters()):
            np.testing.assert_allclose(got, expected, atol=1e-5)


def test_one_hot_and_padded_forms_equal_ragged():
    model = make_model()
    rng = np.random.default_rng(0)
    sizes = [SIZES[t] for t in (0, 1, 1, 2, 3)]
    one_hot = np.stack([rng.integers(-1, size, 12) for size in sizes], axis=1)
    bags = [[[i] if i >= 0 else [] for i in row] for row in one_hot.tolist()]
    padded = np.full((12, 5, 3), -1)
    padded[:, :, 1] = one_hot  # the padding may stand anywhere
    dense = rng.normal(size=(12, NUM_DENSE)).astype("float32")
    names = model.spec.sparse_features
    columns = {n: one_hot[:, i] for i, n in enumerate(names)}
    columns |= {f"d{i}": dense[:, i] for i in range(NUM_DENSE)}
    expected = make_oracle(model).forward(dense, bags)
    forms = [
        {"dense_features": dense, "sparse_features": one_hot},
        {"dense_features": dense, "sparse_features": one_hot.astype("int32")},
        {"dense_features": dense, "sparse_features": padded},
        {"dense_features": dense, "sparse_features": ragged(bags, tf.int64)},
        columns,
        columns | {names[2]: tf.ragged.constant([row[2] for row in bags], tf.int64)},
        columns | {names[2]: padded[:, 2], names[0]: one_hot[:, :1]},
    ]
    for features in forms:
        np.testing.assert_allclose(model(features), expected, atol=1e-5)


@pytest.mark.breadth(1, 3)
@pytest.mark.parametrize("form", ["one_hot", "padded", "ragged"])
def test_missing_ids_leave_the_tables_alone(form):
    """Gradients of missing ids go nowhere, and what they read stays zeros."""
    model = make_model()
    model.compile("adagrad", "binary_crossentropy")
    before = model_parameters(model)[: len(SIZES)]
    ids = {
        "one_hot": np.full((6, 5), -1),
        "padded": np.full((6, 5, 2), -1),
        "ragged": ragged([[[]] * 5] * 6, tf.int64),
    }[form]
    features = {
        "dense_features": np.ones((6, NUM_DENSE), "float32"),
        "sparse_features": ids,
    }
    for _ in range(3):
        model.train_on_batch(features, np.ones(6))
    for got, expected in zip(model_parameters(model), before):
        np.testing.assert_array_equal(got, expected)
    pooled = model.embedding(ids)
    np.testing.assert_array_equal(pooled, np.zeros((6, 5, WIDTH)))


@pytest.mark.breadth(1, 4)
@pytest.mark.parametrize("mode", ["graph", "eager", "xla"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_trains_out_of_saturation(mode, policy):
    """At logits of +-40 the float32 probability is 0 or 1: the gradient is not."""
    spec = tf_dlrm.FeatureSpec(("d",), (tf_dlrm.EmbeddingTable("t", 2, 4),))
    model = tf_dlrm.DLRM(spec, (4,), (1,), dtype=policy)
    head = model.top_mlp.dense_layers[-1]
    for sign in (40.0, -40.0):
        head.kernel.assign(np.zeros(head.kernel.shape))
        head.bias.assign([sign])
        model.compile(
            keras.optimizers.SGD(1.0),
            "binary_crossentropy",
            jit_compile=mode == "xla",
            run_eagerly=mode == "eager",
        )
        features = {
            "dense_features": np.zeros((4, 1), "float32"),
            "sparse_features": np.zeros((4, 1), "int64"),
        }
        label = np.full(4, 0.0 if sign > 0 else 1.0)
        loss = model.train_on_batch(features, label)
        # d loss / d bias is p - y = +-1 where the truth is the other class.
        np.testing.assert_allclose(head.bias.numpy(), [sign - np.sign(sign)], atol=1e-3)
        np.testing.assert_allclose(loss, 40.0, atol=1e-3)


@pytest.mark.integration
def test_iterations_count_steps_on_datasets_of_unknown_length():
    """Keras alone counts one more at the end of each epoch."""
    model = make_model()
    model.compile("adam", "binary_crossentropy")
    dense, bags, _, label = make_rows(20, seed=2)
    dataset = tf.data.Dataset.from_tensor_slices(
        (features_of(dense, bags, None), label)
    )
    dataset = dataset.batch(4).filter(lambda x, y: True)
    assert dataset.cardinality() == tf.data.UNKNOWN_CARDINALITY
    model.fit(dataset, epochs=3, verbose=0, shuffle=False)
    assert int(model.optimizer.iterations) == 15
    assert int(model.embedding.iterations) == 15
