"""Each signature gives what the model gives, and says what is wrong with a request."""

import json
import pathlib
import sys
import warnings

import numpy as np
import pytest
import tensorflow as tf

import pipelines
import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec
from tf_dlrm.serving.c_library import read_recorded
from tf_dlrm.serving.requests import make_requests
from tf_dlrm.serving.signatures import ServingModule

SIZES = (500, 7, 30, 12)
NUM_ROWS = 9


def make_spec(widths):
    tables = [
        EmbeddingTable(f"C{i}", n, w) for i, (n, w) in enumerate(zip(SIZES, widths))
    ]
    return FeatureSpec(("I0", "I1", "I2"), tables)


@pytest.fixture(
    scope="module",
    params=[
        "equal widths",
        pytest.param("different widths", marks=pytest.mark.integration),
    ],
)
def exported(request, tmp_path_factory):
    """Model, its loaded signatures; candidates differ in I1, C0 and C3."""
    equal = request.param == "equal widths"
    interaction = "dot" if equal else "cat"
    spec = make_spec((8,) * 4 if equal else (8, 4, 4, 6))
    model = tf_dlrm.DLRM(spec, (8, 8), (8, 1), interaction=interaction)
    path = tf_dlrm.export_saved_model(
        model,
        tmp_path_factory.mktemp("model"),
        max_hotness=3,
        candidate_features=("C3", "I1", "C0"),
    )
    loaded = tf.saved_model.load(path)
    return model, loaded.signatures, loaded


def make_features(num_rows=NUM_ROWS, seed=0):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.integers(-1, n, (num_rows, 3)) for n in SIZES], axis=1)
    dense = rng.normal(size=(num_rows, 3)).astype("float32")
    return dense, ids


def to_ragged(ids):
    lengths = (ids >= 0).sum(axis=2)
    return ids[ids >= 0], lengths


def probabilities(signature, **features):
    constants = {
        name: tf.constant(value, tf.float32 if "dense" in name else tf.int64)
        for name, value in features.items()
    }
    return signature(**constants)["probabilities"].numpy()


@pytest.mark.breadth(0)
@pytest.mark.parametrize("flat", [False, True])
def test_ragged_equals_the_model(exported, flat):
    model, signatures, _ = exported
    dense, ids = make_features()
    expected = model.predict(
        {"dense_features": dense, "sparse_features": ids}, verbose=0
    )
    values, lengths = to_ragged(ids)
    got = probabilities(
        signatures["serving_ragged"],
        dense_features=dense,
        sparse_values=values,
        sparse_row_lengths=lengths.reshape(-1) if flat else lengths,
    )
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.integration
def test_ragged_without_rows_or_ids(exported):
    _, signatures, _ = exported
    ragged = signatures["serving_ragged"]
    none = {"sparse_values": [], "sparse_row_lengths": np.zeros((0, 4))}
    got = probabilities(ragged, dense_features=np.zeros((0, 3)), **none)
    assert got.shape == (0, 1)
    empty = {"sparse_values": [], "sparse_row_lengths": np.zeros((2, 4))}
    got = probabilities(ragged, dense_features=np.zeros((2, 3)), **empty)
    assert np.isfinite(got).all() and got[0] == got[1]


@pytest.mark.parametrize(
    "lengths, values, message",
    [
        ([[1, 1, 1]], [0, 0, 0], "an entry for each of the 4 sparse features"),
        ([[1, 1, 1, 1]], [0, 0, 0], "must add up to the number"),
        ([[1, 1, 1, 1]], [0] * 5, "must add up to the number"),
        ([[2, 1, 1, -1]], [0, 0, 0], "must not be negative"),
    ],
)
def test_lengths_that_do_not_fit_are_invalid_arguments(
    exported, lengths, values, message
):
    _, signatures, _ = exported
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        probabilities(
            signatures["serving_ragged"],
            dense_features=np.zeros((1, 3)),
            sparse_values=values,
            sparse_row_lengths=lengths,
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_dense_value_that_is_not_finite_is_missing(exported, bad):
    _, signatures, _ = exported
    dense, ids = make_features(2)
    default = signatures["serving_default"]
    dense[0, 1] = 0
    expected = probabilities(default, dense_features=dense, sparse_features=ids)
    dense[0, 1] = bad
    got = probabilities(default, dense_features=dense, sparse_features=ids)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.breadth(2)
@pytest.mark.parametrize("num_items", [0, 1, 5])
def test_candidates_equal_rows_that_repeat_the_context(exported, num_items):
    model, signatures, _ = exported
    dense, ids = make_features(max(num_items, 1))
    dense[:, [0, 2]], ids[:, [1, 2]] = dense[:1, [0, 2]], ids[:1, [1, 2]]
    got = probabilities(
        signatures["serving_candidates"],
        dense_features=dense[:1, [0, 2]],
        sparse_features=ids[:1, [1, 2]],
        candidate_dense_features=dense[:num_items, [1]],
        candidate_sparse_features=ids[:num_items, [0, 3]],
    )
    features = {"dense_features": dense, "sparse_features": ids}
    expected = model.predict(features, verbose=0)[:num_items]
    assert got.shape == (num_items, 1)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_shared_rows_of_candidates_are_read_once():
    """A lookup has the columns it is asked for, and as many rows as it is given."""
    model = tf_dlrm.DLRM(make_spec((8,) * 4), (8, 8), (8, 1))
    module = ServingModule(model, 3, candidate_features=("C3", "C0"))
    graph = module.functions["serving_candidates"].get_concrete_function().graph
    rows = [op.inputs[1].shape.as_list() for op in graph.get_operations()
            if op.type == "ResourceGather"]  # fmt: skip
    assert sorted(rows, key=str) == [[1, 2, 3], [None, 2, 3]]


def test_numbers_of_candidates_must_agree(exported):
    _, signatures, _ = exported
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="a row for each candidate"
    ):
        probabilities(
            signatures["serving_candidates"],
            dense_features=np.zeros((1, 2)),
            sparse_features=np.zeros((1, 2, 3)),
            candidate_dense_features=np.zeros((2, 1)),
            candidate_sparse_features=np.zeros((3, 2, 3)),
        )


