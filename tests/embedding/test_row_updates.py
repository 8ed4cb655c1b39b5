"""The compiled engine: every form of batch, every optimizer, against float64 and
against TensorFlow's own kernels; many values in turns; few programs."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from helpers.optimizer_oracle import CASES

from tf_dlrm import EmbeddingTable, optimizers
from tf_dlrm.embedding.engines import xla_updates
from tf_dlrm.layers import EmbeddingCollection
from tf_dlrm.runtime import compiled_code, xla
from tf_dlrm.runtime import rows as row_ops

pytestmark = pytest.mark.xla

WIDTH = 3
SIZES, COMBINERS = (40, 7, 1), ("sum", "mean", "sqrtn")
FORMS = ["one_hot", "padded", "ragged", "one_hot_weighted", "ragged_weighted"]


def make_layer(optimizer=None, combiners=COMBINERS):
    tables = [
        EmbeddingTable(f"t{i}", size, WIDTH, combiner=combiner)
        for i, (size, combiner) in enumerate(zip(SIZES, combiners))
    ]
    layer = EmbeddingCollection(tables, seed=1)
    if optimizer is not None:
        layer.build_optimizer(optimizer)
    return layer


def make_batch(rng, form, num_examples):
    """Ids with many repeats, empty bags and missing ids, as bags of (id, weight)."""
    longest = 1 if form.startswith("one_hot") else 9
    bags = []
    for _ in range(num_examples):
        for size in SIZES:
            # Half of the ids fall on a few rows.
            length = rng.integers(0, longest + 1)
            few = rng.integers(0, min(size, 3), length)
            ids = np.where(rng.random(length) < 0.5, few, rng.integers(0, size, length))
            bags.append((ids, rng.uniform(0.5, 2.0, length).astype("float32")))
    weighted = form.endswith("weighted")
    if not weighted:
        bags = [(ids, np.ones_like(w)) for ids, w in bags]
    if form.startswith("ragged"):
        splits = np.cumsum([0] + [len(ids) for ids, _ in bags])

        def ragged(k):
            flat = np.concatenate([bag[k] for bag in bags])
            inner = tf.RaggedTensor.from_row_splits(flat, splits)
            return tf.RaggedTensor.from_uniform_row_length(inner, len(SIZES))

        return bags, ragged(0), ragged(1) if weighted else None
    padded = np.full((len(bags), longest), -1)
    weights = np.full((len(bags), longest), 7.0, "float32")
    for row, weight_row, (ids, w) in zip(padded, weights, bags):
        row[: len(ids)], weight_row[: len(ids)] = ids, w
    shape = (num_examples, len(SIZES))
    shape += () if form.startswith("one_hot") else (longest,)
    return (
        bags,
        tf.constant(padded.reshape(shape)),
        tf.constant(weights.reshape(shape)) if weighted else None,
    )


def factor(w, combiner):
    total = {"sum": 1.0, "mean": w.sum(), "sqrtn": np.sqrt((w**2).sum())}[combiner]
    return w / total if len(w) else w


def pooled_float64(tables, bags, num_examples):
    result = np.zeros((num_examples * len(SIZES), WIDTH))
    for i, (ids, w) in enumerate(bags):
        k = i % len(SIZES)
        w = factor(w.astype(np.float64), COMBINERS[k])
        result[i] = w @ tables[k][ids] if len(ids) else 0.0
    return result.reshape(num_examples, len(SIZES), WIDTH)


def dense_gradients(bags, gradients):
    """Gradient of each table, dense, in float64."""
    result = [np.zeros((size, WIDTH)) for size in SIZES]
    flat = gradients.reshape(-1, WIDTH).astype(np.float64)
    for i, (ids, w) in enumerate(bags):
        k = i % len(SIZES)
        w = factor(w.astype(np.float64), COMBINERS[k])
        np.add.at(result[k], ids, w[:, None] * flat[i])
    return result


@pytest.fixture
def turns(monkeypatch):
    """Makes batches of these tests too large for one piece."""
    monkeypatch.setattr(xla_updates, "_SMALL_BYTES", 0)
    monkeypatch.setattr(xla_updates, "_TURN_BYTES", 12 * 4 * WIDTH)
    monkeypatch.setattr(xla_updates, "_CHUNK", 16)
    monkeypatch.setattr(xla_updates, "_SMALL_CHUNK", 8)


def check_steps(case, form, dtype=tf.int64):
    """Asserts that three steps of bags with many repeats equal float64."""
    make, update = CASES[case]
    layer = make_layer(make())
    rng = np.random.default_rng(0)
    expected = [layer.get_table(f"t{i}").astype(np.float64) for i in range(3)]
    states = [{}, {}, {}]
    apply = tf.function(layer.apply_gradients)
    for step in range(1, 4):
        bags, ids, weights = make_batch(rng, form, num_examples=20)
        ids = tf.cast(ids, dtype)
        pooled = layer(ids, weights).numpy()
        # Tables as they are: float32 steps drift from those of float64.
        now = [layer.get_table(f"t{i}").astype(np.float64) for i in range(3)]
        np.testing.assert_allclose(pooled, pooled_float64(now, bags, 20), atol=5e-6)
        gradients = rng.normal(size=(20, len(SIZES), WIDTH)).astype("float32")
        apply(tf.constant(gradients), ids, weights)
        for k, dense in enumerate(dense_gradients(bags, gradients)):
            update(expected[k], dense, states[k], step)
    for k in range(3):
        np.testing.assert_allclose(layer.get_table(f"t{k}"), expected[k], atol=2e-5)
    return layer


PAIRS = [("row_wise", form) for form in FORMS]
PAIRS += [("sgd", "padded"), ("sgd", "ragged")]
PAIRS += [(case, form) for case in CASES for form in (FORMS[3], FORMS[4])]


@pytest.mark.breadth(0, 4)
@pytest.mark.parametrize("case, form", list(dict.fromkeys(PAIRS)))
def test_steps_in_many_turns_equal_float64(case, form, turns):
    check_steps(case, form)


@pytest.mark.integration
@pytest.mark.parametrize("form", ["ragged", "padded"])
def test_steps_in_one_piece_equal_float64(form):
    assert xla_updates.is_small(20 * 9 * len(SIZES), WIDTH)
    check_steps("row_wise", form)


PAIRS = [
    (case, form)
    for case, form in zip(CASES, itertools.cycle(["one_hot", "padded", "ragged"]))
]
PAIRS += [("row_wise", form) for form in FORMS[3:]]


@pytest.mark.breadth(1, 5)
@pytest.mark.parametrize("jit", [True, False], ids=["xla", "plain"])
@pytest.mark.parametrize("case, form", list(dict.fromkeys(PAIRS)))
def test_steps_of_tables_beyond_int32_equal_float64(case, form, jit, monkeypatch):
    """int64 rows, from int32 ids, whatever the number of rows that needs them."""
    monkeypatch.setattr(row_ops, "INT32_ROWS", 5)
    with xla.disabled(not jit):
        layer = check_steps(case, form, tf.int32)
    assert layer._store.fused[0].row_dtype == tf.int64
    assert layer._store.fused[0].lookup(
        tf.zeros((1, 3), tf.int32), None
    ).rows.dtype == (tf.int64)


@pytest.mark.breadth(0, 2)
@pytest.mark.parametrize("case", ["adagrad", "row_wise", "adam", "ftrl"])
def test_state_equals_that_of_tensorflows_kernels(case, turns):
    """The column that the marks are written into, above all."""
    layers = [make_layer(CASES[case][0]()) for _ in range(2)]
    layers[1].use_xla(False)
    rng = np.random.default_rng(1)
    for form in ("one_hot", "ragged_weighted"):
        _, ids, weights = make_batch(rng, form, num_examples=16)
        g = tf.constant(rng.normal(size=(16, 3, WIDTH)).astype("float32"))
        layers[0].apply_gradients(g, ids, weights)
        layers[1].apply_gradients(g, ids, weights)
    states = [layer.get_state()["slots"] for layer in layers]
    for table, slots in states[0].items():
        for name, values in slots.items():
            np.testing.assert_allclose(values, states[1][table][name], rtol=2e-5)
            assert not np.array_equal(values, np.zeros_like(values))


@pytest.mark.integration
def test_a_null_row_stays_zero_under_every_form():
    layer = make_layer(optimizers.SparseSGD(1.0))
    for form in FORMS:
        _, ids, weights = make_batch(np.random.default_rng(2), form, 8)
        layer.apply_gradients(tf.ones((8, 3, WIDTH)), ids, weights)
    fused = layer._store.fused[0]
    assert not fused.variable[fused.null_row].numpy().any()


@pytest.mark.integration
def test_one_very_long_bag():
    """As many values in one bag as in all others; the sum is exact."""
    layer = make_layer(optimizers.RowWiseAdagrad(0.1), combiners=("sum",) * 3)
    lengths = np.ones(30, np.int64)
    lengths[4] = 5000
    rng = np.random.default_rng(3)
    values = np.concatenate(
        [rng.integers(0, SIZES[i % 3], n) for i, n in enumerate(lengths)]
    )
    inner = tf.RaggedTensor.from_row_lengths(values, lengths)
    ids = tf.RaggedTensor.from_uniform_row_length(inner, 3)
    table = layer.get_table("t1").astype(np.float64)
    long_bag = values[4:5004]
    pooled = layer(ids).numpy()
    np.testing.assert_allclose(pooled[1, 1], table[long_bag].sum(0), rtol=1e-4)
    layer.apply_gradients(tf.ones((10, 3, WIDTH)), ids)
    counts = np.bincount(long_bag, minlength=7)
    counts += np.bincount(
        np.delete(values, slice(4, 5004))[np.arange(29) % 3 == 1], minlength=7
    )
    # Every gradient is 1, so a row's step is 0.1 * count / count.
    moved = table - layer.get_table("t1")
    np.testing.assert_allclose(moved, 0.1 * (counts > 0)[:, None] * np.ones(3), 1e-4)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("form", ["one_hot", "padded", "ragged"])
@pytest.mark.parametrize("num_examples", [0, 1])
def test_batches_of_none_and_one(form, num_examples):
    layer = make_layer(optimizers.SparseAdagrad(0.1))
    before = [layer.get_table(f"t{i}") for i in range(3)]
    if num_examples:
        _, ids, _ = make_batch(np.random.default_rng(4), form, 1)
    elif form == "ragged":
        empty = tf.RaggedTensor.from_row_splits(tf.zeros((0,), tf.int64), [0])
        ids = tf.RaggedTensor.from_uniform_row_length(empty, 3, nrows=0)
    else:
        ids = tf.zeros((0, 3) if form == "one_hot" else (0, 3, 4), tf.int64)
    assert layer(ids).shape == (num_examples, 3, WIDTH)
    layer.apply_gradients(tf.ones((num_examples, 3, WIDTH)), ids)
    if not num_examples:
        for i in range(3):
            np.testing.assert_array_equal(before[i], layer.get_table(f"t{i}"))


@pytest.mark.integration
def test_padded_bags_of_length_0():
    layer = make_layer(optimizers.SparseAdagrad(0.1))
    ids = tf.zeros((5, 3, 0), tf.int64)
    assert not layer(ids).numpy().any()
    before = layer.get_table("t0")
    layer.apply_gradients(tf.ones((5, 3, WIDTH)), ids)
    np.testing.assert_array_equal(before, layer.get_table("t0"))


def weight_gradients(tables, bags, upstream):
    """d (upstream * pooled) / d w of each value of each bag, in float64."""
    result = []
    for i, (ids, w) in enumerate(bags):
        w, k = w.astype(np.float64), i % len(SIZES)
        rows = tables[k][ids]
        pooled = factor(w, COMBINERS[k]) @ rows
        if COMBINERS[k] == "mean":  # (Σ wx) / Σw
            rows = (rows - pooled) / w.sum()
        if COMBINERS[k] == "sqrtn" and len(ids):  # (Σ wx) / √Σw²
            root = np.sqrt((w**2).sum())
            rows = rows / root - np.outer(w, pooled / root**2)
        result.append(rows @ upstream.reshape(-1, WIDTH)[i].astype(np.float64))
    return result


@pytest.mark.breadth(2, 6)
@pytest.mark.parametrize("jit", [True, False], ids=["xla", "plain"])
@pytest.mark.parametrize("form", [*FORMS, "padded_weighted"])
def test_gradients_in_other_hands_equal_float64(form, jit):
    layer, rng = make_layer(), np.random.default_rng(5)
    tables = [layer.get_table(f"t{i}").astype(np.float64) for i in range(3)]
    bags, ids, weights = make_batch(rng, form, 6)
    upstream = rng.normal(size=(6, len(SIZES), WIDTH)).astype("float32")
    flat = getattr(weights, "flat_values", weights)
    sources = [layer.trainable_variables[0].value, *([] if flat is None else [flat])]
    layer.use_xla(jit)
    with tf.GradientTape() as tape:
        tape.watch(sources)
        if form.startswith("ragged") and weights is not None:
            weights = weights.with_flat_values(flat)
        loss = tf.reduce_sum(layer(ids, weights) * upstream)
    of_table, *of_weights = tape.gradient(loss, sources)
    expected = np.concatenate([*dense_gradients(bags, upstream), np.zeros((1, WIDTH))])
    # Sums of some 20 float32 products of size 1.
    np.testing.assert_allclose(tf.convert_to_tensor(of_table), expected, atol=1e-5)
    if weights is None:
        return
    expected = weight_gradients(tables, bags, upstream)
    lengths = [len(values) for values in expected]
    got = of_weights[0].numpy()
    if form.startswith("ragged"):
        got = np.split(got, np.cumsum(lengths)[:-1])
    else:
        got = got.reshape(len(bags), -1)
        for values, length in zip(got, lengths):
            assert not values[length:].any()  # no id, no gradient
        got = [values[:length] for values, length in zip(got, lengths)]
    np.testing.assert_allclose(np.concatenate(got), np.concatenate(expected), atol=1e-5)


@pytest.mark.breadth(1)
@pytest.mark.parametrize(
    "case, form", [("adagrad", "one_hot"), ("row_wise", "padded"), ("adam", "ragged")]
)
def test_too_many_ids_change_nothing(case, form, monkeypatch):
    """Also where their number is known at run time only."""
    monkeypatch.setattr(xla_updates, "MAX_VALUES", 32)
    monkeypatch.setattr(xla.code, "is_full", False)  # by the tests before it
    monkeypatch.setattr(compiled_code, "memory_mappings", lambda: (0, 1))
    layer = make_layer(CASES[case][0]())
    rng = np.random.default_rng(8)

    def batch(num_ids):
        ids = rng.integers(0, 1, (num_ids // 3, 3))
        if form == "padded":
            ids = ids.reshape(1, 3, -1)
        if form == "ragged":
            inner = tf.RaggedTensor.from_row_lengths(ids.reshape(-1), [1] * num_ids)
            return tf.RaggedTensor.from_uniform_row_length(inner, 3)
        return tf.constant(ids)

    spec = {
        "one_hot": tf.TensorSpec((None, 3), tf.int64),
        "padded": tf.TensorSpec((None, 3, None), tf.int64),
        "ragged": tf.RaggedTensorSpec((None, 3, None), tf.int64, 2),
    }[form]

    def gradients(ids):
        return tf.ones((ids.shape[0], 3, WIDTH))

    apply = tf.function(
        layer.apply_gradients,
        input_signature=[tf.TensorSpec((None, 3, WIDTH)), spec],
    )
    ids = batch(33)
    before, state = layer.get_table("t0"), layer.get_state()["slots"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="at most 32 ids") as error:
        apply(gradients(ids), ids)
    assert "33" in str(error.value)
    np.testing.assert_array_equal(layer.get_table("t0"), before)
    for name, values in layer.get_state()["slots"]["t0"].items():
        np.testing.assert_array_equal(values, state["t0"][name])
    if form != "ragged":
        with pytest.raises(ValueError, match="at most 32 ids .*Received: 33"):
            layer.apply_gradients(gradients(ids), ids)
    ids = batch(30)  # padding does not count
    apply(gradients(ids), ids)
    assert np.abs(layer.get_table("t0") - before).max() > 0


def test_capacities_are_few_and_close():
    sizes = np.unique(np.geomspace(1, 3e6, 4000).astype(int))
    rounded = np.array([xla.capacity(int(size)) for size in sizes])
    assert (rounded >= sizes).all()
    assert (rounded[sizes > 64] <= sizes[sizes > 64] * 1.125).all()
    assert len(set(rounded)) < 140
    for exact in (8, 48, 64, 128, 2048, 65536, 13 * 4096, 1000 * 8 // 8 * 64):
        assert xla.capacity(exact) <= exact * 1.125
    assert [xla.capacity(n) for n in (128, 2048, 53248)] == [128, 2048, 53248]
    dynamic = tf.function(
        xla.capacity, input_signature=[tf.TensorSpec((), tf.int32)], autograph=False
    )
    for size in (0, 1, 8, 9, 64, 65, 100, 2048, 2049, 10**6):
        assert int(dynamic(size)) == xla.capacity(size)


@pytest.mark.integration
def test_batches_of_many_sizes_share_programs():
    """A dataset with a batch size of its own each step must not compile each time."""
    layer = make_layer(optimizers.SparseAdagrad(0.1))
    traced = []
    kernel = layer._store.fused[0].engine._one_hot_kernel
    function = kernel._function

    def counting(*arguments):
        traced.append(arguments[1].shape)
        return function(*arguments)

    layer._store.fused[0].engine._one_hot_kernel = xla.Kernel(
        counting, "embedding_lookup"
    )
    for num_examples in range(1000, 1100):
        layer(tf.zeros((num_examples, 3), tf.int64))
    assert len(traced) <= 4
