import numpy as np
import pandas as pd
import polars as pl
import pytest
import tensorflow as tf

import tf_dlrm
from pipelines.frames import from_dataframe, to_dataframe
from tf_dlrm.features import EmbeddingTable, FeatureSpec

BIG = 2**53 + 1  # not a float64
SPEC = FeatureSpec(
    dense=["x", "y"],
    tables=[
        EmbeddingTable("item", 2**60, 4, features=("shown", "clicked")),
        EmbeddingTable("country", 10, 4),
    ],
)
DENSE = {"x": [0.5, -1.0, 2.0], "y": [1, 2, 3], "label": [0, 1, 0]}
LIBRARIES = pytest.mark.parametrize("library", [pd, pl], ids=["pandas", "polars"])


def make_frame(library=pd, **columns):
    values = {"shown": [1, 2, 3], "clicked": [4, 5, 6], "country": [7, 8, 9]}
    return library.DataFrame({**DENSE, **values, **columns})


def only_batch(frame, **options):
    (batch,) = from_dataframe(frame, SPEC, **options)
    return batch


@LIBRARIES
def test_one_hot(library):
    frame = make_frame(library, shown=[BIG, 0, BIG + 2], other=["a", "b", "c"])
    features, label = only_batch(frame)
    dense, sparse = features["dense_features"], features["sparse_features"]
    assert (dense.dtype, sparse.dtype, label.dtype) == (
        tf.float32,
        tf.int64,
        tf.float32,
    )
    assert dense.numpy().tolist() == [[0.5, 1], [-1, 2], [2, 3]]
    assert sparse.numpy().tolist() == [[BIG, 4, 7], [0, 5, 8], [BIG + 2, 6, 9]]
    assert label.numpy().tolist() == [0, 1, 0]


MISSING = {
    "pandas NaN": (pd, [1.0, np.nan, 2.0**53 - 1]),
    "pandas Int64": (pd, pd.array([1, pd.NA, 2**53 - 1], "Int64")),
    "pandas UInt64": (pd, pd.array([1, pd.NA, 2**53 - 1], "UInt64")),
    "pandas Float64": (pd, pd.array([1, pd.NA, 2**53 - 1], "Float64")),
    "pandas arrow": (pd, pd.array([1, None, 2**53 - 1], "int64[pyarrow]")),
    "pandas object": (pd, pd.Series([1, None, 2**53 - 1], dtype=object)),
    "pandas category": (pd, pd.Categorical([1, None, 2**53 - 1])),
    "polars": (pl, [1, None, 2**53 - 1]),
    "polars NaN": (pl, [1.0, float("nan"), 2.0**53 - 1]),
    "-1": (pd, [1, -1, 2**53 - 1]),
}


@pytest.mark.parametrize("library, cells", MISSING.values(), ids=MISSING.keys())
def test_missing_ids(library, cells):
    features, _ = only_batch(make_frame(library, clicked=cells))
    sparse = features["sparse_features"].numpy()
    assert sparse[:, 1].tolist() == [1, -1, 2**53 - 1]
    bags = [[5], None, [6, 7]]
    features, _ = only_batch(make_frame(library, clicked=cells, shown=bags))
    sparse = features["sparse_features"]
    assert sparse.to_list() == [
        [[5], [1], [7]],
        [[], [], [8]],
        [[6, 7], [2**53 - 1], [9]],
    ]


EXACT = {
    "pandas int64": (pd, np.array([BIG, 1, 2])),
    "pandas uint64": (pd, np.array([BIG, 1, 2], np.uint64)),
    "pandas Int64 with a gap": (pd, pd.array([BIG, pd.NA, 2], "Int64")),
    "pandas arrow with a gap": (pd, pd.array([BIG, None, 2], "int64[pyarrow]")),
    "pandas list": (pd, [[BIG], [], [2, None]]),
    "pandas array": (pd, [np.array([BIG]), np.array([], int), np.array([2, -1])]),
    "pandas mixed": (pd, pd.Series([BIG, (), np.nan], dtype=object)),
    "polars": (pl, [BIG, None, 2]),
    "polars list": (pl, [[BIG], None, [2, None]]),
    "polars array": (pl, pl.Series([[BIG], [1], [2]], dtype=pl.Array(pl.Int64, 1))),
}


