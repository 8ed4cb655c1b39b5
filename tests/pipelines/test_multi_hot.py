"""`MultiHot` against its definition in plain Python, and against what it claims."""

import json
import math
import os
import resource
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

import pipelines
import tf_dlrm
from pipelines.multi_hot import DISTRIBUTIONS, MLPERF_HOTNESS, MultiHot

GOLDEN = 0x9E3779B97F4A7C15
# MLPerf's tables, and sizes at the edges of int32, float32 and float64.
MLPERF_SIZES = (
    40000000, 39060, 17295, 7424, 20265, 3, 7122, 1543, 63, 40000000, 3067956, 405282,
    10, 2209, 11938, 155, 4, 976, 14, 40000000, 40000000, 40000000, 590152, 12973, 108,
    36,
)  # fmt: skip
EDGE_SIZES = (1, 2, 3, 2**24 + 1, 2**31 - 1, 2**31, 2**32 + 1, 2**53)
EDGE_HOTNESS = (4, 1, 90, 30, 30, 1, 30, 30)
SETS = {
    "mlperf": (MLPERF_SIZES, MLPERF_HOTNESS),
    "edges": (EDGE_SIZES, EDGE_HOTNESS),
    "one-hot": ((5, 6), (1, 1)),
}
each_set = pytest.mark.parametrize("sizes, hotness", SETS.values(), ids=SETS.keys())
each_distribution = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


def splitmix64(seed, position):
    """The number at `position` of the generator as published, step by step."""
    state = seed
    for _ in range(position + 1):
        state = (state + GOLDEN) & (2**64 - 1)
    z = state
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return z ^ (z >> 31)


def jump(seed, position):
    """The same, for positions too far to step to."""
    return splitmix64((seed + position * GOLDEN) % 2**64, 0)


def draw(word, size, distribution):
    u = float(word // 2**11)
    if distribution == "uniform":
        return math.floor(u * (size / 2**53))
    inverse = 2.0**53 / (u + 1.0)
    square = inverse * inverse  # not `** 4`, which libm may round in another way
    return int(float(math.floor(square * square)) - 1.0) % size


def expected_bag(expander, feature, id):
    if id == -1:
        return []
    key = splitmix64(expander.seed, feature)
    size, hotness = expander.vocabulary_sizes[feature], expander.hotness[feature]
    words = [splitmix64(jump(key, id), place) for place in range(1, hotness)]
    return [id] + [draw(word, size, expander.distribution) for word in words]


def random_ids(sizes, num_rows, missing=0.0, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(0, size, num_rows) for size in sizes], axis=1)
    ids[0], ids[-1] = 0, np.array(sizes) - 1
    return np.where(rng.random(ids.shape) < missing, -1, ids)


def to_ragged(ids):
    bags = tf.RaggedTensor.from_row_lengths(
        ids[ids >= 0].astype(np.int64), (ids.ravel() >= 0).astype(np.int64)
    )
    return tf.RaggedTensor.from_uniform_row_length(bags, ids.shape[1], len(ids))


def expand(expander, ids):
    return expander.expand({"sparse_features": ids})["sparse_features"]


