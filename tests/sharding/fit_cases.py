"""Runs in a process of its own: `python fit_cases.py NUM_DEVICES FOLDER`.

Stock `fit`, `evaluate` and `predict` of a DLRM with sharded tables under
MirroredStrategy against a plain one, by weights; and files from one to the other.
"""

import os
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf

import tf_dlrm

SIZES = (11, 50, 7, 101, 3)
TABLES = [tf_dlrm.EmbeddingTable(f"C{i}", n, 8) for i, n in enumerate(SIZES)]
SPEC = tf_dlrm.FeatureSpec(("a", "b"), TABLES)
NUM_ROWS = 45


def make_data(form):
    """Batches of 20, 20 and 5: the last ones do not divide by the devices."""
    rng = np.random.default_rng(0)
    if form == "one_hot":
        ids = np.stack([rng.integers(-1, n, NUM_ROWS) for n in SIZES], 1)
    else:
        lengths = rng.integers(0, 4, (NUM_ROWS, 5))
        values = [
            rng.integers(0, n, lengths[row, i])
            for row in range(NUM_ROWS)
            for i, n in enumerate(SIZES)
        ]
        bags = tf.RaggedTensor.from_row_lengths(
            np.concatenate(values), lengths.reshape(-1)
        )
        ids = tf.RaggedTensor.from_uniform_row_length(bags, 5)
    dense = rng.random((NUM_ROWS, 2)).astype("float32")
    label = rng.integers(0, 2, NUM_ROWS).astype("float32")
    features = {"dense_features": dense, "sparse_features": ids}
    return tf.data.Dataset.from_tensor_slices((features, label)).batch(20)


def make_model(optimizer, plan=None):
    keras.utils.set_random_seed(1)
    if plan is None:
        embedding = tf_dlrm.layers.EmbeddingCollection(TABLES, seed=1)
    else:
        embedding = tf_dlrm.sharding.ShardedEmbeddingCollection(TABLES, plan, seed=1)
    model = tf_dlrm.DLRM(SPEC, (16, 8), (16, 1), embedding=embedding)
    model.compile(optimizer, metrics=tf_dlrm.metrics.click_metrics())
    return model


def compare(one, many):
    for a, b in zip(one.dense_variables, many.dense_variables, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), atol=1e-5, err_msg=a.path)
    for table in TABLES:
        np.testing.assert_allclose(
            one.embedding.get_table(table.name),
            many.embedding.get_table(table.name),
            atol=1e-5,
        )


def run(strategy, form, optimizer, plan, folder):
    data = make_data(form)
    results = []
    one = make_model(optimizer)
    with strategy.scope():
        many = make_model(optimizer, plan)
    for model in (one, many):
        history = model.fit(data, epochs=2, verbose=0).history
        evaluated = model.evaluate(data, verbose=0, return_dict=True)
        predicted = model.predict(data, verbose=0)
        results.append((history, evaluated, predicted))
    compare(one, many)
    for a, b in zip(*results, strict=True):
        tf.nest.map_structure(
            lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), a, b
        )
    # Files: from many devices to one and back, optimizer state included.
    path = os.path.join(folder, f"{form}_{optimizer}.weights.h5")
    many.save_weights(path)
    fresh = make_model(optimizer)
    fresh.load_weights(path)
    one.save_weights(path)
    with strategy.scope():
        again = make_model(optimizer, "row_wise")
    again.load_weights(path)
    for model in (one, fresh, again):
        model.fit(data, verbose=0)
    compare(one, fresh)
    compare(one, again)


def main():
    num_devices, folder = int(sys.argv[1]), sys.argv[2]
    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices
    )
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(num_devices)])
    run(strategy, "one_hot", "adagrad", "auto", folder)
    run(strategy, "ragged", "sgd", "column_wise", folder)
    try:
        with strategy.scope():
            model = make_model("sgd", "auto")
            model.compile("sgd", keras.losses.BinaryCrossentropy(reduction="sum"))
    except ValueError as error:
        assert "reduction" in str(error)
        print("passed")


if __name__ == "__main__":
    main()