@pytest.mark.parametrize("library, cells", EXACT.values(), ids=EXACT.keys())
def test_ids_never_pass_through_floats(library, cells):
    features, _ = only_batch(make_frame(library, clicked=cells))
    sparse = features["sparse_features"]
    first = sparse[0][1].numpy().tolist()
    assert first in (BIG, [BIG])


@pytest.mark.breadth(2)
@LIBRARIES
@pytest.mark.parametrize("shuffle", [False, True])
def test_bags_equal_the_frame_row_by_row(library, shuffle):
    rng = np.random.default_rng(3)
    num_rows = 101
    bags = [
        [rng.integers(0, 10, rng.integers(4)).tolist() for _ in range(num_rows)]
        for _ in range(2)
    ]
    single = rng.integers(0, 10, num_rows).tolist()
    columns = {"shown": bags[0], "clicked": single, "country": bags[1]}
    x = list(range(num_rows))
    label = [row / num_rows for row in x]
    frame = library.DataFrame({"x": x, "y": x, "label": label, **columns})
    dataset = from_dataframe(frame, SPEC, batch_size=16, shuffle=shuffle, seed=1)
    features, _ = dataset.element_spec
    assert features["sparse_features"].shape.as_list() == [None, 3, None]
    assert features["sparse_features"].ragged_rank == 2
    order = []
    for features, label in dataset:
        sparse = features["sparse_features"]
        assert sparse.shape[1:].as_list() == [3, None]
        rows = np.rint(label.numpy() * num_rows).astype(int)
        for row, found in zip(rows.tolist(), sparse.to_list(), strict=True):
            order.append(row)
            assert found == [bags[0][row], [single[row]], bags[1][row]]
    assert sorted(order) == x
    assert (order == x) != shuffle


def test_shuffle_differs_by_epoch_and_follows_the_seed():
    frame = pd.concat([make_frame()] * 10).assign(label=np.arange(30) / 30)

    def epochs(seed):
        data = from_dataframe(frame, SPEC, shuffle=True, seed=seed)
        batches = [next(iter(data))[0]["dense_features"] for _ in range(2)]
        return [batch[:, 0].numpy().tolist() for batch in batches]

    assert epochs(1) == epochs(1) != epochs(2)
    first, second = epochs(1)
    assert first != second


def test_without_label():
    features = only_batch(make_frame().drop(columns="label"), label=None)
    assert set(features) == {"dense_features", "sparse_features"}


@LIBRARIES
@pytest.mark.parametrize(
    "cells",
    [
        [1.0, None, 2.0],
        [1.0, float("nan"), 2.0],
        [1.0, float("inf"), 2.0],
        [1.0, 1e39, 2.0],
    ],
    ids=["None", "NaN", "inf", "too large"],
)
@pytest.mark.parametrize("name", ["y", "label"])
def test_dense_values_must_be_finite(library, cells, name):
    with pytest.raises(ValueError, match=f"column '{name}' has a value .*in row 1"):
        from_dataframe(make_frame(library, **{name: cells}), SPEC)


@LIBRARIES
@pytest.mark.parametrize("cell", [2.0, -1.0, 1.001])
def test_labels_must_be_probabilities(library, cell):
    """A loss of other labels has no minimum: it falls to -5.8e12, without a word."""
    frame = make_frame(library, label=[1.0, 0.25, cell])
    match = rf"'label' must contain labels: 0 or 1, or .* {cell:g} in row 2"
    with pytest.raises(ValueError, match=match):
        from_dataframe(frame, SPEC)
    from_dataframe(make_frame(library, label=[1.0, 0.25, 0.0]), SPEC)


@pytest.mark.parametrize("dtype", [None, object, "category"])
def test_dense_columns_must_be_numeric(dtype):
    column = pd.Series(["1", "2", "3"], dtype=dtype)
    with pytest.raises(TypeError, match="column 'x' must be numeric"):
        from_dataframe(make_frame(x=column), SPEC)


