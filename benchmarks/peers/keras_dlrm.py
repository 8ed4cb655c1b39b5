"""Stock Keras 3 in `model.fit` under XLA: an `Embedding` a table, SGD.

Bags of more than one id are padded, and summed under a mask.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["KERAS_BACKEND"] = "tensorflow"

import time  # noqa: E402

import keras  # noqa: E402
import keras_rs  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
from common import LEARNING_RATE, make_pool, read_job, report  # noqa: E402


def make_model(workload):
    """A functional DLRM of stock layers."""
    hotness, width = workload["max_hotness"], workload["embedding_dim"]
    dense = keras.Input((workload["num_dense"],))
    shape = () if hotness == 1 else (hotness,)
    ids = [keras.Input(shape, dtype="int32") for _ in workload["table_sizes"]]
    masks = [] if hotness == 1 else [keras.Input(shape) for _ in ids]
    uniform = keras.initializers.RandomUniform(-0.01, 0.01)
    vectors = [
        keras.layers.Embedding(rows, width, embeddings_initializer=uniform)(x)
        for rows, x in zip(workload["table_sizes"], ids)
    ]
    if masks:
        vectors = [
            keras.ops.sum(vector * keras.ops.expand_dims(mask, -1), axis=1)
            for vector, mask in zip(vectors, masks)
        ]
    x = dense
    for units in workload["bottom_mlp_dims"]:
        x = keras.layers.Dense(units, activation="relu")(x)
    products = keras_rs.layers.DotInteraction()([x, *vectors])
    z = keras.layers.Concatenate()([x, products])
    for units in workload["top_mlp_dims"][:-1]:
        z = keras.layers.Dense(units, activation="relu")(z)
    return keras.Model(
        [dense, *ids, *masks], keras.layers.Dense(1, activation="sigmoid")(z)
    )


def to_inputs(batch, hotness):
    """NumPy batch -> the model's inputs: dense, ids by table, masks by table."""
    dense, _, bags = batch
    if hotness == 1:
        return [dense, *(ids for ids, _ in bags)]
    padded, masks = [], []
    for ids, lengths in bags:
        mask = np.arange(hotness) < lengths[:, None]
        padded.append(np.zeros(mask.shape, np.int32))
        padded[-1][mask] = ids
        masks.append(mask.astype(np.float32))
    return [dense, *padded, *masks]


class Clock(keras.callbacks.Callback):
    """When each step ended; stops when enough time is measured."""

    def __init__(self, job):
        super().__init__()
        self.times, self._job = [], job

    def on_train_batch_end(self, batch, logs=None):
        self.times.append(time.perf_counter())

    def on_epoch_end(self, epoch, logs=None):
        warmup = self._job["warmup_steps"]
        if len(self.times) > warmup + 2:
            measured = self.times[-1] - self.times[warmup]
            self.model.stop_training = measured >= self._job["seconds"]


def main():
    """Measures the job that the argument holds."""
    job = read_job()
    workload = job["workload"]
    keras.utils.set_random_seed(job["seed"])
    start = time.perf_counter()
    model = make_model(workload)
    model.compile(
        keras.optimizers.SGD(LEARNING_RATE), "binary_crossentropy", jit_compile=True
    )
    seconds_to_build = time.perf_counter() - start
    pool = make_pool(workload, job["batch_size"], job["seed"])
    inputs = [to_inputs(batch, workload["max_hotness"]) for batch in pool]
    columns = tuple(np.stack(column) for column in zip(*inputs))
    labels = np.stack([label for _, label, _ in pool])
    dataset = tf.data.Dataset.from_tensor_slices((columns, labels))
    clock = Clock(job)
    model.fit(
        dataset.repeat().prefetch(2),
        epochs=10**6,
        steps_per_epoch=10,  # Keras looks whether to stop between epochs only
        verbose=0,
        callbacks=[clock],
    )
    seconds = np.diff(clock.times[job["warmup_steps"] :])
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    report(job, seconds, seconds_to_build, versions)


if __name__ == "__main__":
    main()
