"""Files go from some numbers of devices to others, whatever the placement."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices
from helpers.sharded_model import (
    COPIES,
    MIXED,
    SIZES,
    check_copies,
    compare,
    make_data,
    make_model,
    strategy_of,
)

import tf_dlrm

pytestmark = pytest.mark.integration

PLANS = (COPIES, "table_wise", "row_wise", "column_wise", MIXED)
WRITTEN_WITH = dict(zip((1, 2, 4, 8), PLANS))
PAIRS = list(itertools.product(WRITTEN_WITH, WRITTEN_WITH))


def train(num_devices):
    with strategy_of(num_devices, any_number=True).scope():
        model = make_model("adam", WRITTEN_WITH[num_devices])
    model.fit(make_data("ragged", 45, 20), verbose=0)
    return model


@pytest.mark.parametrize(
    "wrote, reads",
    [
        pytest.param(*pair, marks=() if pair in ((1, 4), (2, 1)) else pytest.mark.slow)
        for pair in PAIRS
    ],
)
@on_devices(8)
def test_weights_and_state_go_from_some_devices_to_others(wrote, reads, tmp_path):
    data, model = make_data("ragged", 45, 20), train(wrote)
    weights, whole_file = tmp_path / "m.weights.h5", tmp_path / "m.keras"
    model.save_weights(weights)
    model.save(whole_file)
    predicted = model.predict(data, verbose=0)
    plan = PLANS[(PAIRS.index((wrote, reads)) + 1) % len(PLANS)]
    with strategy_of(reads, any_number=True).scope():
        again = make_model("adam", plan)
        again.load_weights(weights)
        whole = keras.models.load_model(whole_file)
    for other in (again, whole):
        compare(model, other, atol=0)
        np.testing.assert_allclose(other.predict(data, verbose=0), predicted, atol=1e-6)
    # Training goes on as it would have.
    expected = make_model("adam")
    expected.load_weights(weights)
    for other in (expected, again):
        other.fit(data, verbose=0)
    compare(expected, again)


@pytest.mark.parametrize(
    "num_devices", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 4, 8))]
)
@on_devices(8)
def test_an_export_has_each_weight_once(num_devices, tmp_path):
    data, model = make_data("ragged", 45, 20), train(num_devices)
    exported = tf_dlrm.export_saved_model(model, tmp_path, max_hotness=3)
    served = tf.saved_model.load(exported).signatures["serving_default"]
    got = [
        served(
            dense_features=features["dense_features"],
            sparse_features=features["sparse_features"].to_tensor(
                -1, shape=(None, 5, 3)
            ),
        )["probabilities"]
        for features, *_ in data
    ]
    predicted = model.predict(data, verbose=0)
    np.testing.assert_allclose(np.concatenate(got), predicted, atol=1e-6)
    reader = tf.train.load_checkpoint(exported + "/variables/variables")
    sizes = reader.get_variable_to_shape_map()
    num_values = sum(int(np.prod(s)) for k, s in sizes.items() if "weights" in k)
    num_dense = sum(int(np.prod(v.shape)) for v in model.dense_variables)
    num_nulls = 8 * len(model.embedding.lookup_variables)
    assert num_values <= num_dense + 8 * sum(SIZES) + num_nulls, sizes


@pytest.mark.breadth(0, 1)
@pytest.mark.parametrize("plan", [COPIES, MIXED], ids=["copies", "mixed"])
@on_devices(2)
def test_a_checkpoint_needs_equal_shards(plan, tmp_path):
    """`tf.train.Checkpoint`: exact with equal shards, refused with others."""
    data = make_data("one_hot", 45, 20)
    with strategy_of(2).scope():
        model = make_model("adam", plan)
        model.fit(data, verbose=0)
        path = tf.train.Checkpoint(model=model).save(str(tmp_path / "c"))
        again = make_model("adam", plan)
        tf.train.Checkpoint(model=again).restore(path).assert_consumed()
        other = make_model("adam", "table_wise")
    if plan != COPIES:
        with pytest.raises(ValueError, match="save_weights"):
            tf.train.Checkpoint(model=other).restore(path).expect_partial()
    compare(model, again, atol=0)
    for trained in (model, again):
        trained.fit(data, verbose=0)
    compare(model, again)
    check_copies(again.embedding)
