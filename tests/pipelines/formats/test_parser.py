"""The parser of any schema, against a plain reading of each line."""

import numpy as np
import pytest
import tensorflow as tf
from helpers import row_lines, row_oracle
from helpers.schema_vocabulary import make_vocabulary

from pipelines.formats.line_rules import LineRules
from pipelines.formats.parser import Parser
from pipelines.schema import Dense, Schema, Sparse, Text
from pipelines.vocabulary import Vocabulary


def expected_of(vocabulary, rows):
    """Dense, ids and weights of rows of the oracle."""
    dense = np.array([row.dense for row in rows], np.float32)
    ids = [
        [
            [vocabulary.find_value(i, v) for v, _ in bag]
            for i, bag in enumerate(row.bags)
        ]
        for row in rows
    ]
    weights = [[[weight for _, weight in bag] for bag in row.bags] for row in rows]
    return dense, ids, weights


def assert_features(features, vocabulary, rows):
    schema = vocabulary.schema
    dense, ids, weights = expected_of(vocabulary, rows)
    if schema.dense:
        np.testing.assert_array_equal(features["dense_features"].numpy(), dense)
    else:
        assert "dense_features" not in features
    sparse = features["sparse_features"]
    assert sparse.dtype == tf.int64 and sparse.ragged_rank == 2
    assert sparse.shape[1:].as_list() == [len(schema.sparse), None]
    assert sparse.to_list() == ids
    assert ("sparse_weights" in features) == schema.has_id_weights
    if schema.has_id_weights:
        found = features["sparse_weights"]
        assert found.dtype == tf.float32 and found.to_list() == weights


@pytest.fixture(scope="module", params=list(row_lines.SCHEMAS))
def schema(request):
    return row_lines.SCHEMAS[request.param]


@pytest.mark.breadth(4, 10)
@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
def test_parser_equals_plain_python_on_hostile_lines(schema, labelled):
    rng = np.random.default_rng(3)
    count = 300 if len(schema.columns) > 100 else 1500
    lines = [
        *row_lines.hostile_lines(rng, schema, count),
        *(b"", b"\n", b"\r\n", b"\xef\xbb\xbf", b"\x00", b'"'),
        *(schema.text.delimiter.encode() * k for k in range(len(schema.columns) + 2)),
    ]
    vocabulary = make_vocabulary(schema, hashed=range(1, 30, 3))
    parser = Parser(vocabulary)
    oracle = [
        row_oracle.parse(line, schema, row_lines.LEARNED, labelled) for line in lines
    ]
    truth = np.array([row is not None for row in oracle])
    assert truth.sum() > 100 or count < 1500 and truth.any()
    assert (~truth).sum() > 50
    rules = LineRules(schema)
    reasons = [rules.reason(line, labelled) for line in lines]
    wrong = [
        (line, row, why)
        for line, row, why in zip(lines, oracle, reasons)
        if (row is None) != (why is not None)
    ]
    assert not wrong, wrong[:3]
    signature = [tf.TensorSpec((None,), tf.string)]
    graph = tf.function(lambda x: parser.is_valid(x, labelled), signature)
    valid = graph(tf.constant(lines)).numpy()
    wrong = [
        (lines[i], bool(truth[i]), reasons[i]) for i in np.flatnonzero(valid != truth)
    ]
    assert not wrong, wrong[:3]
    good = [line for line, is_good in zip(lines, truth) if is_good]
    rows = [row for row in oracle if row is not None]
    parse = parser.__call__ if labelled else parser.features
    found = tf.function(parse, signature)(tf.constant(good))
    features = found[0] if labelled else found
    assert_features(features, vocabulary, rows)
    if labelled:
        assert len(found) == (3 if schema.weight is not None else 2)
        labels = [row.label for row in rows]
        np.testing.assert_array_equal(found[1].numpy(), np.float32(labels))
    if labelled and schema.weight is not None:
        weights = [row.sample_weight for row in rows]
        np.testing.assert_array_equal(found[2].numpy(), np.float32(weights))


