"""Growing ids against a simulator in plain Python, and the rules of `GrowingIds`."""

import pathlib
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from helpers import torch_python
from helpers.growing_oracle import Simulator, initial_row

import tf_dlrm
from tf_dlrm import EmbeddingTable, GrowingIds
from tf_dlrm.layers import EmbeddingCollection

LARGEST = 2**63 - 1
RULES = {
    "lru": GrowingIds(max_probes=8),
    "lru_one_probe": GrowingIds(max_probes=1),
    "lru_all_slots": GrowingIds(max_probes=500),
    "lfu": GrowingIds(max_probes=20, evict="lfu"),
    "none": GrowingIds(max_probes=8, evict=None, fallback="none"),
    "expires": GrowingIds(max_probes=24, evict=None, expire_after_steps=4),
    "expires_or_lfu": GrowingIds(max_probes=9, evict="lfu", expire_after_steps=3),
    "counts": GrowingIds(max_probes=8, min_count=3),
    "counts_lfu": GrowingIds(max_probes=30, min_count=5, evict="lfu"),
    "sketch": GrowingIds(max_probes=8, min_count=4, admission="sketch"),
    "probability": GrowingIds(max_probes=17, admission=0.3, seed=-5),
}


def draw(rng, shape, num_ids, share_missing=0.05):
    """Ids by rank: a few are frequent, some are new in each step."""
    ranks = (num_ids * rng.random(shape) ** 3).astype(np.int64)
    ids = ranks * 0x2545F4914F6CDD1D & LARGEST  # any 63 bits
    ids[rng.random(shape) < share_missing] = -1
    return ids


def check(layer, simulators):
    for name, simulator in simulators.items():
        assert layer.get_ids(name)[: simulator.size].tolist() == simulator.ids
        growing = layer._growing_tables
        for part in ("last_seen", "hits"):
            held = growing.read_slots(name, getattr(growing.slots, part))
            used = np.array(simulator.ids) != -1
            assert (held[used] == np.array(getattr(simulator, part))[used]).all(), part
        seen = layer.occupancy(name)
        expected = simulator.num
        assert seen.num_ids == len(simulator.slot_of)
        for key in ("lookups", "claims", "evictions", "fallbacks"):
            assert getattr(seen, key) == expected[key], key
        assert seen.not_admitted == expected["waiting"]
        assert sum(seen.probe_lengths) == seen.num_ids


def run_steps(names, num_steps, batch_size, seed, num_rows=100):
    tables = [EmbeddingTable(name, num_rows, 4, growing=RULES[name]) for name in names]
    layer = EmbeddingCollection(tables)
    simulators = {name: Simulator(name, num_rows, RULES[name]) for name in names}
    claim = tf.function(layer.claim, reduce_retracing=True)
    rng = np.random.default_rng(seed)
    for step in range(num_steps):
        ids = draw(rng, (batch_size, len(names)), 300 + 20 * step)
        if step % 7 == 3:
            simulators_read = [
                s.read(ids[:, i].tolist()) for i, s in enumerate(simulators.values())
            ]
            layer(ids)  # claims nothing
            assert layer.translate(ids).numpy().T.tolist() == simulators_read
        rows = claim(ids).numpy()
        for i, (name, simulator) in enumerate(simulators.items()):
            assert rows[:, i].tolist() == simulator.step(ids[:, i].tolist()), (
                name,
                step,
            )
            assert sorted(layer.evicted(name)) == sorted(simulator.evicted)
    check(layer, simulators)
    return layer, simulators


