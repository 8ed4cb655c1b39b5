"""Worker processes over loopback that train one model equal one device, by weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import sharded_model
from helpers.workers import Group

from tf_dlrm import optimizers

pytestmark = pytest.mark.integration

# Plan, form of the ids, optimizer. The last batch has one row, so that one of two
# workers has none.
CASES = [
    (sharded_model.COPIES, "ragged", "adagrad"),
    (sharded_model.COPIES, "one_hot", "sgd"),
    ("table_wise", "one_hot", "sgd"),
    ("table_wise", "ragged", "adagrad"),
    ("row_wise", "padded", "adagrad"),
    ("column_wise", "padded", "sgd"),
    ("column_wise", "ragged", "row_wise_adagrad"),
    ("data_parallel", "one_hot", "adagrad"),
    ("auto", "ragged", "adam"),
    ("row_wise", "one_hot", "ftrl"),
    (sharded_model.MIXED, "padded", "dense_adam"),
]


def name_of(case):
    plan, form, optimizer = case
    return f"{plan if isinstance(plan, str) else 'mixed'}-{form}-{optimizer}"


@pytest.fixture(scope="module")
def pair():
    with Group(2) as group:
        yield group


def make(strategy, plan, optimizer):
    dense = keras.optimizers.SGD(0.1)
    tables = optimizers.get(optimizer)
    if optimizer == "dense_adam":  # whose first steps are full, however small
        tables = optimizers.DenseAdam(None, epsilon=1e-3)
    elif optimizer == "adam":
        tables = optimizers.SparseAdam(None, epsilon=1e-3)
    with strategy.scope():
        return sharded_model.make_model(dense, plan, embedding_optimizer=tables)


def state_of(model):
    """All that training has changed, by name."""
    state = {f"dense {i}": v.numpy() for i, v in enumerate(model.dense_variables)}
    state |= {t.name: model.embedding.get_table(t.name) for t in sharded_model.TABLES}
    slots = model.embedding.get_state()
    for table, values in slots["slots"].items():
        state |= {f"{table}/{slot}": array for slot, array in values.items()}
    return state, slots["iterations"]


def train(strategy, plan, form, optimizer, num_rows=21, batch_size=10):
    model = make(strategy, plan, optimizer)
    data = sharded_model.make_data(form, num_rows, batch_size)
    history = model.fit(data, epochs=1, verbose=0).history
    return state_of(model), history, model.predict(data, verbose=0)


def assert_equal(results, expected, atol=1e-5):
    (state, steps), history, predictions = expected
    for (own_state, own_steps), own_history, own_predictions in results:
        assert own_steps == steps > 0
        assert own_state.keys() == state.keys()
        for name, value in state.items():
            np.testing.assert_allclose(own_state[name], value, atol=atol, err_msg=name)
        for name, values in history.items():
            np.testing.assert_allclose(own_history[name], values, atol=1e-5)
        np.testing.assert_allclose(own_predictions, predictions, atol=1e-5)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_two_workers_equal_one_device(pair, case):
    expected = train(tf.distribute.get_strategy(), *case)
    assert_equal(pair.run(train, *case), expected)


def test_two_workers_of_two_devices_equal_one_device():
    case = (sharded_model.MIXED, "ragged", "adagrad")
    with Group(2, num_devices=2) as group:
        assert_equal(
            group.run(train, *case), train(tf.distribute.get_strategy(), *case)
        )


def uneven(worker):
    """The batches of a worker: three of worker 0, one of worker 1."""
    data = sharded_model.make_data("ragged", 40, 10)
    return data.take(3) if worker == 0 else data.skip(3)


def train_uneven(strategy, plan):
    model = make(strategy, plan, "adagrad")
    own = strategy.cluster_resolver.task_id
    data = strategy.distribute_datasets_from_function(lambda context: uneven(own))
    history = model.fit(data, verbose=0).history
    return state_of(model), history, model.predict(uneven(0), verbose=0)


@pytest.mark.parametrize("plan", [sharded_model.COPIES, "row_wise"])
def test_a_worker_whose_data_end_first(pair, plan):
    model = make(tf.distribute.get_strategy(), plan, "adagrad")
    first, *others = uneven(0)
    (last,) = uneven(1)
    joined = tf.nest.map_structure(
        lambda *parts: tf.concat(parts, 0), first, last, expand_composites=False
    )
    results = [model.train_on_batch(*batch) for batch in (joined, *others)]
    history = {"loss": results[-1][:1]}
    expected = state_of(model), history, model.predict(uneven(0), verbose=0)
    assert_equal(pair.run(train_uneven, plan), expected)