@pytest.mark.parametrize(
    "names, message",
    [
        (("C9",), r"unknown: \['C9'\]"),
        (("C0", "C0"), "each once"),
        (("I1",), "at least one sparse feature"),
    ],
)
def test_candidate_features_are_checked(names, message, tmp_path):
    model = tf_dlrm.DLRM(make_spec((8,) * 4), (8, 8), (8, 1))
    with pytest.raises(ValueError, match=message):
        tf_dlrm.export_saved_model(model, tmp_path, candidate_features=names)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def from_raw(tmp_path_factory):
    values = [[b"a%d" % i, b"b%d" % i, b"\xff"] for i in range(26)]
    parser = pipelines.criteo.Parser(pipelines.vocabulary.Vocabulary(values))
    model = tf_dlrm.DLRM(parser.spec(8), (8, 8), (8, 1))
    folder = tmp_path_factory.mktemp("raw")
    path = tf_dlrm.export_saved_model(model, folder, preprocessor=parser)
    loaded = tf.saved_model.load(path)
    return loaded.signatures, loaded, pathlib.Path(path)


def to_example(integers, values):
    """A serialized tf.Example; None: the feature is not there."""
    features = {}
    for i, value in enumerate(integers, start=1):
        if value is not None:
            ints = value if isinstance(value, list) else [value]
            int64_list = tf.train.Int64List(value=ints)
            features[f"I{i}"] = tf.train.Feature(int64_list=int64_list)
    for i, bag in enumerate(values, start=1):
        if bag is not None:
            bytes_list = tf.train.BytesList(value=bag)
            features[f"C{i}"] = tf.train.Feature(bytes_list=bytes_list)
    message = tf.train.Example(features=tf.train.Features(feature=features))
    return message.SerializeToString()


def to_line(integers, values):
    fields = [b"" if i is None else b"%d" % i for i in integers]
    fields += [b"" if bag is None else b",".join(bag) for bag in values]
    return b"\t".join(fields)


@pytest.mark.integration
def test_examples_equal_lines(from_raw):
    signatures, *_ = from_raw
    rng = np.random.default_rng(0)
    bags = ([b"a3"], [b"b4", b"a4"], [b"never seen"], [b""], [b"", b"a5"], [], None,
            [b"\xff"], [b"a1", b"a1", b"zz"], [b"", b""])  # fmt: skip
    rows = []
    for _ in range(40):
        integers = [int(i) for i in rng.integers(-3, 10**6, 13)]
        integers[rng.integers(13)] = None
        integers[rng.integers(13)] = (1 << 62) + 1
        rows.append((integers, [bags[i] for i in rng.integers(0, len(bags), 26)]))
    examples = tf.constant([to_example(*row) for row in rows])
    lines = tf.constant([to_line(*row) for row in rows])
    got = signatures["serving_examples"](examples=examples)["probabilities"]
    expected = signatures["serving_tsv"](lines=lines)["probabilities"]
    np.testing.assert_array_equal(got, expected)
    assert len(np.unique(got)) == 40
    none = signatures["serving_examples"](examples=tf.constant([], tf.string))
    assert none["probabilities"].shape == (0, 1)


@pytest.mark.integration
@pytest.mark.parametrize(
    "example, message",
    [
        (to_example([[1, 2]], []), "I1 must have no value or one"),
        (b"no message", "Not a tf.Example, or truncated"),
        (to_example([], [[b"x"]]).replace(b"C1", b"I1"), "(?i)data type|I1"),
    ],
)
def test_examples_that_are_none_are_invalid_arguments(from_raw, example, message):
    signatures, *_ = from_raw
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        signatures["serving_examples"](examples=tf.constant([example]))