@pytest.mark.integration
def test_every_line_is_parsed_alone_as_in_a_batch(schema):
    rng = np.random.default_rng(4)
    vocabulary = make_vocabulary(schema)
    parser = Parser(vocabulary)
    graph = tf.function(parser.__call__, [tf.TensorSpec((None,), tf.string)])
    num_good = 0
    for line in row_lines.hostile_lines(rng, schema, 60):
        row = row_oracle.parse(line, schema, row_lines.LEARNED)
        if row is None:
            with pytest.raises(tf.errors.InvalidArgumentError, match="Not a row"):
                graph([line])
        else:
            num_good += 1
            features, label, *_ = graph([line])
            assert_features(features, vocabulary, [row])
            assert label.numpy() == np.float32(row.label)
    assert num_good


@pytest.mark.breadth(2)
def test_empty_batch(schema):
    parser = Parser(make_vocabulary(schema))
    features, label, *_ = parser(tf.constant([], tf.string))
    assert features["sparse_features"].shape == (0, len(schema.sparse), None)
    assert label.shape == (0,)
    none = parser.features_of_examples(tf.constant([], tf.string))
    assert none["sparse_features"].shape == (0, len(schema.sparse), None)
    if schema.dense:
        assert features["dense_features"].shape == (0, len(schema.dense))
        assert none["dense_features"].shape == (0, len(schema.dense))


@pytest.mark.breadth(2)
def test_sample_lines_are_rows_and_examples_equal_them(schema):
    vocabulary = make_vocabulary(schema, hashed=(1,))
    parser = Parser(vocabulary)
    lines = parser.sample_lines(40)
    assert [parser.reason(line, labelled=False) for line in lines] == [None] * 40
    from_lines = parser.features(lines)
    rows = [row_oracle.parse(x, schema, row_lines.LEARNED, False) for x in lines]
    assert_features(from_lines, vocabulary, rows)
    assert len({row.bags[0][0] if row.bags[0] else () for row in rows}) > 1
    from_examples = parser.features_of_examples(parser.to_examples(lines))
    assert sorted(from_examples) == sorted(from_lines)
    for name, expected in from_lines.items():
        found = from_examples[name]
        if isinstance(expected, tf.RaggedTensor):
            assert found.to_list() == expected.to_list()
        else:
            np.testing.assert_array_equal(found, expected)


def test_the_first_sample_line_is_one_to_show():
    schema = Schema(
        "y",
        [Dense("age", "standardize"), Dense("price", "log1p")],
        ["country", Sparse("tags", separator="|"), Sparse("ip", hash_buckets=9)],
    )
    vocabulary = Vocabulary(
        [[b"DE", b"FR"], [b"new", b"red"], []],
        schema=schema,
        learned={"age": {"mean": 41.6, "deviation": 9.0}},
    )
    first, *others = Parser(vocabulary).sample_lines(16)
    assert first == b"42,1,DE,new|red,never seen"
    assert any(b",," in line for line in others)
    assert any(b"0c1e8f72" in line for line in others)


@pytest.mark.breadth(2)
def test_types_of_examples_are_named(schema):
    parser = Parser(make_vocabulary(schema))
    described = parser.example_features()
    for example in parser.to_examples(parser.sample_lines(20)):
        message = tf.train.Example.FromString(example)
        for name, feature in message.features.feature.items():
            kind, _, number = described[name].partition(", ")
            values = getattr(feature, f"{kind}_list").value
            assert values and (len(values) == 1 or not number.startswith("none"))


def test_two_thousand_columns():
    schema = Schema(
        "y",
        [Dense(f"x{i}", "log1p") for i in range(2000)],
        [Sparse("c", separator="|")],
    )
    rng = np.random.default_rng(0)
    numbers = rng.integers(0, 100, (20, 2000))
    lines = [
        b"1," + b",".join(b"%d" % x for x in row) + b",a|b" for row in numbers.tolist()
    ]
    lines.append(lines[0].replace(b"1,", b"1,x", 1))
    parser = Parser(make_vocabulary(schema))
    assert parser.is_valid(lines).numpy().tolist() == [True] * 20 + [False]
    features, _ = parser(lines[:-1])
    np.testing.assert_array_equal(
        features["dense_features"], np.log(numbers + 1.0).astype(np.float32)
    )
    assert features["sparse_features"].to_list() == [[[1, 2]]] * 20


