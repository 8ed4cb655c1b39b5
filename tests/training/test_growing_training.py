"""Training with growing tables: equal to a vocabulary, saved, resumed, and watched."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.growing_model import (
    RULES,
    compare,
    growing_names,
    make_data,
    make_model,
    make_tables,
)
from helpers.growing_oracle import Simulator, initial_row

import tf_dlrm
from tf_dlrm import EmbeddingTable, GrowingIds

pytestmark = pytest.mark.filterwarnings("ignore:Growing table .* full")

OPTIMIZERS = {
    "sgd": "sgd",
    "adagrad": "adagrad",
    "row_wise_adagrad": tf_dlrm.optimizers.RowWiseAdagrad(0.02),
    "adam": "adam",
    "ftrl": tf_dlrm.optimizers.SparseFtrl(0.02),
}
NUM_IDS, WIDTH = 200, 8


def make_pair(optimizer, jit_compile=False, **options):
    """A model with a vocabulary and one with growing ids, with equal initial rows."""
    growing = GrowingIds(fallback="none", evict=None)
    size = 2 * NUM_IDS
    models = []
    for rules, num_rows in ((None, NUM_IDS), (growing, size)):
        tables = [
            EmbeddingTable(f"C{i}", num_rows, WIDTH, growing=rules, **options)
            for i in range(2)
        ]
        own = OPTIMIZERS[optimizer]
        is_keras = isinstance(own, str)
        model = make_model(
            own if is_keras else "adagrad",
            tables,
            jit_compile=jit_compile,
            embedding_optimizer=None if is_keras else own,
        )
        models.append(model)
    static, growing = models
    for name in ("C0", "C1"):
        rows = [initial_row(0, name, i, WIDTH, size**-0.5) for i in range(NUM_IDS)]
        static.embedding.set_table(name, rows)
    return static, growing


def make_small_data(form="padded"):
    rng = np.random.default_rng(0)
    ids = rng.integers(-1, NUM_IDS, (300, 2, 3))
    features = {
        "dense_features": rng.random((300, 2)).astype("float32"),
        "sparse_features": ids if form == "padded" else ids[:, :, 0],
    }
    label = rng.integers(0, 2, 300).astype("float32")
    return tf.data.Dataset.from_tensor_slices((features, label)).batch(32)


def test_equals_training_with_a_vocabulary():
    """Bit for bit, up to the order of the rows."""
    compare_with_a_vocabulary("adagrad", "padded")


@pytest.mark.integration
@pytest.mark.engines
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("form", ["padded", "one_hot"])
def test_equals_training_with_a_vocabulary_by_optimizer(optimizer, form):
    compare_with_a_vocabulary(optimizer, form)


def compare_with_a_vocabulary(optimizer, form):
    static, growing = make_pair(optimizer)
    data = make_small_data(form)
    for model in (static, growing):
        model.fit(data, epochs=2, verbose=0)
    states = [model.embedding.get_state()["slots"] for model in (static, growing)]
    for name in ("C0", "C1"):
        ids, rows = growing.embedding.live_rows(name)
        where = growing.embedding.find(name, ids)
        assert len(ids) > 100
        expected = static.embedding.get_table(name)[ids]
        np.testing.assert_array_equal(rows, expected)
        for slot, values in states[0][name].items():
            np.testing.assert_array_equal(states[1][name][slot][where], values[ids])
    a, b = (model.evaluate(data, verbose=0) for model in (static, growing))
    assert a == b
    for x, y in zip(static.dense_variables, growing.dense_variables, strict=True):
        np.testing.assert_array_equal(x.numpy(), y.numpy())


def test_regularizers_equal_those_of_a_vocabulary():
    static, growing = make_pair("adagrad", regularizer=keras.regularizers.L2(0.1))
    data = make_small_data()
    for model in (static, growing):
        model.fit(data, epochs=1, verbose=0)
    for name in ("C0", "C1"):
        ids, rows = growing.embedding.live_rows(name)
        expected = static.embedding.get_table(name)[ids]
        np.testing.assert_allclose(rows, expected, atol=1e-7)


def test_fit_equals_the_simulator():
    model = make_model()
    simulators = {name: Simulator(name, 70, rules) for name, rules in RULES.items()}
    data = make_data(120, 16, "ragged")
    model.fit(data, epochs=2, verbose=0)
    model.train_on_batch(*next(iter(data)))
    batches = [*data, *data, next(iter(data))]
    for features, _ in batches:
        columns = features["sparse_features"].to_list()
        for i, simulator in enumerate(simulators.values()):
            simulator.step([v for row in columns for v in row[i]])
    for name, simulator in simulators.items():
        assert model.embedding.get_ids(name)[: simulator.size].tolist() == simulator.ids
        assert model.embedding.occupancy(name).evictions == simulator.num["evictions"]


def test_only_training_claims():
    model = make_model()
    data = make_data(40, 20)
    model.evaluate(data, verbose=0)
    model.predict(data, verbose=0)
    model(next(iter(data))[0])
    for name in growing_names(model):
        assert model.embedding.occupancy(name).num_ids == 0
    model.embedding.trainable = False
    model.fit(data, verbose=0)
    assert model.embedding.occupancy("lru").num_ids == 0


def test_frozen_tables_claim_nothing():
    tables = (
        *make_tables(names=("lru",), trainable=False)[:1],
        *make_tables(names=("lfu",))[:2],
    )
    model = make_model(tables=tables)
    ids = np.arange(60).reshape(20, 3) % 20
    features = {"dense_features": np.zeros((20, 2)), "sparse_features": ids}
    model.fit(features, np.zeros(20), verbose=0)
    assert model.embedding.occupancy("lru").num_ids == 0
    assert model.embedding.occupancy("lfu").num_ids > 0


def test_a_claimed_row_starts_anew():
    """Neither the row nor its state remember the id that had the slot before."""
    table = EmbeddingTable("a", 2, 8, growing=GrowingIds(fallback="none"))
    model = make_model("adagrad", [table])

    def train(ids):
        features = {"dense_features": np.ones((len(ids), 2), "float32")}
        features["sparse_features"] = np.array(ids)[:, None]
        model.train_on_batch(features, np.ones(len(ids), "float32"))

    for ids in ([1, 2], [3, 4], [5, 6]):
        train(ids)
    assert sorted(model.embedding.evicted("a")) == [3, 4]
    model.optimizer.learning_rate = 0.0
    train([1, 2])
    ids, rows = model.embedding.live_rows("a")
    for item, row in zip(ids, rows):
        np.testing.assert_array_equal(row, initial_row(0, "a", int(item), 8, 2**-0.5))
    gradients = model.embedding.get_state()["slots"]["a"]["accumulator"]
    assert gradients.max() < 0.2  # 0.1, and the squares of one gradient


@pytest.mark.integration
@pytest.mark.parametrize(
    "optimizer",
    [tf_dlrm.optimizers.SparseSGD(0.1, l2=0.5), tf_dlrm.optimizers.DenseAdam(0.1)],
    ids=["shrinking_sgd", "dense_adam"],
)
def test_a_claimed_row_starts_anew_under_optimizers_of_all_rows(optimizer):
    model = make_model(embedding_optimizer=optimizer)
    model.fit(make_data(60, 10), verbose=0)
    layer = model.embedding
    layer.claim(next(iter(make_data(10, 10, first=5000)))[0]["sparse_features"])
    held = layer.live_rows("lru")
    growing = layer._growing_tables
    seen = growing.read_slots("lru", growing.slots.last_seen)
    new = seen[layer.find("lru", held.ids)] == int(growing.clock.numpy())
    assert new.sum() > 5
    for item, row in zip(held.ids[new], held.rows[new]):
        expected = initial_row(0, "lru", int(item), 8, 70**-0.5)
        np.testing.assert_allclose(row, expected, rtol=1e-6)


def test_several_lookups_in_a_step():
    """Rows of the first lookup are not given away in the second one."""
    table = EmbeddingTable("a", 4, 4, growing=GrowingIds(fallback="none"))

    class Twice(tf_dlrm.DLRM):
        def call(self, features, training=None):
            batch = self.standardize(features)
            first = self.embedding(batch.ids[:2])
            second = self.embedding(batch.ids[2:])
            pooled = tf.concat([first, second], 0)
            return self.score(batch.dense, pooled, bool(training))

    spec = tf_dlrm.FeatureSpec(("x",), [table])
    model = Twice(spec, (4,), (4, 1))
    model.compile("adagrad", jit_compile=False)
    for first in (0, 4, 8):
        ids = np.arange(first, first + 4)[:, None]
        features = {"dense_features": np.ones((4, 1)), "sparse_features": ids}
        model.train_on_batch(features, np.ones(4))
        assert model.embedding.live_rows("a").ids.tolist() == ids[:, 0].tolist()
    assert int(model.embedding._growing_tables.clock.numpy()) == 3


def test_a_loop_of_your_own():
    model, layer = make_model(), make_model().embedding
    layer.build_optimizer(tf_dlrm.optimizers.SparseAdagrad(0.1))
    data = make_data(60, 20)
    model.compile("adagrad", embedding_optimizer=tf_dlrm.optimizers.SparseSGD(0.0))
    model.fit(data, verbose=0)
    for features, _ in data:
        ids = features["sparse_features"]
        layer.claim(ids)
        pooled = layer(ids)
        layer.apply_gradients(tf.ones_like(pooled), ids)
    for name in growing_names(model):
        np.testing.assert_array_equal(
            model.embedding.get_ids(name), layer.get_ids(name)
        )
        ids, rows = layer.live_rows(name)
        if name == "lru":  # Adagrad's first step of gradient 1 is near -0.1
            step = rows[0] - initial_row(0, name, int(ids[0]), 8, 70**-0.5)
            assert (step < -0.05).all()


# Files


def first_and_second_half(model, form="one_hot"):
    model.fit(make_data(80, 16, form), verbose=0)
    return make_data(80, 16, form, seed=3, first=80)


@pytest.mark.parametrize(
    "kind",
    [
        "keras",
        pytest.param("weights", marks=pytest.mark.integration),
        pytest.param("checkpoint", marks=pytest.mark.integration),
        pytest.param("set_weights", marks=pytest.mark.integration),
    ],
)
def test_a_restored_model_continues_bit_for_bit(kind, tmp_path):
    """Claims, evictions, counts of admission and expiry included."""
    model = make_model("adam")
    model.embedding.protect("lru", [5])
    rest = first_and_second_half(model)
    if kind == "keras":
        model.save(tmp_path / "model.keras")
        again = keras.saving.load_model(tmp_path / "model.keras")
    else:
        again = make_model("adam", seed=9)
        again.fit(make_data(32, 16, seed=8), verbose=0)
    if kind == "weights":
        model.save_weights(tmp_path / "model.weights.h5")
        again.load_weights(tmp_path / "model.weights.h5")
    elif kind == "checkpoint":
        path = tf.train.Checkpoint(model=model).save(str(tmp_path / "checkpoint"))
        tf.train.Checkpoint(model=again).restore(path).assert_consumed()
    elif kind == "set_weights":
        again.set_weights(model.get_weights())
        again.embedding.set_state(model.embedding.get_state())
        again.optimizer.load_own_variables(
            {str(i): v.numpy() for i, v in enumerate(model.optimizer.variables)}
        )
    for one in (model, again):
        one.fit(rest, verbose=0)
    compare(model, again)


@pytest.mark.parametrize(
    "factor", [3, pytest.param(0.5, marks=pytest.mark.integration)]
)
def test_another_capacity(factor, tmp_path):
    """Ids and their rows move, those seen last first, and a warning says so."""
    model = make_model("adagrad")
    model.fit(make_data(120, 16), verbose=0)
    model.save_weights(tmp_path / "model.weights.h5")
    again = make_model("adagrad", make_tables(int(70 * factor)))
    with pytest.warns(UserWarning, match="placed again"):
        again.load_weights(tmp_path / "model.weights.h5")
    states = [m.embedding.get_state()["slots"] for m in (model, again)]
    for name in growing_names(model):
        ids, rows = model.embedding.live_rows(name)
        new_ids, new_rows = again.embedding.live_rows(name)
        assert set(new_ids) <= set(ids)
        places = np.searchsorted(ids, new_ids)
        np.testing.assert_array_equal(rows[places], new_rows)
        own, new = (
            model.embedding.find(name, new_ids),
            again.embedding.find(name, new_ids),
        )
        np.testing.assert_array_equal(
            states[0][name]["accumulator"][own], states[1][name]["accumulator"][new]
        )
        if factor > 1:
            assert len(new_ids) == len(ids)
        else:
            growing = model.embedding._growing_tables
            seen = growing.read_slots(name, growing.slots.last_seen)
            lost = seen[model.embedding.find(name, np.setdiff1d(ids, new_ids))]
            kept = seen[model.embedding.find(name, new_ids)]
            assert not len(lost) or lost.mean() < kept.mean()
    again.fit(make_data(64, 16, seed=4), verbose=0)


def test_files_of_a_vocabulary_are_refused(tmp_path):
    table = EmbeddingTable("a", 8, 8)
    model = make_model(tables=[table])
    model.save_weights(tmp_path / "model.weights.h5")
    growing = make_model(tables=[EmbeddingTable("a", 8, 8, growing=GrowingIds())])
    with pytest.raises(ValueError, match="set_rows"):
        growing.load_weights(tmp_path / "model.weights.h5")


def test_rows_of_a_vocabulary_and_back():
    table = EmbeddingTable("a", 100, 4, growing=GrowingIds())
    layer = tf_dlrm.layers.EmbeddingCollection([table])
    layer.build_optimizer(tf_dlrm.optimizers.SparseAdagrad(0.1))
    rng = np.random.default_rng(0)
    ids = rng.permutation(1000)[:60] * 10**15
    rows = rng.normal(size=(60, 4)).astype("float32")
    state = rng.random((60, 4)).astype("float32")
    assert layer.set_rows("a", ids, rows, {"accumulator": state}) == 0
    order = np.argsort(ids)
    held = layer.live_rows("a")
    np.testing.assert_array_equal(held.ids, ids[order])
    np.testing.assert_array_equal(held.rows, rows[order])
    own = layer.get_state()["slots"]["a"]["accumulator"][layer.find("a", ids)]
    np.testing.assert_array_equal(own, state)
    assert layer.set_rows("a", np.arange(150), np.zeros((150, 4))) == 51
    with pytest.raises(ValueError, match="distinct"):
        layer.set_rows("a", [1, 1], np.zeros((2, 4)))
    with pytest.raises(ValueError, match="must have the shape"):
        layer.set_rows("a", [1], np.zeros((2, 4)))
    with pytest.raises(ValueError, match="not negative"):
        layer.set_rows("a", [-1], np.zeros((1, 4)))


def test_plain_tables_have_no_more_operations():
    """Models without growing tables have no operation of theirs in their step."""

    def types_of(model):
        data = next(iter(make_small_data("one_hot")))
        graph = tf.function(model.train_step).get_concrete_function(data).graph
        nodes = graph.as_graph_def()
        functions = [node for f in nodes.library.function for node in f.node_def]
        return {node.op for node in [*nodes.node, *functions]}

    static, growing = (types_of(model) for model in make_pair("adagrad"))
    assert {"Bitcast", "RightShift", "While"} <= growing - static
