"""`Schema`: its JSON form, its messages, the order of its features."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

import pipelines
from pipelines.schema import Dense, Label, Parquet, Schema, Sparse, Text


def random_schema(seed):
    """Draw a schema, any field of it as by default or not."""
    rng = np.random.default_rng(seed)

    def maybe(**values):
        return {k: v for k, v in values.items() if rng.random() < 0.4 and v is not None}

    names = [f"col {n}" if n % 3 else f"ñ{n}" for n in range(40)]
    columns = list(rng.permutation(names))
    labels = [
        maybe(positive=("yes", "ja"), negative=("no",)),
        {"threshold": float(rng.integers(1, 5))},
        {"soft": True},
        {"negative": None},
    ]
    label = Label(str(columns.pop()), **labels[rng.integers(4)])
    dense = []
    for _ in range(rng.integers(0, 6)):
        transform = rng.choice(["identity", "log1p", "signed_log1p", "standardize"])
        values = maybe(missing=-1.5, integer=True, name=f"d{len(dense)}")
        if rng.random() < 0.2:
            values |= {"low": -1.0, "high": 3.25}
            transform = "clip"
        dense.append(Dense(str(columns.pop()), str(transform), **values))
    sparse = []
    for _ in range(rng.integers(1, 8)):
        values = maybe(name=f"s{len(sparse)}", table=f"t{rng.integers(3)}")
        kind = rng.integers(5)
        if kind == 0:
            values |= {"separator": "|", **maybe(weight_separator=":", max_values=7)}
        elif kind == 1:
            values |= {"buckets": "quantile", **maybe(num_buckets=9)}
        elif kind == 2:
            values |= {"buckets": "width", "width": 2.5}
        elif kind == 3 and "table" not in values:
            values |= maybe(min_count=3, embedding_dim=8)
            values |= maybe(hash_buckets=1000) | {"combiner": "mean"}
        sparse.append(Sparse(str(columns.pop()), **values))
    others = maybe(
        weight=str(columns.pop()), time=str(columns.pop()), group=str(columns.pop())
    )
    kinds = [
        Text(**maybe(delimiter="\x01", missing=("", "NULL", "\\N"), quoted=True)),
        Text(delimiter="\t", header=False, columns=names),
        Parquet(**maybe(missing=("", "?"))),
    ]
    return Schema(label, dense, sparse, format=kinds[rng.integers(3)], **others)


@pytest.mark.parametrize("first", [0, 100])
def test_json_gives_the_schema_back(first, tmp_path):
    for seed in range(first, first + 100):
        schema = random_schema(seed)
        text = schema.to_json()
        again = Schema.from_json(text)
        assert again == schema and again.to_json() == text
        assert again.digest == schema.digest and len(schema.digest) == 64
        # The same from JSON without its layout.
        assert Schema.from_json(json.dumps(json.loads(text))) == schema
    schema.save(tmp_path / "new" / "s.json")
    assert Schema.load(tmp_path / "new" / "s.json") == schema


def test_the_digest_tells_schemas_apart():
    schemas = {random_schema(seed).to_json() for seed in range(100)}
    digests = {random_schema(seed).digest for seed in range(100)}
    assert len(schemas) == len(digests) == 100


def test_the_digest_is_that_of_a_form_that_stays():
    """Runs, records and exports hold it: a change of the form is a break."""
    schema = Schema("click", [Dense("price", "log1p")], ["country"])
    expected = (
        '{\n "label": "click",\n'
        ' "dense": [\n  {"column": "price", "transform": "log1p"}\n ],\n'
        ' "sparse": ["country"],\n "format": {"type": "text"}\n}'
    )
    assert schema.to_json() == expected
    assert schema.digest == hashlib.sha256(expected.encode()).hexdigest()


def test_features_are_ordered_by_table():
    schema = Schema(
        "y",
        sparse=[
            "a",
            Sparse("b", table="shared"),
            "c",
            Sparse("d", table="a"),
            Sparse("e", table="shared"),
        ],
    )
    assert schema.sparse_features == ("a", "d", "b", "e", "c")
    assert schema.tables == {"a": (0, 1), "shared": (2, 3), "c": (4,)}
    spec = schema.spec([3, 4, 5], 8)
    assert spec.sparse_features == schema.sparse_features
    assert [table.vocabulary_size for table in spec.tables] == [3, 4, 5]


def test_columns_come_once():
    schema = Schema(
        "y",
        dense="price",
        sparse=["user", Sparse("price", "bucket", buckets="log2")],
        group="user",
        time="when",
    )
    assert schema.columns == ("y", "price", "user", "when")


WRONG = {
    "not JSON": ("{", "not JSON"),
    "a list": ("[]", "a JSON object"),
    "no label": ('{"sparse": ["a"]}', "must name the label's column"),
    "key": ('{"label": "y", "spars": ["a"]}', "the schema has no key 'spars'"),
    "key twice": ('{"label": "y", "label": "z"}', "^the key 'label' occurs twice"),
    "label's key": (
        '{"label": {"column": "y", "positiv": ["1"]}, "sparse": ["a"]}',
        "label has no key 'positiv'",
    ),
    "label's type": ('{"label": 1.5, "sparse": ["a"]}', "label must be a column"),
    "no category": ('{"label": "y", "sparse": []}', "at least one category"),
    "dense is a text": ('{"label": "y", "dense": "a"}', '"dense" must be a list'),
    "dense key": (
        '{"label": "y", "dense": [{"column": "a", "transfrom": "log1p"}]}',
        r"dense\[0\] has no key 'transfrom'. It may have: column, transform",
    ),
    "transform": (
        '{"label": "y", "dense": ["b", {"column": "a", "transform": "log"}]}',
        r"dense\[1\]: 'a' has a `transform` that is not one of",
    ),
    "integer's type": (
        '{"label": "y", "dense": [{"column": "a", "integer": "yes"}]}',
        r"dense\[0\]: `integer` must be bool",
    ),
    "missing's type": (
        '{"label": "y", "dense": [{"column": "a", "missing": "0"}]}',
        r"dense\[0\]: `missing` must be",
    ),
    "clip": (
        '{"label": "y", "dense": [{"column": "a", "low": 1}]}',
        r"dense\[0\]: 'a' must have `low` or `high` with transform='clip'",
    ),
    "no column": (
        '{"label": "y", "sparse": ["a", {"name": "b"}]}',
        r'sparse\[1\] needs a "column"',
    ),
    "separator": (
        '{"label": "y", "sparse": [{"column": "a", "weight_separator": ":"}]}',
        r"sparse\[0\]: 'a' has `weight_separator`, which needs a `separator`",
    ),
    "embedding_dim": (
        '{"label": "y", "sparse": [{"column": "a", "embedding_dim": 0}]}',
        r"sparse\[0\]: 'a' needs an integer of at least 1 as `embedding_dim`",
    ),
    "num_buckets": (
        '{"label": "y", "sparse": [{"column": "a", "buckets": "quantile", '
        '"num_buckets": 10000000}]}',
        r"sparse\[0\]: 'a' needs an integer of at most 1,048,576 as `num_buckets`",
    ),
    "buckets": (
        '{"label": "y", "sparse": [{"column": "a", "buckets": "log"}]}',
        r"sparse\[0\]: 'a' has a `buckets` that is not one of",
    ),
    "name": (
        '{"label": "y", "sparse": ["a/b"]}',
        r"sparse\[0\]: The name of a feature .* Give the feature a `name`",
    ),
    "position": (
        '{"label": "y", "sparse": [3]}',
        r"sparse\[0\]: 'column 3' is a position, so it needs a `name`",
    ),
    "two of a name": (
        '{"label": "y", "dense": ["a"], "sparse": ["a"]}',
        "Each feature must have its own name. Received twice: 'a'",
    ),
    "format's type": (
        '{"label": "y", "sparse": ["a"], "format": "csv"}',
        '"format" must be an object with "type"',
    ),
    "format's key": (
        '{"label": "y", "sparse": ["a"], '
        '"format": {"type": "parquet", "header": true}}',
        "format has no key 'header'",
    ),
    "delimiter": (
        '{"label": "y", "sparse": ["a"], '
        '"format": {"type": "text", "delimiter": "::"}}',
        "format: 'format' needs a `delimiter` of one byte",
    ),
    "no header": (
        '{"label": "y", "sparse": ["a"], "format": {"type": "text", "header": false}}',
        "do not say which column 'y' is",
    ),
    "positions in Parquet": (
        '{"label": 0, "sparse": ["a"], "format": {"type": "parquet"}}',
        "is Parquet, whose column 0 needs a name",
    ),
    "tables": (
        '{"label": "y", "sparse": [{"column": "a", "table": "t", "embedding_dim": 4}, '
        '{"column": "b", "table": "t", "embedding_dim": 8}]}',
        "'t' is read by a, b with different `embedding_dim`",
    ),
}


@pytest.mark.parametrize("text, message", WRONG.values(), ids=WRONG)
def test_a_mistake_is_one_line_with_its_place(text, message, tmp_path):
    with pytest.raises(ValueError, match=message) as raised:
        Schema.from_json(text)
    assert "\n" not in str(raised.value)
    path = tmp_path / "s.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="s.json: "):
        Schema.load(path)


def test_files_that_are_no_schema(tmp_path):
    with pytest.raises(FileNotFoundError, match="Built-in schemas: criteo, criteo_x1"):
        Schema.load(tmp_path / "none.json")
    (tmp_path / "s.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        Schema.load(tmp_path / "s.json")


def test_names_that_ship_load():
    assert Schema.load("criteo") == pipelines.Schema.criteo()
    assert Schema.load("avazu").label.column == "click"


def test_summary_names_every_feature_and_what_is_done_to_it():
    schema = Schema(
        Label("stars", threshold=4),
        dense=[Dense("price", "clip", low=0, missing=1), Dense("age", "standardize")],
        sparse=[
            Sparse("tags", separator="|", weight_separator=":", combiner="mean"),
            Sparse("price", "price_bucket", buckets="quantile"),
            Sparse("city", min_count=5, hash_buckets=2000, embedding_dim=4),
        ],
        group="city",
    )
    lines = [line.split() for line in schema.summary().splitlines()]
    assert lines[0] == ["feature", "column", "kind", "table"]
    expected = """
        label stars 1 if at least 4
        price price number, clip to 0 .. no limit, 1 if missing
        age age number, standardize
        tags tags bag by '|', weights after ':', mean tags
        price_bucket price category, 32 quantiles price_bucket
        city city category, seen 5 times, hashed to 2,000 rows, dim 4 city
        group city groups of GAUC
        CSV with a header; missing: ""
    """
    assert lines[1:] == [row.split() for row in expected.strip().splitlines()]


def test_summaries_of_all_kinds():
    for seed in range(50):
        schema = random_schema(seed)
        lines = schema.summary().splitlines()
        others = [schema.weight, schema.time, schema.group]
        num_others = sum(column is not None for column in others)
        features = [*schema.dense_features, *schema.sparse_features]
        assert len(lines) == 3 + len(features) + num_others
        for name, line in zip(features, lines[2:]):
            assert line.startswith(name + "  ") or len(name) >= 30
    soft = dataclasses.replace(schema, label=Label(schema.label.column, soft=True))
    assert "a probability" in soft.summary()


def test_features_can_be_left_out():
    schema = Schema("y", ["a", "b"], ["c", Sparse("d", table="c"), "e"], time="t")
    assert schema.without("b", "c") == Schema(
        "y", ["a"], [Sparse("d", table="c"), "e"], time="t"
    )
    assert schema.without() == schema
    with pytest.raises(ValueError, match="There is no feature 'y'. The features: 'a',"):
        schema.without("a", "y")
    with pytest.raises(ValueError, match="at least one category"):
        schema.without("c", "d", "e")
