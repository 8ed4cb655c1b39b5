"""Runs in a process of its own: `python resume_device_cases.py FOLDER`.

A training on two devices is cut, and goes on on two, bit for bit, and on others.
"""

import os
import pathlib
import shutil
import sys
import warnings

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf

import tf_dlrm
from pipelines import records
from tf_dlrm.callbacks import ResumableTraining
from tf_dlrm.sharding import ShardedEmbeddingCollection

NUM_ROWS, EPOCHS, SIZES = 96, 2, (30, 7, 20)


class CutError(Exception):
    pass


class Cut(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == 9:
            raise CutError


def strategy_of(num_devices):
    if num_devices == 1:
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(num_devices)],
        tf.distribute.ReductionToOneDevice(),  # any number in one process
    )


def train(folder, num_devices, name, dropout, cut=False):
    keras.utils.set_random_seed(3)
    with strategy_of(num_devices).scope():
        tables = [tf_dlrm.EmbeddingTable(f"C{i}", n, 8) for i, n in enumerate(SIZES)]
        embedding = None
        if num_devices > 1:
            embedding = ShardedEmbeddingCollection(tables, "row_wise", seed=1)
        model = tf_dlrm.DLRM(
            tf_dlrm.FeatureSpec(("I0",), tables),
            (8,),
            tf_dlrm.layers.MLP((8, 1), dropout=dropout),
            embedding=embedding,
        )
        metrics = [tf_dlrm.metrics.ClickAUC()]
        model.compile("adagrad", metrics=metrics, jit_compile=False)
    data = records.read(folder / "data", 16, shuffle=True, seed=2)
    checkpoint = ResumableTraining(folder / name, every_steps=2, verbose=0)
    try:
        history = model.fit(
            checkpoint.resume(model, data),
            initial_epoch=checkpoint.initial_epoch,
            epochs=EPOCHS,
            verbose=0,
            callbacks=[checkpoint, *([Cut()] if cut else [])],
        ).history
    except CutError:
        return None
    found = {f"history {k}": np.array(v) for k, v in history.items()}
    found |= {v.path: v.numpy() for v in model.dense_variables}
    state = model.embedding.get_state()
    for table in tables:
        found[table.name] = model.embedding.get_table(table.name)
        found |= {f"{table.name} {k}": v for k, v in state["slots"][table.name].items()}
    assert state["iterations"] == 12
    return list(found.values())


def main():
    folder = pathlib.Path(sys.argv[1])
    warnings.filterwarnings("ignore")
    tf.config.experimental.enable_op_determinism()
    (cpu,) = tf.config.list_physical_devices("CPU")
    parts = [tf.config.LogicalDeviceConfiguration()] * 4
    tf.config.set_logical_device_configuration(cpu, parts)
    # Which takes most of the time of so short trainings.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    rng = np.random.default_rng(0)
    names = [f"C{i}" for i in range(len(SIZES))]
    schema = records.Schema(["I0"], names, vocabulary_sizes=SIZES)
    ids = np.stack([rng.integers(0, n, NUM_ROWS) for n in SIZES], 1)
    with records.Writer(folder / "data", schema) as writer:
        labels, dense = rng.integers(0, 2, NUM_ROWS), rng.normal(size=(NUM_ROWS, 1))
        writer.append(labels, dense, ids)
    for dropout, others in ((0.3, (2,)), (0.0, (1, 4))):
        name = f"cut_{dropout}"
        whole = train(folder, 2, f"whole_{dropout}", dropout)
        assert train(folder, 2, name, dropout, cut=True) is None
        for num_devices in others:
            copy = f"{name}_{num_devices}"
            shutil.copytree(folder / name, folder / copy)
            found = train(folder, num_devices, copy, dropout)
            atol = 0 if num_devices == 2 else 1e-5
            for a, b in zip(whole, found, strict=True):
                np.testing.assert_allclose(a, b, atol=atol, rtol=0)
    print("passed")


if __name__ == "__main__":
    main()