def test_the_oracle_is_splitmix64():
    """The numbers published for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [splitmix64(1234567, i) for i in range(3)] == published
    assert [jump(1234567, i) for i in range(3)] == published


VECTORS = {  # of a program in C that follows the definition
    (0, "uniform"): [
        [7, 49, 380, 575, 838, 765, 177],
        [2, 0, 2, 0, 0, 1, 1],
        [39999999, 3411182, 9786949, 24598607, 36900966, 17977914, 32180145],
    ],
    (0, "pareto"): [
        [7, 954, 46, 8, 1, 1, 17],
        [2, 1, 1, 0, 2, 1, 0],
        [39999999, 18905, 278, 5, 0, 23, 1],
    ],
    (1, "uniform"): [
        [7, 341, 907, 486, 366, 562, 158],
        [2, 0, 2, 1, 0, 0, 1],
        [39999999, 13727043, 23342493, 20232912, 33060404, 8666694, 14256164],
    ],
    (1, "pareto"): [
        [7, 72, 0, 16, 54, 9, 589],
        [2, 1, 2, 2, 0, 1, 2],
        [39999999, 71, 7, 14, 1, 452, 60],
    ],
}


@pytest.mark.parametrize("seed, distribution", VECTORS.keys())
def test_vectors(seed, distribution):
    """Files of bags were made with them: they may never change."""
    expander = MultiHot([1000, 3, 40_000_000], [7, 7, 7], distribution, seed)
    bags = VECTORS[seed, distribution]
    ids = np.array([[bag[0] for bag in bags]])
    values, _ = expander.expand_ids(ids)
    assert values.reshape(3, 7).tolist() == bags
    assert expand(expander, ids).to_list() == [bags]


@pytest.mark.breadth(1)
@each_set
@each_distribution
@pytest.mark.parametrize("missing", [0.0, 0.3], ids=["full", "missing"])
def test_all_forms_equal_the_definition(sizes, hotness, distribution, missing):
    expander = MultiHot(sizes, hotness, distribution, seed=2**63 - 1)
    ids = random_ids(sizes, 6, missing)
    bags = [
        [expected_bag(expander, f, id) for f, id in enumerate(row)]
        for row in ids.tolist()
    ]
    flat = [id for row in bags for bag in row for id in bag]
    values, lengths = expander.expand_ids(ids)
    assert (values.dtype, lengths.dtype) == (np.int64, np.int32)
    assert values.tolist() == flat
    assert lengths.tolist() == [[len(bag) for bag in row] for row in bags]
    inputs = {"dense": tf.constant(ids), "array": ids, "ragged": to_ragged(ids)}
    if max(sizes) <= 2**31:
        narrow = ids.astype(np.int32)
        inputs["int32"] = narrow
        inputs["int32 ragged"] = tf.cast(to_ragged(ids), tf.int32)
        values, lengths = expander.expand_ids(narrow)
        assert values.dtype == np.int32 and values.tolist() == flat
    for form, ids in inputs.items():
        found = expand(expander, ids)
        assert found.dtype == tf.int64, form
        assert found.to_list() == bags, form
        if form in ("int32", "ragged"):
            run = tf.function(lambda ids: expand(expander, ids))
            assert run(ids).to_list() == bags, form


@each_distribution
def test_numpy_and_tensorflow_agree_on_many(distribution):
    """More bags, and batches of more than one block, than plain Python can do."""
    expander = MultiHot(MLPERF_SIZES, distribution=distribution, seed=5)
    ids = random_ids(MLPERF_SIZES, 3000, 0.01)
    values, lengths = expander.expand_ids(ids)
    found = expand(expander, ids)
    assert np.array_equal(found.flat_values, values)
    assert np.array_equal(found.values.row_lengths(), lengths.ravel())
    assert values.min() == 0
    firsts = np.cumsum(lengths) - lengths.ravel()
    assert np.array_equal(values[firsts[ids.ravel() >= 0]], ids[ids >= 0])
    owners = np.repeat(np.tile(np.arange(26), len(ids)), lengths.ravel())
    assert (values < np.array(MLPERF_SIZES)[owners]).all()


def test_the_sizes_are_those_of_mlperf():
    expander = MultiHot(MLPERF_SIZES)
    values, lengths = expander.expand_ids(random_ids(MLPERF_SIZES, 5).astype(np.int32))
    assert len(MLPERF_HOTNESS) == 26 and values.shape == (5 * 214,)
    assert (lengths == MLPERF_HOTNESS).all()


@pytest.mark.parametrize("size", [2**31, 2**31 + 1])
def test_values_are_int32_only_where_all_ids_fit(size):
    ids = np.arange(500, dtype=np.int32)[:, None]
    values, _ = MultiHot([size], [9]).expand_ids(ids)
    wide, _ = MultiHot([size], [9]).expand_ids(ids.astype(np.int64))
    assert values.dtype == (np.int32 if size == 2**31 else np.int64)
    assert np.array_equal(values, wide) and wide.max() > 2**30


def test_a_bag_depends_on_its_feature_id_and_seed_alone():
    sizes, hotness = [1000] * 3, [20] * 3
    ids = random_ids(sizes, 400)
    ids[100] = ids[300]
    bags = MultiHot(sizes, hotness).expand_ids(ids)[0].reshape(400, 3, 20)
    assert np.array_equal(bags[100], bags[300])
    again = MultiHot(sizes, hotness).expand_ids(ids[::-1])[0].reshape(400, 3, 20)
    assert np.array_equal(again, bags[::-1])
    alone = expand(MultiHot(sizes, hotness), ids[7:8])
    assert alone.flat_values.numpy().tolist() == bags[7].ravel().tolist()
    shorter = MultiHot(sizes, [20, 3, 20]).expand_ids(ids)[0].reshape(400, 43)
    assert np.array_equal(shorter[:, 20:23], bags[:, 1, :3])
    # Two independent draws are equal once in a thousand times.
    same = np.array([[5, 5, 5], [6, 6, 6]])
    bags = MultiHot(sizes, hotness).expand_ids(same)[0].reshape(6, 20)
    other = MultiHot(sizes, hotness, seed=1).expand_ids(same)[0].reshape(6, 20)
    all_bags = np.concatenate([bags, other])[:, 1:]
    for i in range(12):
        for j in range(i):
            assert (all_bags[i] == all_bags[j]).sum() <= 2


def test_ids_out_of_range_stay_alone_for_the_model_to_judge():
    expander = MultiHot([10, 20], [3, 2])
    ids = np.array([[1, 20], [-2, -1], [2**40, 19]])
    found = expand(expander, ids)
    lengths = [[len(bag) for bag in row] for row in found.to_list()]
    assert lengths == [[3, 1], [1, 0], [1, 2]]
    assert found[0][1].numpy().tolist() == [20] and found[1][0].numpy().tolist() == [-2]
    tables = [tf_dlrm.EmbeddingTable(n, size, 4) for n, size in (("a", 10), ("b", 20))]
    collection = tf_dlrm.layers.EmbeddingCollection(tables)
    with pytest.raises(tf.errors.InvalidArgumentError, match="table b received id 20"):
        collection(expand(expander, ids[:1]))
    assert collection(expand(expander, [[1, -1]])).shape == (1, 2, 4)


def test_in_a_pipeline():
    sizes, hotness = (100, 7, 50), (4, 1, 9)
    expander = MultiHot(sizes, hotness, "pareto")
    ids = random_ids(sizes, 40, missing=0.1)
    values, lengths = expander.expand_ids(ids)
    features = {
        "dense_features": np.arange(40, dtype=np.float32)[:, None],
        "sparse_features": ids,
    }
    rows = tf.data.Dataset.from_tensor_slices((features, np.arange(40)))
    batches = rows.batch(10, drop_remainder=True).map(
        lambda features, label: (expander.expand(features), label)
    )
    spec = batches.element_spec[0]["sparse_features"]
    assert (spec.dtype, spec.ragged_rank) == (tf.int64, 2)
    assert spec.shape.as_list() == [10, 3, None]
    unknown = rows.batch(7).map(lambda features, label: expander.expand(features))
    assert unknown.element_spec["sparse_features"].shape.as_list() == [None, 3, None]
    for dataset in (batches.map(lambda x, _: x), unknown, unknown.rebatch(12)):
        parts = list(dataset)
        assert all(part["sparse_features"].shape[1] == 3 for part in parts)
        assert all(part["sparse_features"].uniform_row_length == 3 for part in parts)
        sparse = [part["sparse_features"] for part in parts]
        assert np.array_equal(np.concatenate([s.flat_values for s in sparse]), values)
        found = np.concatenate([s.values.row_lengths() for s in sparse])
        assert np.array_equal(found, lengths.ravel())
        dense = np.concatenate([part["dense_features"] for part in parts])
        assert np.array_equal(dense, features["dense_features"])


def test_ragged_batches_in_a_pipeline_keep_their_shape():
    """As the parser gives them, and as `tf.gather` leaves them: not uniform."""
    expander = MultiHot((100, 7), (4, 2))
    ids = random_ids((100, 7), 12, missing=0.2)
    values, _ = expander.expand_ids(ids)
    batches = tf.data.Dataset.from_tensors({"sparse_features": to_ragged(ids)})
    batches = batches.map(expander.expand)
    assert batches.element_spec["sparse_features"].shape.as_list() == [12, 2, None]
    (features,) = batches
    assert np.array_equal(features["sparse_features"].flat_values, values)
    loose = tf.gather(to_ragged(ids), np.arange(12))
    assert loose.uniform_row_length is None
    found = expand(expander, loose)
    assert np.array_equal(found.flat_values, values) and found.shape[1] == 2


@pytest.mark.parametrize("form", [tf.constant, to_ragged], ids=["dense", "ragged"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_empty_batches_and_bags(form, distribution):
    expander = MultiHot((5, 6), (3, 2), distribution)
    none = np.zeros((0, 2), np.int64)
    found = expand(expander, form(none))
    assert found.shape.as_list() == [0, 2, None]
    values, lengths = expander.expand_ids(none)
    assert values.shape == (0,) and lengths.shape == (0, 2)
    missing = np.full((3, 2), -1)
    assert expand(expander, form(missing)).to_list() == [[[], []]] * 3
    values, lengths = expander.expand_ids(missing)
    assert values.shape == (0,) and not lengths.any()


def test_in_a_saved_graph(tmp_path):
    expander = MultiHot(MLPERF_SIZES, distribution="pareto")
    module = tf.Module()

    @tf.function(input_signature=[tf.TensorSpec((None, 26), tf.int64)])
    def serve(ids):
        found = expand(expander, ids)
        return {"values": found.flat_values, "row_splits": found.values.row_splits}

    module.serve = serve
    tf.saved_model.save(module, str(tmp_path), signatures=serve)
    ids = random_ids(MLPERF_SIZES, 9, missing=0.1)
    served = tf.saved_model.load(str(tmp_path)).serve(tf.constant(ids))
    values, lengths = expander.expand_ids(ids)
    assert np.array_equal(served["values"], values)
    assert np.array_equal(np.diff(served["row_splits"]), lengths.ravel())


def test_numpy_takes_no_more_than_its_result_and_a_block():
    """A row of 214 int32 ids takes 856 bytes; there are three buffers of 26 a row."""
    expander = MultiHot(MLPERF_SIZES)
    ids = random_ids(MLPERF_SIZES, 20_000).astype(np.int32)
    tracemalloc.start()
    try:
        values, lengths = expander.expand_ids(ids)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert values.nbytes == 20_000 * 856
    assert held < values.nbytes + lengths.nbytes + 100_000
    assert peak < held + 3_000_000


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


@pytest.mark.integration
def test_memory_stays_flat_over_many_batches():
    """A batch of 2048 rows has 3.5 MB of ids: keeping a tenth would show."""
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("the size of the process is read from /proc")
    expander = MultiHot(MLPERF_SIZES)
    rows = tf.constant(random_ids(MLPERF_SIZES, 4096))
    batches = tf.data.Dataset.range(100).map(
        lambda i: expander.expand({"sparse_features": rows[i : i + 2048]})
    )
    sizes = []
    for _ in batches:
        sizes.append(resident_bytes())
    assert sizes[-1] - sizes[20] < 0.1 * 80 * 2048 * 214 * 8


def test_config():
    sizes = np.array([10, 20])
    expander = MultiHot(sizes, [np.int32(3), 2], "pareto", seed=np.int64(9))
    config = json.loads(json.dumps(expander.get_config()))
    assert config == {
        "vocabulary_sizes": [10, 20],
        "hotness": [3, 2],
        "distribution": "pareto",
        "seed": 9,
    }
    again = MultiHot.from_config(config)
    assert again.get_config() == config
    ids = random_ids([10, 20], 5)
    assert np.array_equal(again.expand_ids(ids)[0], expander.expand_ids(ids)[0])
    assert pipelines.MultiHot is MultiHot


def test_the_default_hotness_is_for_26_features():
    with pytest.raises(ValueError, match="26 numbers in `hotness`, 2 in"):
        MultiHot([5, 6])