@pytest.mark.integration
@pytest.mark.parametrize("line", [b"", b"1\t2", b"\t" * 38 + b"\r\t"])
def test_lines_that_are_none_are_invalid_arguments(from_raw, line):
    signatures, *_ = from_raw
    with pytest.raises(tf.errors.InvalidArgumentError, match="Not a row"):
        signatures["serving_tsv"](lines=tf.constant([line]))


@pytest.mark.integration
def test_the_description_names_what_examples_hold(from_raw):
    text = (from_raw[2] / "assets.extra/tf_dlrm.json").read_text()
    described = json.loads(text)["example_features"]
    assert list(described) == [f"I{i}" for i in range(1, 14)] + [
        f"C{i}" for i in range(1, 27)
    ]


@pytest.mark.integration
def test_requests_are_recorded_with_answers(from_raw):
    signatures, _, path = from_raw
    recorded = read_recorded(path)
    assert {each.signature for each in recorded} == set(signatures)
    for request in recorded:
        inputs = {name: tf.constant(value) for name, value in request.inputs.items()}
        got = signatures[request.signature](**inputs)["probabilities"]
        np.testing.assert_allclose(got, request.probabilities, atol=1e-6)


def test_recorded_requests_that_are_damaged_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no recorded requests"):
        read_recorded(tmp_path)
    (tmp_path / "assets.extra").mkdir()
    (tmp_path / "assets.extra/tf_dlrm_requests.json").write_text('[{"signature": 1}]')
    with pytest.raises(ValueError, match="is damaged"):
        read_recorded(tmp_path)


@pytest.mark.integration
def test_warm_up_requests_read_back(from_raw):
    """By the messages of TensorFlow Serving, which have no field that is unknown."""
    apis = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    signatures, _, path = from_raw
    file = str(path / "assets.extra/tf_serving_warmup_requests")
    found = set()
    for record in tf.data.TFRecordDataset(file):
        log = apis.PredictionLog.FromString(record.numpy())
        request = log.predict_log.request
        assert log.WhichOneof("log_type") == "predict_log"
        assert log.ByteSize() == len(record.numpy())
        assert apis.PredictionLog.FromString(_rewritten(log)) == log
        inputs = {name: tf.make_ndarray(v) for name, v in request.inputs.items()}
        assert request.model_spec.name == path.parent.name
        name = request.model_spec.signature_name
        got = signatures[name](**{k: tf.constant(v) for k, v in inputs.items()})
        found.add((name, got["probabilities"].shape[0]))
        # A server that batches refuses others, and so the whole model.
        assert len({len(value) for value in inputs.values()}) == 1
    assert found == {(name, size) for name in signatures for size in (1, 8, 64)}


def _rewritten(log):
    """The same request built anew by TensorFlow Serving's own classes."""
    request = log.predict_log.request
    again = type(log)()
    again.predict_log.request.model_spec.name = request.model_spec.name
    signature = request.model_spec.signature_name
    again.predict_log.request.model_spec.signature_name = signature
    for name, value in request.inputs.items():
        tensor = tf.make_tensor_proto(tf.make_ndarray(value))
        again.predict_log.request.inputs[name].CopyFrom(tensor)
    return again.SerializeToString()


@pytest.mark.integration
def test_an_export_takes_and_says_nothing_of_serving_apis(tmp_path, monkeypatch):
    for name in ("tensorflow_serving", "tensorflow_serving.apis"):
        monkeypatch.setitem(sys.modules, name, None)
    model = tf_dlrm.DLRM(make_spec((8,) * 4), (8, 8), (8, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        path = tf_dlrm.export_saved_model(model, tmp_path)
    file = f"{path}/assets.extra/tf_serving_warmup_requests"
    assert len(list(tf.data.TFRecordDataset(file))) > 0


def test_warm_up_requests_of_a_server_that_batches(tmp_path):
    """One of each size that all inputs can have; one candidate."""
    model = tf_dlrm.DLRM(make_spec((8,) * 4), (8, 8), (8, 1))
    module = ServingModule(model, 3, candidate_features=("C3", "C0"))
    recorded, for_warm_up = make_requests(model, module, None, 5, (1, 8))
    assert [each.signature for each in recorded] == list(module.functions)
    sizes = [(each.signature, len(each.probabilities)) for each in for_warm_up]
    assert sizes == [
        ("serving_default", 1),
        ("serving_ragged", 1),
        ("serving_candidates", 1),
        ("serving_default", 8),
        ("serving_ragged", 8),
    ]
    for each in for_warm_up:
        assert len({len(value) for value in each.inputs.values()}) == 1
        # Rows that a server adds to reach an allowed size repeat the first one.
        longer = {k: np.concatenate([v, v[:1]]) for k, v in each.inputs.items()}
        if each.signature != "serving_candidates":
            constants = {k: tf.constant(v) for k, v in longer.items()}
            got = module.functions[each.signature](*constants.values())
            np.testing.assert_allclose(
                got["probabilities"][:-1], each.probabilities, atol=1e-6
            )
