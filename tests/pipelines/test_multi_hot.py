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


@pytest.mark.breadth(3)
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


def drawn_ids(size, distribution, num_ids, num_draws):
    """Draws for the first ids of one feature, `(num_ids, num_draws)`."""
    expander = MultiHot([size], [1 + num_draws], distribution)
    values, _ = expander.expand_ids(np.arange(num_ids)[:, None])
    return values.reshape(num_ids, 1 + num_draws)[:, 1:]


def chi_square_is_near(counts, expected):
    """Within 5 standard deviations of its mean, in the normal limit."""
    chi_square = ((counts - expected) ** 2 / expected).sum()
    degrees = len(counts) - 1
    return abs(chi_square - degrees) < 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("size", [3, 50, 4096])
def test_uniform_ids_are_uniform(size):
    drawn = drawn_ids(size, "uniform", size, 300_000 // size)
    counts = np.bincount(drawn.ravel())
    assert len(counts) == size
    assert chi_square_is_near(counts, drawn.size / size)


def test_large_vocabularies_are_covered_evenly():
    size = 40_000_000
    drawn = drawn_ids(size, "uniform", 100_000, 10)
    counts, _ = np.histogram(drawn, bins=400, range=(0, size))
    assert chi_square_is_near(counts, drawn.size / 400)
    counts = np.bincount(drawn.ravel() % 1024)
    assert chi_square_is_near(counts, drawn.size / 1024)


def test_places_and_neighbours_are_not_correlated():
    """Neither ids side by side nor places side by side; 5 standard deviations."""
    drawn = drawn_ids(100_000, "uniform", 100_000, 4).astype(float)
    for left, right in [
        (drawn[:-1, 0], drawn[1:, 0]),
        (drawn[:, 0], drawn[:, 1]),
        (drawn[:-1, 1], drawn[1:, 0]),
        (drawn[:, 0], np.arange(100_000.0)),
    ]:
        assert abs(np.corrcoef(left, right)[0, 1]) < 5 / math.sqrt(len(left))


@pytest.mark.parametrize("size, num_folds", [(3, 300_000), (50, 20_000), (5000, 200)])
def test_pareto_ids_follow_the_cdf(size, num_folds):
    """The CDF is 1 - (1 + x)^(-1/4), folded modulo the size; what lies beyond the
    folds, 3 % of it, is as good as even."""
    survival = (1.0 + np.arange(size * num_folds + 1)) ** -0.25
    folds = -np.diff(survival).reshape(num_folds, size)
    probabilities = folds.sum(axis=0) + survival[-1] / size
    assert (np.diff(probabilities) < 0).all()
    drawn = drawn_ids(size, "pareto", size, 300_000 // size)
    counts = np.bincount(drawn.ravel(), minlength=size)
    expected = probabilities * drawn.size
    assert (np.diff(counts[:4]) < 0).all()
    # Id by id where 40 or more are expected, the others in bins of as many ids.
    edges = np.flatnonzero(np.diff(np.cumsum(expected) // 40, prepend=-1))
    assert chi_square_is_near(
        np.add.reduceat(counts, edges), np.add.reduceat(expected, edges)
    )


def test_pareto_ids_of_large_vocabularies_favour_low_ones():
    """Of 40 million ids, half of the draws are of the first 15: 1 - 16^(-1/4). The
    draws beyond the last id, 1.3 % of all, are folded onto 40 million."""
    drawn = drawn_ids(40_000_000, "pareto", 100_000, 10)
    assert abs((drawn < 15).mean() - 0.5) < 5 * 0.5 / math.sqrt(drawn.size)
    assert 39_000_000 < drawn.max() < 40_000_000


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


WRONG_ARGUMENTS = {
    "no size": (dict(vocabulary_sizes=[]), "`vocabulary_sizes` must be a sequence"),
    "one size": (dict(vocabulary_sizes=10), "`vocabulary_sizes` .*=10"),
    "text": (dict(vocabulary_sizes="12"), "`vocabulary_sizes` .*='12'"),
    "zero": (dict(vocabulary_sizes=[5, 0]), r"integers from 1 to .*=\[5, 0\]"),
    "huge": (dict(vocabulary_sizes=[5, 2**53 + 1]), f"from 1 to {2**53}"),
    "float": (dict(vocabulary_sizes=[5, 6.0]), "`vocabulary_sizes` .*6.0"),
    "bool": (dict(vocabulary_sizes=[5, True]), "`vocabulary_sizes` .*True"),
    "hotness": (dict(hotness=[1, 0]), r"`hotness` must be .*=\[1, 0\]"),
    "counts": (dict(hotness=[1]), "one number for each .* 1 numbers .* 2 in `voc"),
    "distribution": (dict(distribution="zipf"), "`distribution` must be .*'zipf'"),
    "seed": (dict(seed=-1), "`seed` must be .*seed=-1"),
    "large seed": (dict(seed=2**63), "`seed` must be an integer in"),
    "float seed": (dict(seed=1.0), "`seed` must be .*seed=1.0"),
}


@pytest.mark.parametrize(
    "arguments, text", WRONG_ARGUMENTS.values(), ids=WRONG_ARGUMENTS.keys()
)
def test_arguments_are_checked(arguments, text):
    with pytest.raises(ValueError, match=text):
        MultiHot(**{"vocabulary_sizes": [5, 6], "hotness": [1, 2], **arguments})


def test_the_default_hotness_is_for_26_features():
    with pytest.raises(ValueError, match="26 numbers in `hotness`, 2 in"):
        MultiHot([5, 6])


WRONG_IDS = {
    "float": (np.zeros((2, 2)), TypeError, "int32 or int64. Received: float64"),
    "rank": (np.zeros(2, int), ValueError, r"shape \(n, 2\). Received: \(2,\)"),
    "width": (np.zeros((2, 3), int), ValueError, r"Received: \(2, 3\)"),
    "large": (np.array([[1, 2], [1, 6]]), ValueError, "in column 1.*: 6 in row 1"),
    "negative": (np.array([[1, 2], [-2, 5]]), ValueError, "column 0.*: -2 in row 1"),
}


@pytest.mark.parametrize("ids, error, text", WRONG_IDS.values(), ids=WRONG_IDS.keys())
def test_ids_are_checked(ids, error, text):
    with pytest.raises(error, match=text):
        MultiHot([5, 6], [1, 2]).expand_ids(ids)


ZEROS = np.zeros((2, 2), np.int64)
WRONG_FEATURES = {
    "no ids": ({"label": 1}, ValueError, r"key 'sparse_features'.*\['label'\]"),
    "weights": (
        {"sparse_features": ZEROS, "sparse_weights": ZEROS},
        ValueError,
        "must not have 'sparse_weights'",
    ),
    "padded": (
        {"sparse_features": np.zeros((2, 2, 1), np.int64)},
        ValueError,
        r"must be \(batch, 2\) or ragged.*\(2, 2, 1\)",
    ),
    "width": ({"sparse_features": ZEROS[:, :1]}, ValueError, r"shape: \(2, 1\)"),
    "float": ({"sparse_features": ZEROS.astype(float)}, TypeError, "int32 or int64"),
}


@pytest.mark.parametrize(
    "features, error, text", WRONG_FEATURES.values(), ids=WRONG_FEATURES.keys()
)
def test_features_are_checked(features, error, text):
    with pytest.raises(error, match=text):
        MultiHot([5, 6], [1, 2]).expand(features)


@pytest.mark.parametrize("wrap", [lambda f: f, tf.function], ids=["eager", "graph"])
def test_only_one_hot_rows_can_be_expanded(wrap):
    expander = MultiHot([5, 6], [3, 2])
    ids = tf.ragged.constant([[[1], [2]], [[], [1, 3]]])
    text = r"must have at most one id in a bag (?s:.*)many ids:\D*\b2\b"
    with pytest.raises(tf.errors.InvalidArgumentError, match=text):
        wrap(lambda ids: expand(expander, ids).flat_values)(ids)
