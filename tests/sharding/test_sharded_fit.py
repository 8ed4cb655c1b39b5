"""Stock `fit`, `evaluate` and `predict` of a sharded DLRM equal those of one device."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices
from helpers.sharded_model import (
    COPIES,
    MIXED,
    SIZES,
    TABLES,
    check_copies,
    compare,
    make_data,
    make_model,
    strategy_of,
)

import tf_dlrm
from tf_dlrm.runtime import replicas
from tf_dlrm.sharding import ShardedEmbeddingCollection

pytestmark = pytest.mark.integration

FTRL = {"embedding_optimizer": "ftrl"}
# devices, form of ids, optimizer, plan, rows, batch size, arguments of compile
FIT_CASES = [
    (2, "one_hot", "adagrad", "auto", 45, 20, {"jit_compile": "auto"}),
    (2, "ragged", "sgd", COPIES, 45, 20, {"steps_per_execution": 2}),
    (2, "one_hot", "sgd", "row_wise", 5, 5, {}),
    (2, "ragged", "adagrad", "column_wise", 45, 20, {}),
    (2, "ragged", "adagrad", COPIES, 45, 20, {"jit_compile": "auto"}),
    (2, "padded", "adam", COPIES, 45, 20, {}),
    (4, "one_hot", "adagrad", MIXED, 2, 2, {}),
    (4, "padded", "sgd", "table_wise", 45, 20, {"run_eagerly": True}),
    (4, "ragged", "sgd", MIXED, 45, 20, FTRL | {"steps_per_execution": 3}),
    (4, "ragged", "sgd", COPIES, 2, 2, {}),
    (8, "ragged", "adagrad", MIXED, 45, 20, {}),
    (8, "ragged", "adagrad", "data_parallel", 45, 20, {}),
    (8, "one_hot", "adam", "row_wise", 45, 20, {}),
]
FIRST = (0, 2, 7)  # those of the integration tier


def case_id(case):
    num_devices, form, optimizer, plan, num_rows, _, options = case
    plan = "mixed" if plan == MIXED else plan
    return "-".join(map(str, (num_devices, form, optimizer, plan, num_rows, *options)))


def check_fit(num_devices, form, optimizer, plan, num_rows, batch_size, options):
    data = make_data(form, num_rows, batch_size)
    one = make_model(optimizer, **options)
    with strategy_of(num_devices).scope():
        many = make_model(optimizer, plan, **options)
    results = []
    for model in (one, many):
        rates = []
        falling = keras.callbacks.LearningRateScheduler(lambda e, lr: lr / (1 + e))
        seen = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs, rates=rates: rates.append(batch)
        )
        history = model.fit(data, epochs=3, verbose=0, callbacks=[falling, seen])
        evaluated = model.evaluate(data, verbose=0, return_dict=True)
        predicted = model.predict(data.map(lambda x, y, w: x), verbose=0)
        results.append((history.history, evaluated, predicted, rates))
    start = make_model().embedding.get_table("C1")
    assert np.abs(start - many.embedding.get_table("C1")).max() > 1e-5
    compare(one, many)
    for a, b in zip(*results, strict=True):
        tf.nest.map_structure(
            lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b
        )
    check_copies(many.embedding)


@pytest.mark.parametrize("case", [FIT_CASES[i] for i in FIRST], ids=case_id)
def test_fit_equals_that_of_one_device(case):
    on_devices(case[0])(check_fit)(*case)


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [c for i, c in enumerate(FIT_CASES) if i not in FIRST], ids=case_id
)
def test_any_fit_equals_that_of_one_device(case):
    on_devices(case[0])(check_fit)(*case)


@on_devices(2)
def test_a_sum_over_the_batch_is_refused():
    with strategy_of(2).scope():
        model = make_model("sgd", "auto")
        with pytest.raises(ValueError, match="reduction"):
            model.compile("sgd", keras.losses.BinaryCrossentropy(reduction="sum"))


@pytest.mark.parametrize(
    "num_rows, options",
    [(5, {}), (4, {"steps_per_execution": 2})],
    ids=["uneven", "many"],
)
@on_devices(2)
def test_keras_alone_still_cannot(num_rows, options):
    """Fails when Keras no longer needs what `FitsUnderStrategies` does for it."""

    def fit(num_rows, **options):
        with strategy_of(2).scope():
            model = keras.Sequential([keras.layers.Dense(1, "sigmoid")])
            model.compile("sgd", "binary_crossentropy", **options)
        x, y = np.ones((num_rows, 3), "float32"), np.ones((num_rows, 1))
        model.fit(x, y, batch_size=num_rows, verbose=0)

    fit(4)
    with pytest.raises(Exception):  # noqa: B017  several kinds, none of them promised
        fit(num_rows, **options)


@on_devices(2)
def test_copies_in_a_users_model_train_as_on_one_device():
    """By the tape: the model is no DLRM."""

    def make():
        keras.utils.set_random_seed(1)
        tables = tf_dlrm.layers.EmbeddingCollection(TABLES, seed=1)
        inputs = keras.Input((5,), dtype="int64")
        flat = keras.layers.Flatten()(tables(inputs))
        model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(flat))
        model.compile("adagrad", "binary_crossentropy")
        return model, tables

    rng = np.random.default_rng(0)
    ids = np.stack([rng.integers(-1, n, 40) for n in SIZES], 1)
    y = rng.integers(0, 2, (40, 1))
    one, one_tables = make()
    with strategy_of(2).scope():
        many, many_tables = make()
    for model in (one, many):
        model.fit(ids, y, batch_size=20, epochs=2, shuffle=False, verbose=0)
    for table in TABLES:
        np.testing.assert_allclose(
            one_tables.get_table(table.name),
            many_tables.get_table(table.name),
            atol=1e-5,
        )
    check_copies(many_tables)


def check_bytes(num_devices, plan, num_rows=256):
    """What crosses devices in the graph of a step is what the plan says."""
    with strategy_of(num_devices).scope():
        sharded = ShardedEmbeddingCollection(
            TABLES, plan, plan_options={"batch_size": num_rows}
        )
        sharded.build_optimizer(tf_dlrm.optimizers.SparseSGD(0.1))
    ids = tf.zeros((num_rows // num_devices, len(TABLES)), tf.int64)

    @tf.function
    def step(ids):
        def in_replica(ids):
            ids += tf.cast(replicas.number(), tf.int64)
            pooled = sharded(ids)
            sharded.apply_gradients(pooled * 2.0, ids)

        strategy_of(num_devices).run(in_replica, args=(ids,))

    sharded.use_xla(False)
    graph = step.get_concrete_function(ids).graph
    # TensorFlow computes equal operations of equal inputs once.
    names = {}

    def content(tensor):
        operation = tensor.op
        if tensor.ref() not in names:
            inputs = [content(each) for each in operation.inputs]
            options = sorted((k, str(v)) for k, v in operation.node_def.attr.items())
            found = (operation.type, operation.device, options, inputs)
            if operation.type == "Placeholder":
                found = operation.name
            names[tensor.ref()] = hash((str(found), tensor.value_index))
        return names[tensor.ref()]

    crossing = {
        (content(tensor), operation.device): tensor.shape.num_elements()
        * tensor.dtype.size
        for operation in graph.get_operations()
        for tensor in operation.inputs
        if tensor.dtype not in (tf.resource, tf.variant, tf.bool)
        and tensor.shape.rank
        and tensor.op.device
        and operation.device
        and tensor.op.device != operation.device
    }
    expected = sharded.plan.exchange_bytes(routed=False)["total"]
    np.testing.assert_allclose(sum(crossing.values()), expected, rtol=0.02)


@pytest.mark.parametrize("num_devices", [2, 4])
@pytest.mark.parametrize(
    "plan",
    ["table_wise", "row_wise", "column_wise", "data_parallel", MIXED],
    ids=lambda plan: plan if isinstance(plan, str) else "mixed",
)
def test_what_crosses_devices_is_what_the_plan_says(num_devices, plan):
    on_devices(num_devices)(check_bytes)(num_devices, plan)


def check_memory(num_devices):
    """Rows and optimizer state lie where the plan says, and nothing else does."""
    sizes = (9000, 100, 40_000, 7000, 33)
    tables = [tf_dlrm.EmbeddingTable(f"C{i}", n, 8) for i, n in enumerate(sizes)]
    with strategy_of(num_devices).scope():
        sharded = ShardedEmbeddingCollection(
            tables, plan_options={"optimizer": "adam", "batch_size": 64}
        )
        sharded.build_optimizer(tf_dlrm.optimizers.get("adam"))
    held = dict.fromkeys(sharded.devices, 0)
    for group in sharded._store.groups:
        for variable in (group.fused.variable, *group.fused.slots.values()):
            assert variable.device == sharded.devices[group.device]
            assert variable.numpy().nbytes == 4 * variable.shape.num_elements()
            held[variable.device] += 4 * variable.shape.num_elements()
    np.testing.assert_allclose(list(held.values()), sharded.plan.memory_bytes, rtol=0.1)
    share = 3 * 4 * 8 * sum(sizes) / num_devices
    np.testing.assert_allclose(list(held.values()), share, rtol=0.1)


@pytest.mark.parametrize("num_devices", [2, 4])
def test_memory_lies_where_the_plan_says(num_devices):
    on_devices(num_devices)(check_memory)(num_devices)
