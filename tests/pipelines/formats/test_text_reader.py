"""The NumPy reader of text of any schema, against a plain reading of each line."""

import numpy as np
import pytest
from helpers import criteo_oracle, row_lines, row_oracle

from pipelines.formats import encoding, text
from pipelines.formats.layout import Layout, Wanted
from pipelines.formats.line_rules import LineRules
from pipelines.vocabulary import Vocabulary
from pipelines.vocabulary.hashing import HASH_KEY, HashNumbering
from pipelines.vocabulary.numbering import Numbering

VALUES = [b"a", b"b", b"c", b",", b",,", b"=2", b"0", b"7", b"=-1", b"\xff\xfe", b'"']


def make_vocabulary(schema, hashed=range(1, 30, 3)):
    numberings = [
        HashNumbering(50 + i, i + 1)
        if i in hashed
        else Numbering.of_values(VALUES[i % 2 :], [1] * (len(VALUES) - i % 2))
        for i in range(len(schema.tables))
    ]
    return Vocabulary.of_numberings(
        numberings, schema=schema, learned=row_lines.LEARNED
    )


def id_of(vocabulary, feature, value):
    numbering = vocabulary.numbering_of(feature)
    if not value:
        return 0
    if isinstance(numbering, HashNumbering):
        hashed = criteo_oracle.siphash((numbering.key, HASH_KEY), value)
        return 1 + hashed % (numbering.num_buckets - 1)
    values = numbering.values()
    return 1 + values.index(value) if value in values else 0


def layout_of(schema, labelled):
    """A layout of lines: a schema with a header has its columns in order."""
    wanted = Wanted(label=labelled)
    names = LineRules(schema).columns if schema.text.header else None
    return Layout.of_text(schema, "log", names, wanted), wanted


def assert_rows(batch, rows, schema, vocabulary, labelled):
    if labelled:
        labels = np.float32([row.label for row in rows])
        np.testing.assert_array_equal(np.float32(batch.labels), labels)
    if schema.dense:
        dense = np.array([row.dense for row in rows], np.float32)
        dense = dense.reshape(len(rows), len(schema.dense))
        np.testing.assert_array_equal(batch.dense, dense)
    names = schema.sparse_features
    ids = [
        id_of(vocabulary, names[i], value)
        for row in rows
        for i, bag in enumerate(row.bags)
        for value, _ in bag
    ]
    np.testing.assert_array_equal(batch.ids.reshape(-1), ids)
    lengths = [[len(bag) for bag in row.bags] for row in rows]
    if batch.lengths is None:
        assert np.unique(lengths).tolist() in ([1], [])
    else:
        lengths = np.array(lengths, int).reshape(len(rows), len(names))
        np.testing.assert_array_equal(batch.lengths, lengths)
    if schema.has_id_weights:
        weights = [weight for row in rows for bag in row.bags for _, weight in bag]
        np.testing.assert_array_equal(batch.id_weights, np.float32(weights))
    if labelled and schema.weight is not None:
        weights = np.float32([row.sample_weight for row in rows])
        np.testing.assert_array_equal(batch.weights, weights)


def is_open(line, schema):
    """Whether a quote of a line may be closed in a line after it."""
    reason = LineRules(schema).reason(line) or ""
    return schema.text.quoted and "without its closing quote" in reason


@pytest.fixture(scope="module", params=list(row_lines.SCHEMAS))
def schema(request):
    return row_lines.SCHEMAS[request.param]


@pytest.mark.parametrize("labelled", [True, False], ids=["labelled", "unlabelled"])
def test_hostile_lines_in_a_block(schema, labelled):
    count = 300 if len(schema.columns) > 100 else 2000
    if schema.text.header and not labelled:
        pytest.skip("a header says whether there is a label")
    lines = row_lines.hostile_lines(np.random.default_rng(11), schema, count)
    lines = [line.removesuffix(b"\n") for line in lines]
    lines = [line for line in lines if b"\n" not in line and not is_open(line, schema)]
    oracle = [
        row_oracle.parse(line, schema, row_lines.LEARNED, labelled) for line in lines
    ]
    layout, wanted = layout_of(schema, labelled)
    rows = text.read_block(b"\n".join(lines) + b"\n", layout, wanted)
    assert rows.num_lines == len(lines)
    bad = {i for i, row in enumerate(oracle) if row is None}
    found = {position: why for position, _, why in rows.bad}
    wrong = [(lines[i], i in found, found.get(i)) for i in bad ^ found.keys()]
    assert not wrong, wrong[:5]
    assert all(line == lines[position] for position, line, _ in rows.bad)
    good = [row for row in oracle if row is not None]
    assert good and bad
    vocabulary = make_vocabulary(schema)
    batch = encoding.encode(rows, vocabulary)
    assert_rows(batch, good, schema, vocabulary, labelled)


def test_every_line_alone(schema):
    """One line, with line ends inside of its quotes, too, is what it is in a block."""
    count = 60 if len(schema.columns) > 100 else 300
    lines = row_lines.hostile_lines(np.random.default_rng(12), schema, count)
    layout, wanted = layout_of(schema, True)
    vocabulary = make_vocabulary(schema)
    for line in lines:
        has_line_end = b"\n" in line.removesuffix(b"\n")
        if not line or is_open(line, schema) or has_line_end and not schema.text.quoted:
            continue
        row = row_oracle.parse(line, schema, row_lines.LEARNED)
        if row is None and has_line_end:
            continue  # a stray quote and a line end: several lines
        rows = text.read_block(line, layout, wanted)
        assert (rows.num_lines, len(rows.bad)) == (1, int(row is None)), line
        batch = encoding.encode(rows, vocabulary)
        assert_rows(batch, [row] if row else [], schema, vocabulary, True)
