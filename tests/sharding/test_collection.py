"""Sharded tables equal plain ones: several devices, in processes of their own."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

import tf_dlrm
from tf_dlrm.sharding import Plan, ShardedEmbeddingCollection

HERE = pathlib.Path(__file__).parent


def run(script, *arguments):
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.integration
@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_lookups_and_updates_equal_those_of_one_device(num_devices):
    """Every two of devices, placement, form, optimizer, widths; `slow` has them all."""
    assert "cases passed" in run("sharded_cases.py", num_devices)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(6))  # XLA's memory is not freed: 30 a process
@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_all_cases(num_devices, first):
    assert "30 cases passed" in run("sharded_cases.py", num_devices, first, 6)


@pytest.mark.integration
@pytest.mark.parametrize("num_devices", [2, 4])
def test_fit_equals_that_of_one_device(num_devices, tmp_path):
    assert "passed" in run("fit_cases.py", num_devices, tmp_path)


@pytest.mark.integration
def test_files_go_from_some_devices_to_others(tmp_path):
    assert "passed" in run("fit_cases.py", 0, tmp_path)


@pytest.mark.integration
def test_the_program_of_the_page():
    assert "passed" in run("page_cases.py")


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [0, 2, 4, 8])
def test_all_fits_and_files(num_devices, tmp_path):
    assert "passed" in run("fit_cases.py", num_devices, tmp_path, "all")


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
    with pytest.raises(ValueError, match="is for 2 devices, the strategy has 1"):
        ShardedEmbeddingCollection(TABLES, plan)
    with pytest.raises(ValueError):
        ShardedEmbeddingCollection(TABLES[:2], tf_dlrm.sharding.plan(TABLES, 1))
    with pytest.raises(ValueError, match="at least one EmbeddingTable"):
        ShardedEmbeddingCollection([])


def test_ids_out_of_range_name_the_table():
    import tensorflow as tf

    layer = ShardedEmbeddingCollection(TABLES)
    with pytest.raises(tf.errors.InvalidArgumentError, match="table C1 received id 5"):
        layer(np.array([[0, 5, 0]]))


def test_a_model_that_would_leave_the_tables_frozen_is_refused():
    import keras

    inputs = keras.Input((3,), dtype="int64")
    flat = keras.layers.Flatten()(ShardedEmbeddingCollection(TABLES)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(flat))
    model.compile("sgd", "mse")
    assert model.predict(np.zeros((2, 3), int), verbose=0).shape == (2, 1)
    with pytest.raises(RuntimeError, match="train them in a DLRM"):
        model.fit(np.zeros((4, 3), int), np.zeros((4, 1)), verbose=0)
