import gc
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
from helpers import criteo_oracle

from pipelines import criteo
from pipelines.vocabulary import HashVocabulary, Vocabulary

HASHED = HashVocabulary([1000 + i for i in range(26)])
GOOD = b"1\t" + b"\t".join([b"5"] * 13 + [b"0c1e8f72"] * 26)


@pytest.fixture(scope="module")
def vocabulary():
    values = [[b"%08x" % (i**3) for i in range(20)] for _ in range(26)]
    odd = [b"a", b"\xff\xfe", b"a\x00b", b"\x00", b'"', b" ", b"#", b"\xef\xbb\xbf"]
    return Vocabulary([column + odd[i % 3 :] for i, column in enumerate(values)])


def make_ids(vocabulary):
    if isinstance(vocabulary, HashVocabulary):
        return criteo_oracle.hash_ids(vocabulary.sizes)
    return criteo_oracle.table_ids(vocabulary)


def assert_parsed(features, label, expected):
    """Compares exactly; `expected` is a list of (label, dense, bags)."""
    dense = np.array([row[1] for row in expected], np.float32).reshape(-1, 13)
    np.testing.assert_array_equal(features["dense_features"].numpy(), dense)
    sparse = features["sparse_features"]
    lengths = [len(bag) for row in expected for bag in row[2]]
    values = [i for row in expected for bag in row[2] for i in bag]
    assert sparse.dtype == tf.int64
    assert sparse.ragged_rank == 2
    assert sparse.shape.as_list() in ([None, 26, None], [len(expected), 26, None])
    assert sparse.flat_values.shape.rank == 1
    np.testing.assert_array_equal(sparse.flat_values.numpy(), values)
    splits = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    np.testing.assert_array_equal(sparse.values.row_splits.numpy(), splits)
    if label is not None:
        assert label.dtype == tf.float32
        np.testing.assert_array_equal(label.numpy(), [row[0] for row in expected])


@pytest.fixture(scope="module", params=["eager", "graph"])
def run(request):
    """Calls a function of lines as it is, or as a graph of unknown batch size."""
    if request.param == "eager":
        return lambda function, lines: function(tf.constant(lines, tf.string))

    def call(function, lines):
        graph = tf.function(
            function, input_signature=[tf.TensorSpec((None,), tf.string)]
        )
        return graph(tf.constant(lines, tf.string))

    return call


@pytest.mark.breadth(1)
@pytest.mark.parametrize("name", ["kaggle", "terabyte", "unlabelled"])
@pytest.mark.parametrize("kind", ["vocabulary", "hash"])
def test_parser_equals_plain_python_on_real_rows(name, kind):
    path = criteo_oracle.real_path(name)
    lines = criteo_oracle.real_lines(name)
    _, num_rows, labelled = criteo_oracle.REAL_FILES[name]
    assert len(lines) == num_rows
    if kind == "hash":
        vocabulary = HASHED
        lines = lines[::7]  # SipHash in Python is slow
    else:
        path = criteo_oracle.real_path("kaggle")
        vocabulary = Vocabulary.build(path, min_count=3)
    ids = make_ids(vocabulary)
    expected = [criteo_oracle.parse(line, ids, labelled) for line in lines]
    parser = criteo.Parser(vocabulary)
    assert parser.is_valid(lines, labelled=labelled).numpy().all()
    if labelled:
        features, label = parser(lines)
    else:
        features, label = parser.features(lines), None
    assert_parsed(features, label, expected)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
def test_parser_equals_plain_python_on_hostile_lines(vocabulary, labelled, run):
    rng = np.random.default_rng(7)
    lines = criteo_oracle.hostile_lines(rng, 6000)
    ids = criteo_oracle.table_ids(vocabulary)
    expected = [criteo_oracle.parse(line, ids, labelled) for line in lines]
    parser = criteo.Parser(vocabulary)
    valid = run(lambda x: parser.is_valid(x, labelled=labelled), lines).numpy()
    truth = np.array([row is not None for row in expected])
    wrong = [(lines[i], bool(truth[i])) for i in np.flatnonzero(valid != truth)]
    assert not wrong, wrong[:3]
    reasons = [parser.reason(line, labelled) for line in lines]
    assert [reason is None for reason in reasons] == truth.tolist()
    assert 0.2 < truth.mean() < 0.8
    good = [line for line, is_good in zip(lines, truth) if is_good]
    parse = parser if labelled else lambda x: (parser.features(x), None)
    features, label = run(parse, good)
    assert_parsed(features, label, [row for row in expected if row is not None])