@pytest.mark.parametrize("dtype", ["bool", "Float32", "int8", "boolean"])
def test_dense_columns_of_other_types(dtype):
    features, _ = only_batch(make_frame(x=pd.Series([1, 0, 1], dtype=dtype)))
    assert features["dense_features"][:, 0].numpy().tolist() == [1, 0, 1]


WRONG_IDS = {
    "fraction": (
        [1, 2.5, 3],
        ValueError,
        "exact in their type. Received: .*2.5.* row 1",
    ),
    "inf": ([1, np.inf, 3], ValueError, "exact in their type. .*inf.* row 1"),
    "float64": ([1, 2.0**53 + 2, 3], ValueError, "exact in their type.* row 1"),
    "float32": (np.float32([1, 2.0**24 + 2, 3]), ValueError, "float32.* row 1"),
    "fraction in a bag": ([[1, 2], [3, 4.5], []], ValueError, "4.5.* row 1"),
    "float32 bag": ([[1], np.float32([3, 2.0**25]), []], ValueError, "row 1"),
    "too large": ([1, 2**60, 3], ValueError, "must be in its table .*: 1152.* row 1"),
    "negative": ([1, -2, 3], ValueError, "must be in its table .*: -2 in row 1"),
    "huge": (
        np.array([1, 2**64 - 1, 3], np.uint64),
        ValueError,
        "must be in its table .* row 1",
    ),
    "huge in a bag": (
        [[1], [2, 2**70], [3]],
        ValueError,
        "must be in its table .* row 1",
    ),
    "text": (["a", "b", "c"], TypeError, "must contain integer ids. Received: 'a'"),
    "text in a bag": ([[1], ["b"], [3]], TypeError, "Received: 'b' in row 1"),
    "time": (pd.to_datetime(["2020"] * 3), TypeError, "must contain integer ids"),
}


@pytest.mark.parametrize("cells, error, text", WRONG_IDS.values(), ids=WRONG_IDS.keys())
def test_wrong_ids_are_refused(cells, error, text):
    with pytest.raises(error, match=f"feature 'clicked' .*{text}"):
        from_dataframe(make_frame(clicked=cells), SPEC)


def test_frames_are_checked():
    with pytest.raises(ValueError, match=r"lacks the columns \['y', 'country'\]"):
        from_dataframe(make_frame().drop(columns=["y", "country"]), SPEC)
    with pytest.raises(ValueError, match=r"lacks the columns \['click'\]"):
        from_dataframe(make_frame(), SPEC, label="click")
    twice = pd.concat([make_frame(), make_frame()[["x"]]], axis=1)
    with pytest.raises(ValueError, match=r"several columns named \['x'\]"):
        from_dataframe(twice, SPEC)
    with pytest.raises(ValueError, match="no row"):
        from_dataframe(make_frame()[:0], SPEC)
    with pytest.raises(TypeError, match="DataFrame. Received: builtins.list"):
        from_dataframe([1, 2], SPEC)
    with pytest.raises(ValueError, match="`batch_size` must be a positive"):
        from_dataframe(make_frame(), SPEC, batch_size=0)


@pytest.mark.parametrize("library", ["pandas", "polars"])
@pytest.mark.parametrize("bags", [False, True], ids=["one_hot", "bags"])
def test_round_trip_of_frames(library, bags):
    spec = FeatureSpec(
        ["a", "b"], [EmbeddingTable("x", 50, 4), EmbeddingTable("y", 9, 4)]
    )
    rng = np.random.default_rng(0)
    y = [[1, 2], [], [3], [8, 8, 0], [5]] if bags else [1, -1, 3, 8, 0]
    columns = {
        "label": np.array([0, 1, 1, 0, 1], np.float32),
        "a": rng.random(5).astype(np.float32),
        "b": rng.random(5).astype(np.float32),
        "x": np.arange(5) + 40,
        "y": y,
    }
    frame = pd.DataFrame(columns)
    batches = from_dataframe(frame, spec, batch_size=2)
    again = to_dataframe(batches, spec, library=library)
    assert type(again).__module__.startswith(library)
    assert list(again.columns) == list(columns)
    for name, values in columns.items():
        assert again[name].to_list() == list(values), name
    part = to_dataframe(batches, spec, library=library, num_rows=3)
    assert part["x"].to_list() == [40, 41, 42]
    with pytest.raises(
        ValueError, match="2 dense and 2 sparse features, but `spec` has 1"
    ):
        other = FeatureSpec(["a"], spec.tables)
        to_dataframe(batches, other)
    with pytest.raises(ValueError, match="no row"):
        to_dataframe([], spec)


