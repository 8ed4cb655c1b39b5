"""A new model goes on from an older one: rows, state, steps."""

import keras
import numpy as np
import pytest
from helpers.small_model import make_data, make_spec

import tf_dlrm
from tf_dlrm.training import warm_start

OLD, NEW = (11, 7, 30), (14, 7, 12)


def make(sizes, optimizer="adagrad", seed=7, dims=((8, 4), (8, 1)), **kwargs):
    keras.utils.set_random_seed(seed)
    interaction = kwargs.pop("interaction", "dot")
    embedding, rate = kwargs.pop("embedding", None), kwargs.pop("rate", 1.0)
    spec = kwargs.pop("spec", None) or make_spec(sizes)
    if embedding is not None:
        embedding = embedding(spec.tables)
    model = tf_dlrm.DLRM(
        spec,
        *dims,
        interaction=interaction,
        embedding=embedding,
        negative_sampling_rate=rate,
    )
    model.compile(optimizer, run_eagerly=True, jit_compile=False, **kwargs)
    return model


def trained(sizes=OLD, optimizer="adagrad", **kwargs):
    model = make(sizes, optimizer, **kwargs)
    features, label = make_data(sizes)
    model.fit(features, label, batch_size=16, verbose=0)
    return model


def make_maps(seed=0):
    """Row 0 stays; of the others some are dropped, the rest moves."""
    rng = np.random.default_rng(seed)
    maps = {}
    for i, (old, new) in enumerate(zip(OLD, NEW)):
        moved = np.full(old, -1)
        moved[0] = 0
        kept = rng.permutation(np.arange(1, old))[: min(old, new) - 3]
        moved[kept] = rng.permutation(np.arange(1, new))[: len(kept)]
        maps[f"C{i}"] = moved
    return maps


def move_features(features, maps):
    """Rows whose values are all kept, with the ids of each model."""
    ids = features["sparse_features"]
    new = np.stack([maps[f"C{i}"][ids[:, i]] for i in range(ids.shape[1])], 1)
    kept = (new >= 0).all(1)
    dense = features["dense_features"][kept]
    return [{"dense_features": dense, "sparse_features": x[kept]} for x in (ids, new)]


def all_state(model):
    state = model.embedding.get_state()
    found = {
        f"table {t.name}": model.embedding.get_table(t.name) for t in model.spec.tables
    }
    for name, slots in state["slots"].items():
        found |= {f"slot {name} {slot}": value for slot, value in slots.items()}
    found["iterations"] = np.array(state["iterations"])
    for i, each in enumerate([*model.weights, *model.optimizer.variables]):
        if "tables" not in each.path:
            found[f"dense {i} {each.name}"] = each.numpy()
    return found


SHARDED = tf_dlrm.sharding.ShardedEmbeddingCollection  # on one device here


@pytest.mark.breadth(1)
@pytest.mark.parametrize(
    "optimizer, old, new",
    [("adagrad", None, None), ("adam", SHARDED, None), ("adam", None, SHARDED)],
    ids=["adagrad", "from shards", "to shards"],
)
def test_kept_rows_and_their_state_move_and_new_ones_start_fresh(optimizer, old, new):
    yesterday = trained(optimizer=optimizer, embedding=old)
    before = all_state(yesterday)
    today = make(NEW, optimizer, seed=8, embedding=new)
    fresh, maps = all_state(today), make_maps()
    report = warm_start(today, yesterday, maps)
    found = all_state(today)
    for key, values in all_state(yesterday).items():
        np.testing.assert_array_equal(values, before[key], err_msg=key)
    for key, values in found.items():
        name = key.split()[1] if key.startswith(("table", "slot")) else None
        if name is None:
            continue
        moved = maps[name]
        kept = moved >= 0
        expected = fresh[key].copy()
        expected[moved[kept]] = before[key][kept]
        np.testing.assert_array_equal(values, expected, err_msg=key)
    assert int(today.optimizer.iterations.numpy()) == found["iterations"] == 4
    for each, other in zip(
        today.bottom_mlp.weights + today.top_mlp.weights,
        yesterday.bottom_mlp.weights + yesterday.top_mlp.weights,
    ):
        np.testing.assert_array_equal(each.numpy(), other.numpy())
    slots = len(before) and [k for k in before if k.startswith("slot C0")]
    for table in report.tables:
        kept = int((maps[table.name] >= 0).sum())
        sizes = dict(zip(("C0", "C1", "C2"), zip(OLD, NEW)))[table.name]
        assert table.num_kept == kept
        assert (table.num_dropped, table.num_new) == (sizes[0] - kept, sizes[1] - kept)
        assert table.num_bytes == kept * 4 * 4 * (1 + len(slots))
    assert report.total.num_kept == sum((m >= 0).sum() for m in maps.values())
    assert str(report).count("\n") == 4 and report.describe()["iterations"] == 4
    # Rows made of kept values are predicted as before, the others are not.
    old_rows, new_rows = move_features(make_data(OLD)[0], maps)
    assert len(old_rows["dense_features"]) > 5
    expected = yesterday.predict(old_rows, verbose=0)
    np.testing.assert_allclose(today.predict(new_rows, verbose=0), expected, rtol=1e-6)


