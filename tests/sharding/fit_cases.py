"""Runs in a process of its own: `python fit_cases.py NUM_DEVICES FOLDER`.

Stock `fit`, `evaluate` and `predict` of a DLRM under MirroredStrategy against one
without a strategy, by weights. With 0 devices: what some numbers of devices write, and
others read; `python fit_cases.py 0 FOLDER all`: all pairs of 1, 2, 4 and 8.
"""

import functools
import itertools
import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf

import tf_dlrm
from tf_dlrm.runtime import replicas
from tf_dlrm.sharding import ShardedEmbeddingCollection

SIZES = (11, 50, 7, 101, 3)
TABLES = [tf_dlrm.EmbeddingTable(f"C{i}", n, 8) for i, n in enumerate(SIZES)]
SPEC = tf_dlrm.FeatureSpec(("a", "b"), TABLES)
MIXED = dict(
    zip(
        (table.name for table in TABLES),
        ("table_wise", "row_wise", "column_wise", "data_parallel", "data_parallel"),
    )
)
MANY = sys.argv[1] == "0"
COPIES = "copies"  # an EmbeddingCollection, which is not sharded
FTRL = {"embedding_optimizer": "ftrl"}
# devices, form of ids, optimizer, plan, rows, batch size, arguments of compile; the
# first of each number of devices are run by default
NUM_DEFAULT = {2: 3, 4: 2, 8: 1}
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


def make_data(form, num_rows, batch_size):
    """Batches whose last one does not divide by the devices."""
    rng = np.random.default_rng(0)
    if form == "one_hot":
        ids = np.stack([rng.integers(-1, n, num_rows) for n in SIZES], 1)
    elif form == "padded":
        ids = np.stack([rng.integers(-1, n, (num_rows, 3)) for n in SIZES], 1)
    else:
        lengths = rng.integers(0, 4, (num_rows, 5))
        values = [
            rng.integers(0, n, lengths[row, i])
            for row in range(num_rows)
            for i, n in enumerate(SIZES)
        ]
        bags = tf.RaggedTensor.from_row_lengths(
            np.concatenate(values), lengths.reshape(-1)
        )
        ids = tf.RaggedTensor.from_uniform_row_length(bags, 5)
    features = {
        "dense_features": rng.random((num_rows, 2)).astype("float32"),
        "sparse_features": ids,
    }
    label = rng.integers(0, 2, num_rows).astype("float32")
    weight = rng.uniform(0.5, 2, num_rows).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((features, label, weight))
    return data.batch(batch_size)


def make_model(optimizer="adagrad", plan=COPIES, **options):
    keras.utils.set_random_seed(1)
    if plan == COPIES:
        embedding = tf_dlrm.layers.EmbeddingCollection(TABLES, seed=1)
    else:
        embedding = ShardedEmbeddingCollection(TABLES, plan, seed=1)
    model = tf_dlrm.DLRM(SPEC, (16, 8), (16, 1), embedding=embedding)
    options = {"jit_compile": False, **options}
    metrics = [tf_dlrm.metrics.ClickAUC(), tf_dlrm.metrics.Calibration()]
    model.compile(optimizer, metrics=metrics, **options)
    return model


@functools.cache  # two strategies of the same devices would mix up their operations
def strategy_of(num_devices):
    if num_devices == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(num_devices)],
        # Collective operations know one number of devices in a process.
        tf.distribute.ReductionToOneDevice() if MANY else None,
    )


def compare(one, many, atol=1e-5):
    for a, b in zip(one.dense_variables, many.dense_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=atol, err_msg=a.path)
    for table in TABLES:
        np.testing.assert_allclose(
            one.embedding.get_table(table.name),
            many.embedding.get_table(table.name),
            atol=atol,
            err_msg=table.name,
        )
    a, b = one.embedding.get_state(), many.embedding.get_state()
    assert a["iterations"] == b["iterations"] > 0
    for name, slots in a["slots"].items():
        for slot, values in slots.items():
            np.testing.assert_allclose(b["slots"][name][slot], values, atol=atol)


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


def check_copies(embedding):
    """All devices have the same copy."""
    if not hasattr(embedding, "_copies"):
        return
    for group in zip(*embedding._store.copies):
        first, *others = [fused.variable.numpy() for fused in group]
        for other in others:
            np.testing.assert_array_equal(other, first)


def check_refusal():
    with strategy_of(2).scope():
        model = make_model("sgd", "auto")
        try:
            model.compile("sgd", keras.losses.BinaryCrossentropy(reduction="sum"))
        except ValueError as error:
            assert "reduction" in str(error)
            return
    raise AssertionError("a sum over the batch was not refused")


