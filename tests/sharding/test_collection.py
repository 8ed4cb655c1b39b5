"""A sharded collection on one device, what it refuses, and the page about it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices

import tf_dlrm
from tf_dlrm.sharding import Plan, ShardedEmbeddingCollection

TABLES = [tf_dlrm.EmbeddingTable(f"C{i}", n, 8) for i, n in enumerate((30, 5, 70))]


def test_without_a_strategy_all_shards_lie_on_one_device():
    layer = ShardedEmbeddingCollection(TABLES, seed=3)
    plain = tf_dlrm.layers.EmbeddingCollection(TABLES, seed=3)
    ids = np.array([[1, 4, 69], [-1, 0, 3]])
    np.testing.assert_array_equal(layer(ids), plain(ids))
    np.testing.assert_array_equal(layer.lookup(ids), plain.lookup(ids))


def test_config_keeps_the_request_and_no_device_numbers():
    plan = tf_dlrm.sharding.plan(TABLES, 1, strategy="row_wise")
    layer = ShardedEmbeddingCollection(TABLES, plan, seed=3)
    config = layer.get_config()
    assert config["plan"] == dict.fromkeys(("C0", "C1", "C2"), "row_wise")
    again = ShardedEmbeddingCollection.from_config(config)
    assert [s.table for s in again.plan] == [s.table for s in layer.plan]


def test_a_plan_for_other_devices_or_tables_is_refused():
    plan = tf_dlrm.sharding.plan(TABLES, 2)
    assert isinstance(plan, Plan)
    with pytest.raises(ValueError, match="is for 2 devices, but the strategy has 1"):
        ShardedEmbeddingCollection(TABLES, plan)
    with pytest.raises(ValueError):
        ShardedEmbeddingCollection(TABLES[:2], tf_dlrm.sharding.plan(TABLES, 1))
    with pytest.raises(ValueError, match="at least one EmbeddingTable"):
        ShardedEmbeddingCollection([])


def test_ids_out_of_range_name_the_table():
    layer = ShardedEmbeddingCollection(TABLES)
    with pytest.raises(tf.errors.InvalidArgumentError, match="table C1 received id 5"):
        layer(np.array([[0, 5, 0]]))


def test_a_model_that_would_leave_the_tables_frozen_is_refused():
    inputs = keras.Input((3,), dtype="int64")
    flat = keras.layers.Flatten()(ShardedEmbeddingCollection(TABLES)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(flat))
    model.compile("sgd", "mse")
    assert model.predict(np.zeros((2, 3), int), verbose=0).shape == (2, 1)
    with pytest.raises(RuntimeError, match="Train them in a DLRM"):
        model.fit(np.zeros((4, 3), int), np.zeros((4, 1)), verbose=0)


@on_devices(2)
def test_tables_split_by_columns_take_one_optimizer_after_another():
    """Row-wise statistics need whole rows of gradients, others do not."""
    table = tf_dlrm.EmbeddingTable("a", 6, 8)
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        layer = ShardedEmbeddingCollection([table], plan="column_wise")
    assert len(layer.plan) == 2
    layer.use_xla(False)
    ids = np.array([[1], [5]])
    for optimizer in ("row_wise_adagrad", "adagrad", "row_wise_adagrad"):
        layer.build_optimizer(tf_dlrm.optimizers.get(optimizer))
        before = layer.get_table("a")
        layer.apply_gradients(np.ones((2, 1, 8), np.float32), ids, learning_rate=0.1)
        assert (layer.get_table("a") != before).any(axis=1).tolist() == [
            False, True, False, False, False, True
        ]  # fmt: skip