@pytest.mark.breadth(0)
@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "adam"])
def test_with_the_same_rows_training_goes_on_as_if_nothing_was(optimizer):
    yesterday = trained(optimizer=optimizer)
    today = make(OLD, optimizer, seed=8)
    report = warm_start(today, yesterday)
    assert report.total.num_new == report.total.num_dropped == 0
    features, label = make_data(OLD)
    for model in (yesterday, today):
        model.fit(features, label, batch_size=16, shuffle=False, verbose=0)
    first, second = all_state(yesterday), all_state(today)
    for (key, values), other in zip(first.items(), second.values()):
        np.testing.assert_array_equal(values, other, err_msg=key)


def test_moved_rows_are_trained_as_they_were_in_their_old_places():
    """One more step on rows of kept values: equal, row by row."""
    yesterday, maps = trained(optimizer="adam"), make_maps()
    today = make(NEW, "adam", seed=8)
    warm_start(today, yesterday, maps)
    rows = move_features(make_data(OLD)[0], maps)
    label = np.arange(len(rows[0]["dense_features"])) % 2
    for model, features in zip((yesterday, today), rows):
        model.fit(features, label, batch_size=len(label), verbose=0)
    for name, moved in maps.items():
        before, after = (m.embedding.get_table(name) for m in (yesterday, today))
        kept = moved >= 0
        np.testing.assert_allclose(after[moved[kept]], before[kept], rtol=1e-6)


def test_the_learning_rate_is_the_new_ones():
    old = trained(optimizer=keras.optimizers.Adagrad(0.5))
    new = make(OLD, keras.optimizers.Adagrad(0.25))
    warm_start(new, old)
    assert float(new.optimizer.learning_rate) == 0.25


WIDE = tf_dlrm.FeatureSpec(
    ("I0", "I1"),
    [tf_dlrm.EmbeddingTable(f"C{i}", n, 4, combiner="mean") for i, n in enumerate(OLD)],
)
DIFFERENCES = {
    "dims": (
        {"dims": ((9, 4), (8, 1))},
        r"dims of bottom_mlp was \[8, 4\], is \[9, 4\]",
    ),
    "interaction": (
        {"interaction": "cat"},
        "interaction was DotInteraction .*is CatIn",
    ),
    "optimizer": ({"optimizer": "adam"}, "the optimizer was Adagrad, is Adam"),
    "of tables": (
        {"embedding_optimizer": "row_wise_adagrad"},
        "optimizer of table C1 was SparseAdagrad, is RowWiseAdagrad",
    ),
    "combiner": ({"spec": WIDE}, "combiner of table C0 was sum, is mean"),
    "tables": ({"sizes": (11, 7)}, "list of tables was .*'C2'"),
    "sampling": ({"rate": 0.5}, "negative_sampling_rate was 1.0, is 0.5"),
}


@pytest.mark.breadth(3)
@pytest.mark.parametrize("options, message", DIFFERENCES.values(), ids=DIFFERENCES)
def test_another_architecture_is_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        warm_start(make(**{"sizes": OLD, **options}), make(OLD))


def with_map(**changes):
    return {**make_maps(), **changes}


MAPS = {
    "unknown": (with_map(C9=[0]), "`row_maps` names tables .*C9"),
    "missing": ({"C1": np.arange(7)}, "'C0' has 11 rows in the older model and 14"),
    "length": (with_map(C0=np.zeros(3, int)), "'C0' must have 11 integers"),
    "kind": (with_map(C0=np.zeros(11)), "'C0' must have 11 integers"),
    "range": (with_map(C1=np.arange(1, 8)), "'C1' must be -1 or rows from 0 to 6"),
    "twice": (with_map(C1=np.array([0, 3, 3, -1, -1, -1, -1])), "row 3 more than once"),
}


@pytest.mark.breadth(3)
@pytest.mark.parametrize("maps, message", MAPS.values(), ids=MAPS)
def test_maps_that_do_not_fit_are_refused_before_anything_is_changed(maps, message):
    today = make(NEW)
    before = all_state(today)
    with pytest.raises(ValueError, match=message):
        warm_start(today, make(OLD), maps)
    for key, values in all_state(today).items():
        np.testing.assert_array_equal(values, before[key], err_msg=key)


def test_models_must_be_compiled():
    bare = tf_dlrm.DLRM(make_spec(OLD), (8, 4), (8, 1))
    with pytest.raises(ValueError, match="`old_model` must be compiled"):
        warm_start(make(OLD), bare)