def test_equals_the_simulator():
    """All rules at once: 11 tables in one layer, conflicts in nearly every step."""
    layer, simulators = run_steps(list(RULES), 60, 40, seed=0)
    assert simulators["lru"].num["evictions"] > 500
    assert simulators["none"].num["fallbacks"] > 500
    assert 0 < simulators["counts"].num["claims"] < simulators["lru"].num["claims"]
    assert 0 < simulators["sketch"].num["claims"] < simulators["lru"].num["claims"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_equals_the_simulator_over_many_operations(seed):
    rng = np.random.default_rng(100 + seed)
    num_rows, batch_size = int(rng.integers(2, 400)), int(rng.integers(1, 600))
    run_steps(list(RULES), 400, batch_size, seed, num_rows)


@pytest.mark.parametrize("name", ["lru", "counts"])
def test_one_table(name):
    """One table alone takes other branches of the code."""
    run_steps([name], 40, 30, seed=1)


def test_initial_rows_are_keyed_by_seed_name_and_id():
    layer, simulators = run_steps(["lru", "lfu", "probability"], 20, 30, seed=2)
    for name, simulator in simulators.items():
        rows = layer.get_table(name)
        for slot, item in enumerate(simulator.ids):
            if item != -1:
                expected = initial_row(RULES[name].seed, name, item, 4, 100**-0.5)
                np.testing.assert_array_equal(rows[slot], expected)


@pytest.mark.parametrize("form", ["padded", "ragged", "mixed"])
def test_forms_of_ids(form):
    """Bags, a table that two features share, and a plain table beside it."""
    rules = GrowingIds(max_probes=6)
    tables = [EmbeddingTable("item", 64, 4, growing=rules, features=("seen", "shown"))]
    if form != "padded":
        tables.insert(0, EmbeddingTable("plain", 10, 4))
    layer, simulator = EmbeddingCollection(tables), Simulator("item", 64, rules)
    rng = np.random.default_rng(3)
    for _ in range(10):
        bags = [
            [draw(rng, rng.integers(0, 4), 90, 0).tolist() for _ in range(2)]
            for _ in range(8)
        ]
        flat = [i for row in bags for bag in row for i in bag]
        if form == "padded":
            ids = np.array([[(bag + [-1] * 4)[:4] for bag in row] for row in bags])
            weights = np.where(ids == -1, np.nan, 2.0).astype("float32")
        else:
            plain = [[[1, 2], *row] for row in bags]
            ids = tf.ragged.constant(plain, inner_shape=None, dtype=tf.int64)
            ids = tf.RaggedTensor.from_uniform_row_length(ids.values, 3)
            weights = ids.with_flat_values(tf.fill(tf.shape(ids.flat_values), 2.0))
        rows = simulator.step(flat)
        layer.claim(ids)
        pooled = layer(ids, weights=weights).numpy()[:, -2:]
        table, place, expected = layer.get_table("item"), iter(rows), []
        for row in bags:
            for bag in row:
                own = [table[next(place)] for _ in bag]
                expected.append(2 * np.sum(own, axis=0) if bag else np.zeros(4))
        np.testing.assert_allclose(
            pooled.reshape(-1, 4), np.array(expected), rtol=1e-6, atol=1e-7
        )


def test_edges_of_ids():
    layer = EmbeddingCollection([EmbeddingTable("a", 10, 2, growing=GrowingIds())])
    layer.claim(np.array([[LARGEST], [0], [-1]]))
    assert sorted(layer.live_rows("a").ids) == [0, LARGEST]
    assert layer(np.array([[-1]])).numpy().tolist() == [[[0.0, 0.0]]]
    assert (layer.find("a", [LARGEST, 0, -1, 5]) >= 0).tolist() == [1, 1, 0, 0]
    with pytest.raises(tf.errors.InvalidArgumentError, match="received id -2.*2\\^63"):
        layer.claim(np.array([[-2]]))
    assert layer.occupancy("a").claims == 2


@pytest.mark.parametrize("form", ["packed", "columns"])
def test_ids_beyond_int64_claim_no_row(form):
    """As int64 they would be negative, or merge into one id."""
    table = EmbeddingTable("a", 10, 2, growing=GrowingIds())
    model = tf_dlrm.DLRM(tf_dlrm.FeatureSpec(("x",), [table]), (2,), (2, 1))
    model.compile("sgd")
    label, ids = np.zeros(2, np.float32), np.array([[7], [LARGEST]], np.uint64)

    def train(ids):
        x = {"dense_features": np.zeros((2, 1)), "sparse_features": ids}
        if form == "columns":
            x = {"x": np.zeros(2), "a": ids[:, 0]}
        model.train_on_batch(x, label)

    train(ids)
    assert list(model.embedding.live_rows("a").ids) == [7, LARGEST]
    for value in (2**63, 2**64 - 1):
        with pytest.raises(tf.errors.InvalidArgumentError, match="out of range|2\\^63"):
            train(np.array([[7], [value]], np.uint64))
    assert list(model.embedding.live_rows("a").ids) == [7, LARGEST]


def test_an_error_as_the_fallback():
    rules = GrowingIds(fallback="error")
    layer = EmbeddingCollection([EmbeddingTable("a", 4, 2, growing=rules)])
    layer.claim(np.array([[1], [2]]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="'error'"):
        layer(np.array([[3]]))
    assert layer.lookup(np.array([[3]])).numpy().tolist() == [[[0.0, 0.0]]]


def test_protected_ids_stay():
    layer = EmbeddingCollection(
        [
            EmbeddingTable("a", 9, 2, growing=GrowingIds(fallback="none")),
            EmbeddingTable("b", 9, 2, growing=GrowingIds(fallback="none")),
        ]
    )
    layer.protect("a", [0, 3])
    for first in range(0, 90, 3):
        layer.claim(np.arange(first, first + 3)[:, None].repeat(2, axis=1))
    assert {0, 3} <= set(layer.live_rows("a").ids)
    assert set(layer.live_rows("b").ids) == set(range(81, 90))
    with pytest.raises(ValueError, match="At most 8 ids"):
        layer.protect("a", range(9))
    with pytest.raises(ValueError, match="negative"):
        layer.protect("a", [-1])


def test_event_time():
    rules = GrowingIds(evict=None, expire_after_seconds=100, fallback="none")
    layer = EmbeddingCollection([EmbeddingTable("a", 2, 2, growing=rules)])
    layer.advance_clock(1000)
    layer.claim(np.array([[1]]))
    layer.advance_clock(1050)
    layer.claim(np.array([[2]]))
    assert not layer.advance_clock(900)  # backwards: nothing changes
    layer.claim(np.array([[3]]))
    assert sorted(layer.live_rows("a").ids) == [1, 2]
    layer.advance_clock(1150)  # 1 was seen before 1050
    layer.claim(np.array([[3]]))
    assert sorted(layer.live_rows("a").ids) == [2, 3]
    plain = EmbeddingCollection([EmbeddingTable("a", 2, 2)])
    with pytest.raises(ValueError, match="no growing tables"):
        plain.advance_clock(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_probes": 0}, "max_probes"),
        ({"min_count": 0}, "min_count"),
        ({"expire_after_steps": 0}, "expire_after_steps"),
        ({"expire_after_steps": 1, "expire_after_seconds": 1}, "not both"),
        ({"evict": "fifo"}, "evict"),
        ({"fallback": None}, "fallback"),
        ({"admission": 1.5}, "between 0 and 1"),
        ({"admission": 0.5, "min_count": 2}, "not both"),
        ({"admission": "sketch"}, "min_count"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_bad_rules(options, message):
    with pytest.raises(ValueError, match=message):
        GrowingIds(**options)


def test_bad_tables():
    with pytest.raises(ValueError, match="vocabulary_size"):
        EmbeddingTable("a", 0, 2, growing=GrowingIds())
    with pytest.raises(ValueError, match="at least 2 rows"):
        EmbeddingTable("a", 1, 2, growing=GrowingIds())
    with pytest.raises(ValueError, match="its own initial row"):
        EmbeddingTable("a", 8, 2, "sum", "glorot_uniform", growing=GrowingIds())
    with pytest.raises(TypeError, match="GrowingIds or None"):
        EmbeddingTable("a", 8, 2, growing=True)
    layer = EmbeddingCollection([EmbeddingTable("a", 2, 2)])
    with pytest.raises(ValueError, match="has no growing ids"):
        layer.occupancy("a")


def test_serialization():
    rules = GrowingIds(7, 2, "sketch", "lfu", 9, None, "none", 3)
    spec = tf_dlrm.FeatureSpec((), [EmbeddingTable("a", 8, 2, growing=rules)])
    again = tf_dlrm.FeatureSpec.from_json(spec.to_json())
    assert again == spec and again.tables[0].growing == rules
    assert "growing" not in EmbeddingTable("a", 8, 2).get_config()


@pytest.mark.parametrize(
    ("initializer", "mean", "deviation"),
    [
        ("zeros", 0, 0),
        (tf.keras.initializers.Constant(0.5), 0.5, 0),
        (tf.keras.initializers.RandomNormal(1.0, 0.25), 1.0, 0.25),
        (tf.keras.initializers.RandomUniform(-1, 3), 1.0, 4 / 12**0.5),
    ],
)
def test_initializers(initializer, mean, deviation):
    table = EmbeddingTable("a", 4000, 8, "sum", initializer, growing=GrowingIds())
    layer = EmbeddingCollection([table])
    layer.claim(np.arange(2000)[:, None])
    rows = layer.live_rows("a").rows
    assert abs(rows.mean() - mean) < 0.03 * (deviation or 1e-9) + 1e-9
    assert abs(rows.std() - deviation) < 0.03 * deviation + 1e-9


@pytest.mark.integration
def test_lookups_equal_those_of_fbgemm(tmp_path):
    """On the same slots, read-only, at a load of 1: known and unknown ids."""
    rules = GrowingIds(max_probes=16, fallback="none")
    layer = EmbeddingCollection([EmbeddingTable("a", 1009, 2, growing=rules)])
    rng = np.random.default_rng(0)
    for _ in range(20):
        layer.claim(rng.integers(0, LARGEST, (100, 1)))
    slots = layer.get_ids("a")
    assert layer.occupancy("a").load > 0.95
    ids = np.concatenate([slots[slots >= 0], rng.integers(0, LARGEST, 2000)])
    np.save(tmp_path / "ids.npy", ids)
    np.save(tmp_path / "slots.npy", slots)
    python = torch_python.find()
    script = pathlib.Path(torch_python.__file__).parent / "fbgemm_lookup.py"
    done = None
    if python is not None:
        command = [python, str(script), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done is None or done.returncode:
        pytest.skip("no fbgemm-gpu here: TF_DLRM_TORCH_PYTHON names a Python with it")
    expected = np.load(tmp_path / "rows.npy")
    np.testing.assert_array_equal(layer.find("a", ids), expected)
    assert (expected >= 0).sum() == (slots >= 0).sum()


def test_a_table_that_is_filled_at_once_finds_all_ids():
    """`set_rows` places ids of a vocabulary in one pass, around the end, too."""
    rng = np.random.default_rng(0)
    for size, count in ((1000, 700), (1000, 930), (50, 49), (3, 1)):
        rules = GrowingIds(fallback="none")
        layer = EmbeddingCollection([EmbeddingTable("a", size, 2, growing=rules)])
        ids = rng.choice(1 << 40, count, replace=False)
        rows = rng.normal(size=(count, 2)).astype("float32")
        assert layer.set_rows("a", ids, rows) == 0
        np.testing.assert_array_equal(layer.get_table("a")[layer.find("a", ids)], rows)
        simulator = Simulator("a", size, rules)
        for slot, item in enumerate(layer.get_ids("a").tolist()):
            if item == -1:
                continue
            probed = simulator.range_of(item)
            before = probed[: probed.index(slot)]
            assert (layer.get_ids("a")[before] != -1).all()