BAGS = {
    b"": [0],
    b"a": [1],
    b"a,b": [1, 2],
    b"b,,a,": [2, 1],
    b"a,a": [1, 1],
    b"a,unknown": [1, 0],
    b",": [],
    b",,": [],
}


@pytest.mark.breadth(2)
@pytest.mark.parametrize("field", BAGS, ids=repr)
def test_bag_of_a_field(field, run):
    parser = criteo.Parser(Vocabulary([[b"a", b"b"]] * 26))
    line = b"1" + b"\t5" * 13 + b"\ta" * 10 + b"\t" + field + b"\tb" * 15
    features, _ = run(parser, [line, line])
    bags = [[1]] * 10 + [BAGS[field]] + [[2]] * 15
    assert features["sparse_features"].to_list() == [bags, bags]


@pytest.mark.integration
def test_every_line_is_parsed_alone_as_in_a_batch(vocabulary):
    rng = np.random.default_rng(8)
    ids = criteo_oracle.table_ids(vocabulary)
    parser = criteo.Parser(vocabulary)
    graph = tf.function(
        parser.__call__, input_signature=[tf.TensorSpec((None,), tf.string)]
    )
    num_good = 0
    for line in criteo_oracle.hostile_lines(rng, 300):
        row = criteo_oracle.parse(line, ids)
        if row is None:
            with pytest.raises(tf.errors.InvalidArgumentError, match="Not a row"):
                graph([line])
        else:
            num_good += 1
            assert_parsed(*graph([line]), [row])
    assert num_good > 50


def test_integers_are_transformed_as_in_float64():
    numbers = np.concatenate([np.arange(-3, 20_000), 3 ** np.arange(33)])
    tail = b"\t".join([b"0"] * 12 + [b""] * 26)
    lines = [b"0\t%d\t%s" % (number, tail) for number in numbers.tolist()]
    features, _ = criteo.Parser(HASHED)(lines)
    expected = np.log(np.maximum(numbers.astype(np.float64), 0) + 1)
    np.testing.assert_array_equal(
        features["dense_features"][:, 0].numpy(), expected.astype(np.float32)
    )


@pytest.mark.breadth(2)
@pytest.mark.parametrize("call", ["parser", "features"])
def test_invalid_line_fails_and_is_shown(call, run):
    parser = criteo.Parser(HASHED)
    function = parser if call == "parser" else parser.features
    lines = [GOOD, GOOD + b"\r\n", b"1\t2\toops", GOOD]
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        run(function, lines)
    for part in ("Not a row of a Criteo log", "[2]", "[3]", "oops"):
        assert part.replace("[", "").replace("]", "") in str(error.value)


@pytest.mark.breadth(1)
def test_parser_needs_a_label_and_features_does_not(run):
    parser = criteo.Parser(HASHED)
    bare = GOOD[2:]
    with pytest.raises(tf.errors.InvalidArgumentError, match="Not a row"):
        run(parser, [GOOD, bare])
    features = run(parser.features, [GOOD, bare, b"0" + GOOD[1:]])
    rows = features["sparse_features"].to_tensor().numpy()
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Not a row"):
        run(parser.features, [b"5" + GOOD[1:]])


@pytest.mark.breadth(1)
def test_empty_batch(vocabulary, run):
    features, label = run(criteo.Parser(vocabulary), np.array([], object))
    assert_parsed(features, label, [])