@pytest.mark.parametrize(
    "features, message",
    [
        ({"x": [1.0, 2.0]}, "x must have no value or one"),
        ({"x": [float("nan")]}, "x must be a finite number"),
        ({"bag": [b"a", b"b"], "bag_weights": [1.0]}, "bag_weights must have a finite"),
        ({"bag": [b"a"], "bag_weights": [float("inf")]}, "bag_weights must have"),
        ({"c": [b"a", b"b"]}, "c must have no value or one"),
    ],
)
def test_examples_that_no_line_could_be_are_refused(features, message):
    bag = Sparse("bag", separator="|", weight_separator=":")
    parser = Parser(make_vocabulary(Schema("y", ["x"], [bag, "c"])))
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        parser.features_of_examples([make_example(features)])


def test_examples_of_weights():
    bag = Sparse("bag", separator="|", weight_separator=":", max_values=2)
    parser = Parser(make_vocabulary(Schema("y", ["x"], [bag, "c"])))
    messages = [
        {"bag": [b"a", b"b"], "bag_weights": [0.1, -3e-30]},
        {"bag": [b"a", b"b", b"c"]},
        {"bag": [b"", b"c"], "bag_weights": [2.0, 4.0], "x": [0.5]},
        {"c": [b"a"]},
    ]
    features = parser.features_of_examples([make_example(m) for m in messages])
    ids = [bags[0] for bags in features["sparse_features"].to_list()]
    weights = [bags[0] for bags in features["sparse_weights"].to_list()]
    assert ids == [[1, 2], [1, 2], [3], [0]]
    exact = [float(np.float32(w)) for w in (0.1, -3e-30)]
    assert weights == [exact, [1.0, 1.0], [4.0], [1.0]]


def make_example(features):
    message = tf.train.Example()
    for name, values in features.items():
        feature = message.features.feature[name]
        kind = (
            feature.bytes_list if isinstance(values[0], bytes) else feature.float_list
        )
        kind.value.extend(values)
    return message.SerializeToString()


def test_hash_tables_are_made_when_they_are_used():
    schema = row_lines.SCHEMAS["plain csv"]
    parser = Parser(make_vocabulary(schema))
    parser.spec()
    parser.reason(b"")
    assert parser._lookup._tables is None
    parser.features([parser.sample_lines(1)[0]])
    assert len(parser._lookup._tables) == len(schema.tables) == 2


@pytest.mark.integration
@pytest.mark.parametrize("is_eager", [True, False], ids=["for serving", "as it is"])
def test_a_saved_model_holds_the_tables_of_mixed_vocabularies(tmp_path, is_eager):
    schema = row_lines.SCHEMAS["weights"]
    parser = Parser(make_vocabulary(schema, hashed=(1,)))
    lines = tf.constant(parser.sample_lines(30))
    module = tf.Module()
    module.parser = parser.for_serving() if is_eager else parser
    signature = [tf.TensorSpec((None,), tf.string)]
    module.features = tf.function(module.parser.features, signature)
    tf.saved_model.save(module, str(tmp_path))
    names = sorted(path.name for path in (tmp_path / "assets").iterdir())
    assert names == (["a.txt", "c.txt"] if is_eager else [])
    found = tf.saved_model.load(str(tmp_path)).features(lines)
    for name, expected in Parser(parser.vocabulary).features(lines).items():
        assert found[name].to_list() == expected.to_list()


def test_names_of_tables_that_are_no_file_names(tmp_path):
    sparse = [Sparse("a", table="länder & co"), Sparse("b", table=".."), Sparse("c")]
    schema = Schema("y", (), sparse)
    Parser(make_vocabulary(schema), str(tmp_path))._lookup.build()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["c.txt", "table_0.txt", "table_1.txt"]


def test_rules_take_the_columns_of_a_header():
    schema = Schema("y", ["x"], ["c"], format=Text())
    rules = LineRules(schema, ["c", "other", "y", "x"])
    assert rules.reason(b"a,,1,2.5") is None
    assert rules.fields(b"a,,1,2.5") == {"y": b"1", "x": b"2.5", "c": b"a"}
    assert rules.fields(b"a,,2.5", labelled=False)["y"] is None
    with pytest.raises(ValueError, match="no column 'x' among the 2 columns: c, y"):
        LineRules(schema, ["c", "y"])
