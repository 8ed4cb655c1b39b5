"""Worker processes over loopback that train one model equal one device, by weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import sharded_model
from helpers.workers import Group

import tf_dlrm
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
    batches = tf.data.Dataset.from_generator(
        lambda: iter((joined, *others)), output_signature=uneven(0).element_spec
    )
    history = model.fit(batches, verbose=0).history
    expected = state_of(model), history, model.predict(uneven(0), verbose=0)
    assert_equal(pair.run(train_uneven, plan), expected)


def save(strategy, plan, folder):
    model = make(strategy, plan, "adagrad")
    data = sharded_model.make_data("ragged", 20, 10)
    model.fit(data, verbose=0)
    model.save(f"{folder}/model.keras")
    model.save_weights(f"{folder}/model.weights.h5")
    rows = model.embedding.get_rows("C3", [100, 0, 7])
    again = make(strategy, plan, "adagrad")
    again.load_weights(f"{folder}/model.weights.h5")
    return state_of(model), state_of(again), rows, model.predict(data, verbose=0)


@pytest.mark.parametrize(
    "plan", [sharded_model.COPIES, sharded_model.MIXED], ids=["copies", "mixed"]
)
def test_files_of_two_workers_load_anywhere(pair, plan, tmp_path):
    results = pair.run(save, plan, str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.keras",
        "model.weights.h5",
    }
    one = keras.saving.load_model(tmp_path / "model.keras")
    data = sharded_model.make_data("ragged", 20, 10)
    predictions, state = one.predict(data, verbose=0), state_of(one)
    for saved, loaded, rows, own_predictions in results:
        np.testing.assert_allclose(own_predictions, predictions, atol=1e-6)
        np.testing.assert_array_equal(rows, state[0]["C3"][[100, 0, 7]])
        for own, steps in (saved, loaded):
            assert steps == state[1]
            for name, value in state[0].items():
                np.testing.assert_array_equal(own[name], value, err_msg=name)


def refuse(strategy, folder):
    """Return the messages of what one worker cannot do alone."""
    with strategy.scope():
        model = make(strategy, "row_wise", "adagrad")
    ids = np.zeros((2, 5), int)
    calls = [
        lambda: model.embedding(ids),
        lambda: model.embedding.lookup(ids),
        lambda: tf_dlrm.export_saved_model(model, folder),
        lambda: tf.train.Checkpoint(model=model).save(f"{folder}/checkpoint"),
    ]
    messages = []
    for call in calls:
        try:
            call()
            messages.append("it was not refused")
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_what_one_worker_cannot_do_alone_is_refused(pair, tmp_path):
    expected = ("by all workers at once", "on one device", "exported", "one worker")
    for messages in pair.run(refuse, str(tmp_path)):
        for message, part in zip(messages, expected, strict=True):
            assert part in message


def start_at_random(strategy, plan, seed):
    """Return the initial tables; each worker draws other random numbers."""
    keras.utils.set_random_seed(seed + strategy.cluster_resolver.task_id)
    own = keras.initializers.RandomNormal()
    tables = [
        tf_dlrm.EmbeddingTable("a", 30, 4),
        tf_dlrm.EmbeddingTable("b", 20, 4, initializer=own),
    ]
    with strategy.scope():
        if plan == sharded_model.COPIES:
            layer = tf_dlrm.layers.EmbeddingCollection(tables)
        else:
            layer = tf_dlrm.sharding.ShardedEmbeddingCollection(tables, plan)
    variables = [v.numpy() for v in layer.lookup_variables]
    return layer.seed, [layer.get_table("a"), layer.get_table("b")], variables


@pytest.mark.parametrize("plan", [sharded_model.COPIES, "data_parallel", "row_wise"])
def test_workers_agree_on_initial_values(pair, plan):
    (seed, tables, variables), (other_seed, others, other_variables) = pair.run(
        start_at_random, plan, 5
    )
    assert seed == other_seed
    for table, other in zip(tables, others, strict=True):
        np.testing.assert_array_equal(table, other)
        assert table.std() > 0.01
    if plan != "row_wise":  # each worker has a copy of everything
        for value, other in zip(variables, other_variables, strict=True):
            np.testing.assert_array_equal(value, other)


def differ(strategy):
    size = 10 + strategy.cluster_resolver.task_id
    with strategy.scope():
        try:
            tf_dlrm.layers.EmbeddingCollection([tf_dlrm.EmbeddingTable("a", size, 4)])
        except ValueError as error:
            return str(error)


def test_other_tables_in_a_worker_are_refused(pair):
    for message in pair.run(differ):
        assert "All workers must create the same tables" in message
        assert "worker 1 (worker 1, 127.0.0.1:" in message


def skip_a_batch(strategy):
    """Only the part of one worker has a value that is not finite."""
    model = make(strategy, "auto", "adagrad")
    features, label, weight = next(iter(sharded_model.make_data("one_hot", 8, 8)))
    before, _ = state_of(model)
    features["dense_features"] = features["dense_features"].numpy()
    features["dense_features"][0] = np.nan
    data = tf.data.Dataset.from_tensors((features, label, weight)).unbatch().batch(8)
    try:
        model.fit(data, verbose=0)
    except tf_dlrm.training.NotFiniteError as error:
        message = str(error)
    after, _ = state_of(model)
    same = all(np.array_equal(after[name], before[name]) for name in before)
    return model.num_skipped_batches, same, message


def test_a_batch_that_one_worker_cannot_apply_is_skipped_by_all(pair):
    for number, same, message in pair.run(skip_a_batch):
        assert (number, same) == (1, True)
        assert "dense features" in message