@LIBRARIES
@pytest.mark.parametrize("shuffle", [False, True])
def test_sample_weights_are_the_third_element(library, shuffle):
    """They stay with their rows: the model's loss is the weighted one."""
    frame = make_frame(library, clicks=[0, 1, 1], w=[0.5, 0, 3])
    options = {"label": "clicks", "weight": "w", "batch_size": 2, "shuffle": shuffle}
    batches = [*from_dataframe(frame, SPEC, **options)]
    assert [len(batch) for batch in batches] == [3, 3]
    rows = [
        (float(x), float(y), float(w))
        for features, label, weight in batches
        for (x, _), y, w in zip(features["dense_features"], label, weight)
    ]
    assert sorted(rows) == [(-1.0, 1.0, 0.0), (0.5, 0.0, 0.5), (2.0, 1.0, 3.0)]
    _, label, weight = batches[0]
    assert weight.dtype == label.dtype == tf.float32 and weight.shape == label.shape
    again = to_dataframe(batches, SPEC, label="clicks", weight="w")
    assert sorted(again["w"]) == [0, 0.5, 3] and "weight" not in again


@pytest.mark.integration
def test_a_model_is_trained_by_the_weights():
    """Of rows of weight 0 nothing is learned; 2 and 2 are as 1 and 1, doubled."""
    frame = make_frame(w=[1, 0, 2], shown=[1, 2, 3], clicked=[4, 5, 6])
    tables = [
        EmbeddingTable("item", 9, 4, features=("shown", "clicked")),
        EmbeddingTable("country", 10, 4),
    ]
    model = tf_dlrm.DLRM(FeatureSpec(("x", "y"), tables), (4,), (1,))
    model.compile("sgd", "binary_crossentropy")
    batches = from_dataframe(frame, model.spec, weight="w")
    (features, label, weight), *_ = batches
    p = model.predict(features, verbose=0)[:, 0].astype(np.float64)
    y, w = label.numpy(), weight.numpy()
    losses = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    before = model.embedding.get_table("item")
    found = model.evaluate(batches, verbose=0)
    np.testing.assert_allclose(found, (w * losses).mean(), rtol=1e-5)
    model.fit(batches, verbose=0)
    moved = np.abs(model.embedding.get_table("item") - before).sum(1) > 0
    assert np.flatnonzero(moved).tolist() == [1, 3, 4, 6]


@LIBRARIES
@pytest.mark.parametrize(
    ("column", "cells", "match"),
    [
        ("label", [0, 2, 1], "must contain labels: 0 or 1, .* Received: 2 in row 1"),
        ("label", [0, 1, -1], "must contain labels: .* Received: -1 in row 2"),
        ("label", [0.0, 1.5, 1.0], "Received: 1.5 in row 1"),
        ("w", [1.0, -0.5, 1.0], "must contain weights, .* Received: -0.5 in row 1"),
        ("w", [1.0, None, 1.0], "missing or not finite .* in row 1"),
        ("w", [1.0, float("inf"), 1.0], "missing or not finite .* in row 1"),
    ],
)
def test_labels_and_weights_are_checked(library, column, cells, match):
    frame = make_frame(library, **{"w": [1, 1, 1], column: cells})
    with pytest.raises(ValueError, match=f"column '{column}' .*{match}"):
        from_dataframe(frame, SPEC, weight="w")


def test_weights_must_be_there_and_have_a_label():
    with pytest.raises(ValueError, match=r"lacks the columns \['w'\]"):
        from_dataframe(make_frame(), SPEC, weight="w")
    with pytest.raises(ValueError, match="`weight` needs a `label`"):
        from_dataframe(make_frame(), SPEC, label=None, weight="x")
    soft = only_batch(make_frame(label=[0.25, True, 0]))
    assert soft[1].numpy().tolist() == [0.25, 1, 0]