def test_lines_must_be_a_vector():
    with pytest.raises(ValueError, match=r"shape \(batch,\).*\(\)"):
        criteo.Parser(HASHED)(tf.constant("line"))


@pytest.mark.integration
def test_static_shape_survives_map_and_batch():
    parser = criteo.Parser(HASHED)
    dataset = tf.data.Dataset.from_tensors(tf.constant([GOOD] * 3)).map(parser)
    for data in (dataset, dataset.rebatch(2), dataset.unbatch().batch(2)):
        features, label = data.element_spec
        assert features["dense_features"].shape.as_list()[1:] == [13]
        assert features["sparse_features"].shape.as_list()[1:] == [26, None]
        assert label.dtype == tf.float32
        for features, _ in data:
            assert features["sparse_features"].shape[1:].as_list() == [26, None]


def test_spec(vocabulary):
    spec = criteo.Parser(vocabulary).spec(embedding_dim=8)
    assert [table.vocabulary_size for table in spec.tables] == vocabulary.sizes
    assert spec.tables[25].embedding_dim == 8
    assert spec.num_dense == 13


def save_module(parser, path):
    """Saves a parser as a model with the signature `serving_tsv`."""
    module = tf.Module()
    module.parser = parser
    signature = [tf.TensorSpec((None,), tf.string, name="lines")]

    @tf.function(input_signature=signature)
    def serving_tsv(lines):
        features = parser.features(lines)
        sparse = features["sparse_features"]
        return {
            "dense": features["dense_features"],
            "values": sparse.flat_values,
            "row_splits": sparse.values.row_splits,
        }

    tf.saved_model.save(module, path, signatures={"serving_tsv": serving_tsv})


@pytest.mark.breadth(0)
@pytest.mark.parametrize("kind", ["vocabulary", "hash"])
def test_saved_model_parses_as_training_does_and_can_be_moved(
    tmp_path, vocabulary, kind
):
    vocabulary = vocabulary if kind == "vocabulary" else HASHED
    training = criteo.Parser(vocabulary)
    lines = criteo_oracle.hostile_lines(np.random.default_rng(9), 1000)
    lines = [line for line in lines if training.reason(line, False) is None]
    parser = training.for_serving()
    path = str(tmp_path / "first" / "1")
    save_module(parser, path)
    shutil.rmtree(parser._folder.name)
    os.mkdir(parser._folder.name)  # for its own clean-up
    moved = str(tmp_path / "elsewhere")
    shutil.move(path, moved)
    num_assets = 26 if kind == "vocabulary" else 0
    assert len(os.listdir(os.path.join(moved, "assets"))) == num_assets
    served = tf.saved_model.load(moved).signatures["serving_tsv"]
    found = served(lines=tf.constant(lines))
    features = training.features(lines)
    sparse = features["sparse_features"]
    np.testing.assert_array_equal(found["dense"], features["dense_features"])
    np.testing.assert_array_equal(found["values"], sparse.flat_values)
    np.testing.assert_array_equal(found["row_splits"], sparse.values.row_splits)
    with pytest.raises(tf.errors.InvalidArgumentError, match="Not a row"):
        served(lines=tf.constant([b"1\t2"]))


def test_for_serving_removes_its_folder(vocabulary):
    parser = criteo.Parser(vocabulary).for_serving()
    folder = parser._folder.name
    assert len(os.listdir(folder)) == 26
    del parser
    gc.collect()
    assert not os.path.exists(folder)


@pytest.mark.parametrize(
    "inside",
    [b"\xff\xfe\xfd", b"\n\x02\xff\xff", b"\n\x06\n\x02C1\x12\xff", b"\x12\x00"],
)
def test_damaged_examples_are_errors_that_can_be_printed(inside):
    """Not a UnicodeDecodeError of bytes that TensorFlow puts into its message."""
    parser = criteo.Parser(HashVocabulary(10))
    message = b"\n" + bytes([len(inside)]) + inside
    whole = tf.train.Example().SerializeToString()
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        parser.features_of_examples(tf.constant([whole, message]))
    assert "Invalid protocol message" in str(error.value)
