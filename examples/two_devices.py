"""Spread embedding tables over two devices, and get the weights of one device.

Run it with `python examples/two_devices.py`. It divides the CPU into two logical
devices, so it runs anywhere; on a machine with two GPUs, leave that line out.
"""

import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

import tf_dlrm

DEVICES = ["CPU:0", "CPU:1"]
(cpu,) = tf.config.list_physical_devices("CPU")
# Before anything else: TensorFlow fixes its devices at the first operation.
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration() for _ in DEVICES]
)
strategy = tf.distribute.MirroredStrategy(DEVICES)

sizes = {"user": 5_000, "item": 2_000, "country": 20}
tables = [tf_dlrm.EmbeddingTable(name, size, 8) for name, size in sizes.items()]
spec = tf_dlrm.FeatureSpec(dense=("age",), tables=tables)

rng = np.random.default_rng(0)
features = {name: rng.integers(0, size, 4_000) for name, size in sizes.items()}
features["age"] = rng.normal(size=4_000).astype("float32")
click = (rng.random(4_000) < 0.2).astype("float32")
# The batch is that of both devices together: each takes 128 of the 256 rows.
train = tf.data.Dataset.from_tensor_slices((features, click)).batch(256)


def make_model(embedding=None):
    keras.utils.set_random_seed(0)
    model = tf_dlrm.DLRM(spec, (16, 8), (16, 1), embedding=embedding)
    adagrad = keras.optimizers.Adagrad(0.01, initial_accumulator_value=1e-3)
    # Compiling would take longer than this short run.
    model.compile(adagrad, jit_compile=False)
    return model


one = make_model()
with strategy.scope():
    embedding = tf_dlrm.sharding.ShardedEmbeddingCollection(
        spec.tables, plan="auto", plan_options={"batch_size": 256}
    )
    two = make_model(embedding)
# A file holds whole tables, so it loads on any number of devices.
weights_path = pathlib.Path(tempfile.mkdtemp()) / "initial.weights.h5"
one.save_weights(weights_path)
two.load_weights(weights_path)
before = {name: one.embedding.get_table(name) for name in sizes}

for model in (one, two):
    model.fit(train, epochs=2, verbose=0)
print(embedding.plan)
print("Largest change by training, largest difference between one and two devices:")
for name in sizes:
    alone, spread = one.embedding.get_table(name), two.embedding.get_table(name)
    change, difference = abs(alone - before[name]).max(), abs(alone - spread).max()
    print(f"{name:<8} {change:.1e} {difference:.1e}")
