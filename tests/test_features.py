"""EmbeddingTable and FeatureSpec: validation and round trips."""

import keras
import pytest

import tf_dlrm
from tf_dlrm import EmbeddingTable, FeatureSpec


def test_criteo_columns():
    spec = FeatureSpec.criteo(range(1, 27), embedding_dim=4)
    assert spec.dense == tuple(f"I{i}" for i in range(1, 14))
    assert spec.sparse_features == tuple(f"C{i}" for i in range(1, 27))
    assert [table.vocabulary_size for table in spec.tables] == list(range(1, 27))
    assert {table.embedding_dim for table in spec.tables} == {4}


def test_json_round_trip_keeps_everything():
    spec = FeatureSpec(
        dense=["a"],
        tables=[
            EmbeddingTable("t", 10, 4, "mean", features=["x", "y"]),
            EmbeddingTable("u", 5, 8, initializer=keras.initializers.Constant(0.5)),
        ],
    )
    again = FeatureSpec.from_json(spec.to_json())
    assert again == spec
    assert again.tables[0].features == ("x", "y")
    assert again.tables[1].initializer((2,)).numpy().tolist() == [0.5, 0.5]
    assert again != FeatureSpec(dense=["b"], tables=spec.tables)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: EmbeddingTable("", 1, 1), "`name` of an EmbeddingTable"),
        (lambda: EmbeddingTable("a/b", 1, 1), "without '/'"),
        (lambda: EmbeddingTable("t", 0, 1), "`vocabulary_size` of table 't'"),
        (lambda: EmbeddingTable("t", 2.5, 1), "vocabulary_size=2.5"),
        (lambda: EmbeddingTable("t", True, 1), "vocabulary_size=True"),
        (lambda: EmbeddingTable("t", 1, -1), "`embedding_dim` of table 't'"),
        (lambda: EmbeddingTable("t", 1, 1, "max"), "`combiner` of table 't'"),
        (lambda: EmbeddingTable("t", 1, 1, features="C1"), "`features` of table"),
        (lambda: EmbeddingTable("t", 1, 1, features=()), "`features` of table"),
        (lambda: FeatureSpec("I1", [EmbeddingTable("t", 1, 1)]), "`dense` must be"),
        (lambda: FeatureSpec(["I1"], []), "`tables` must be"),
        (lambda: FeatureSpec(["t"], [EmbeddingTable("t", 1, 1)]), "more than once: t"),
        (lambda: FeatureSpec(["d"], [EmbeddingTable("t", 1, 1)] * 2), "Each table"),
        (lambda: FeatureSpec.criteo([1] * 25), "Received: 25 sizes"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_tables_must_be_tables():
    with pytest.raises(TypeError, match="tf_dlrm.EmbeddingTable"):
        FeatureSpec(["d"], ["t"])


def test_public_names():
    for name in tf_dlrm.__all__:
        assert hasattr(tf_dlrm, name)


@pytest.mark.parametrize(
    "text", ["[" * 200_000, "{", "[]", "{}", '{"tables": [{"nam": 1}], "dense": []}']
)
def test_text_that_is_not_a_spec_is_one_sentence(text):
    with pytest.raises(ValueError, match="not a spec that `to_json` wrote") as error:
        FeatureSpec.from_json(text)
    assert len(str(error.value)) < 200
