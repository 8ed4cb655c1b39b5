"""The NumPy reader of blocks against an independent reader in plain Python."""

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from helpers import criteo_oracle, criteo_rows

from pipelines import criteo
from pipelines.formats import encoding, fields, line_rules
from pipelines.schema import Schema
from pipelines.vocabulary import HashVocabulary, Vocabulary

RULES = line_rules.rules(Schema.criteo())
HASHED = HashVocabulary([1000 + i for i in range(26)])
ODD = [b"a", b"b", b"\xff\xfe", b"a\x00b", b"\x00", b'"', b" ", b"#", b"x" * 3000]


@pytest.fixture(scope="module")
def vocabulary():
    values = [[b"%08x" % (i**3) for i in range(20)] for _ in range(26)]
    return Vocabulary([column + ODD[i % 3 :] for i, column in enumerate(values)])


def make_ids(vocabulary):
    if isinstance(vocabulary, HashVocabulary):
        return criteo_oracle.hash_ids(vocabulary.sizes)
    return criteo_oracle.table_ids(vocabulary)


def assert_equal(batch, expected):
    if not expected:
        assert not len(batch.labels) and not batch.ids.size
        return
    np.testing.assert_array_equal(batch.labels, [row[0] for row in expected])
    dense = np.array([row[1] for row in expected], np.float32).reshape(-1, 13)
    np.testing.assert_array_equal(batch.dense, dense)
    assert batch.dense.dtype == np.float32
    lengths = [[len(bag) for bag in row[2]] for row in expected]
    ids = [i for row in expected for bag in row[2] for i in bag]
    if batch.lengths is None:
        assert batch.ids.shape == (len(expected), 26)
        assert np.unique(lengths).tolist() in ([1], [])
    else:
        np.testing.assert_array_equal(batch.lengths, lengths)
    np.testing.assert_array_equal(batch.ids.reshape(-1), ids)


@pytest.mark.breadth(1)
@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
@pytest.mark.parametrize("kind", ["vocabulary", "hash"])
def test_hostile_lines(vocabulary, labelled, kind):
    rng = np.random.default_rng(17)
    lines = criteo_oracle.hostile_lines(rng, 6000 if kind == "vocabulary" else 1500)
    lines = [piece for line in lines for piece in line.split(b"\n")]
    numbering = vocabulary if kind == "vocabulary" else HASHED
    ids = make_ids(numbering)
    rows = criteo_rows.read_block(b"\n".join(lines) + b"\n", labelled)
    expected = [criteo_oracle.parse(line, ids, labelled) for line in lines]
    bad = {i: line for i, (line, row) in enumerate(zip(lines, expected)) if row is None}
    assert rows.num_lines == len(lines)
    assert {position: line for position, line, _ in rows.bad} == bad
    for _, line, why in rows.bad:
        assert why == RULES.reason(line, labelled) is not None
    good = [row for row in expected if row is not None]
    assert 0.2 < len(good) / len(lines) < 0.8
    assert_equal(encoding.encode(rows, numbering), good)


@pytest.mark.breadth(0)
@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
def test_every_hostile_line_alone(vocabulary, labelled):
    """What one line is does not depend on its neighbours."""
    lines = criteo_oracle.hostile_lines(np.random.default_rng(3), 400)
    lines = [piece for line in lines for piece in line.split(b"\n")]
    ids = make_ids(vocabulary)
    for line in lines:
        for block in (line + b"\n", line):
            if not block:
                continue
            rows = criteo_rows.read_block(block, labelled)
            expected = criteo_oracle.parse(line, ids, labelled)
            good = [] if expected is None else [expected]
            assert len(rows.bad) == 1 - len(good), line
            assert_equal(encoding.encode(rows, vocabulary), good)


@pytest.mark.parametrize("name", ["kaggle", "terabyte", "unlabelled"])
def test_real_rows_equal_the_parser(name):
    lines = criteo_oracle.real_lines(name)
    labelled = criteo_oracle.REAL_FILES[name][2]
    built = Vocabulary.build(criteo_oracle.real_path("kaggle"), min_count=3)
    rows = criteo_rows.read_block(b"\n".join(lines), labelled)
    for numbering in (built, HASHED):
        batch = encoding.encode(rows, numbering)
        features = criteo.Parser(numbering).features(lines)
        np.testing.assert_array_equal(batch.dense, features["dense_features"])
        bags = features["sparse_features"].values
        np.testing.assert_array_equal(batch.ids.reshape(-1), bags.values)
        assert batch.lengths is None
        assert bags.row_splits.shape[0] == len(lines) * 26 + 1
    if labelled:
        np.testing.assert_array_equal(rows.labels, [int(line[:1]) for line in lines])


def test_transform_equals_tensorflow():
    """Of every small integer, and of large ones: both round a float64 logarithm."""
    rng = np.random.default_rng(0)
    numbers = np.concatenate(
        [
            np.arange(-5, 1 << 20),
            np.floor(np.exp(rng.uniform(0, 700, 1 << 18))),
            2.0 ** np.arange(0, 1000),
        ]
    ).astype(np.float64)
    ours = encoding.transform([numbers] * 13, Schema.criteo(), {}, len(numbers))[:, 0]
    logs = tf.math.log(tf.maximum(tf.constant(numbers), 0.0) + 1.0)
    np.testing.assert_array_equal(ours, tf.cast(logs, tf.float32))


def test_empty_blocks():
    for block in (b"",):
        rows = criteo_rows.read_block(block)
        assert rows.num_lines == 0 and not rows.bad and not len(rows.labels)
    rows = criteo_rows.read_block(b"\n")
    assert rows.num_lines == 1 and rows.bad == [(0, b"", "empty line")]


def test_keys_are_in_the_order_of_bytes():
    texts = sorted({b"", b"a", b"ab", b"b", b"\xff", b"a" * 8, b"a\xff", b"z" * 7})
    keys = [fields.key_of_text(text) for text in texts]
    assert keys == sorted(keys) and keys[0] == 0
    assert fields.texts_of_keys(np.array(keys, np.uint64)).to_pylist() == texts


def test_values_of_texts_are_those_of_fields():
    cells = ["ab", None, "", "a,b", "x" * 20, ",", "a\0", "ab"]
    values, valid = fields.read_bags(
        *fields.open_texts(pa.array(cells)),
        fields.Bags(b","),
        np.array([not cell for cell in cells]),
    )
    assert valid.all()
    distinct = [*fields.texts_of_keys(values.keys).to_pylist()]
    distinct += values.texts.to_pylist()
    pieces = [distinct[code] for code in values.codes]
    assert values.lengths.tolist() == [1, 1, 1, 2, 1, 0, 1, 1]
    assert pieces == [b"ab", b"", b"", b"a", b"b", b"x" * 20, b"a\0", b"ab"]