def check_upstream():
    """Fails when Keras no longer needs what `FitsUnderStrategies` does for it."""

    def fit(num_rows, **options):
        with strategy_of(2).scope():
            model = keras.Sequential([keras.layers.Dense(1, "sigmoid")])
            model.compile("sgd", "binary_crossentropy", **options)
        x, y = np.ones((num_rows, 3), "float32"), np.ones((num_rows, 1))
        model.fit(x, y, batch_size=num_rows, verbose=0)

    fit(4)
    for num_rows, options in ((5, {}), (4, {"steps_per_execution": 2})):
        try:
            fit(num_rows, **options)
        except Exception:
            continue
        raise AssertionError(f"Keras can do it now: {num_rows} rows, {options}")


def check_users_model():
    """In a model of the user's own, copies train by the tape as on one device."""

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

    with tf_dlrm.runtime.xla.disabled():
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


PLANS = (COPIES, "table_wise", "row_wise", "column_wise", MIXED)


def check_files(folder):
    """From some devices to others, across plans: weights and optimizer state."""
    counts = (1, 2, 4, 8) if "all" in sys.argv else (1, 2)
    pairs = list(itertools.product(counts, counts))
    if "all" not in sys.argv:
        pairs = [(1, 4), (2, 1)]
    data = make_data("ragged", 45, 20)
    plans = itertools.cycle(PLANS)
    written = {}
    for num_devices in counts:
        path = os.path.join(folder, f"from_{num_devices}")
        with strategy_of(num_devices).scope():
            model = make_model("adam", next(plans))
        model.fit(data, verbose=0)
        model.save_weights(path + ".weights.h5")
        model.save(path + ".keras")
        written[num_devices] = (path, model, model.predict(data, verbose=0))
    for wrote, num_devices in pairs:
        path, model, predicted = written[wrote]
        with strategy_of(num_devices).scope():
            again = make_model("adam", next(plans))
            again.load_weights(path + ".weights.h5")
            whole = keras.models.load_model(path + ".keras")
        for other in (again, whole):
            compare(model, other, atol=0)
            got = other.predict(data, verbose=0)
            np.testing.assert_allclose(got, predicted, atol=1e-6)
        # Training goes on as it would have.
        expected = make_model("adam")
        expected.load_weights(path + ".weights.h5")
        for other in (expected, again):
            other.fit(data, verbose=0)
        compare(expected, again)
    check_exports(written.values(), data)
    check_checkpoints(folder)


def check_exports(written, data):
    """Each weight once; the same predictions as on one device."""
    for path, model, predicted in written:
        exported = tf_dlrm.export_saved_model(model, path, max_hotness=3)
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
        np.testing.assert_allclose(np.concatenate(got), predicted, atol=1e-6)
        reader = tf.train.load_checkpoint(exported + "/variables/variables")
        sizes = reader.get_variable_to_shape_map()
        num_values = sum(int(np.prod(s)) for k, s in sizes.items() if "weights" in k)
        num_dense = sum(int(np.prod(v.shape)) for v in model.dense_variables)
        num_nulls = 8 * len(model.embedding.lookup_variables)
        assert num_values <= num_dense + 8 * sum(SIZES) + num_nulls, sizes


def check_checkpoints(folder):
    """`tf.train.Checkpoint`: exact with equal shards, refused with others."""
    data = make_data("one_hot", 45, 20)
    for num_devices, plan in ((2, COPIES), (2, MIXED)):
        with strategy_of(num_devices).scope():
            model = make_model("adam", plan)
            model.fit(data, verbose=0)
            path = tf.train.Checkpoint(model=model).save(os.path.join(folder, "c"))
            again = make_model("adam", plan)
            tf.train.Checkpoint(model=again).restore(path).assert_consumed()
            other = make_model("adam", "table_wise")
        if plan != COPIES:
            try:
                tf.train.Checkpoint(model=other).restore(path).expect_partial()
            except ValueError as error:
                assert "save_weights" in str(error), error
            else:
                raise AssertionError("a checkpoint of other shards was restored")
        compare(model, again, atol=0)
        for each in (model, again):
            each.fit(data, verbose=0)
        compare(model, again)
        check_copies(again.embedding)


def main():
    num_devices, folder = int(sys.argv[1]), sys.argv[2]
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * (num_devices or 8)
    )
    if MANY:
        check_files(folder)
    cases = [case for case in FIT_CASES if case[0] == num_devices]
    if "all" not in sys.argv:
        cases = cases[: NUM_DEFAULT.get(num_devices)]
    for case in cases:
        try:
            check_fit(*case)
        except Exception as error:
            raise AssertionError(str(case)) from error
    if not MANY:
        check_memory(num_devices)
    if num_devices in (2, 4):
        for plan in ("table_wise", "row_wise", "column_wise", "data_parallel", MIXED):
            check_bytes(num_devices, plan)
    if num_devices == 2:
        check_refusal()
        check_users_model()
        check_upstream()  # last: after its failures a process is not to be used
    print("passed")


if __name__ == "__main__":
    main()
