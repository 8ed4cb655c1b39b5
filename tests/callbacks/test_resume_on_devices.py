"""A training on two devices is cut, and resumes on two, bit for bit, and on others."""

import shutil
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.devices import on_devices

import tf_dlrm
from pipelines import records
from tf_dlrm.callbacks import ResumableTraining
from tf_dlrm.sharding import ShardedEmbeddingCollection

pytestmark = pytest.mark.integration

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
    values = {f"history {k}": np.array(v) for k, v in history.items()}
    values |= {v.path: v.numpy() for v in model.dense_variables}
    state = model.embedding.get_state()
    for table in tables:
        values[table.name] = model.embedding.get_table(table.name)
        values |= {
            f"{table.name} {k}": v for k, v in state["slots"][table.name].items()
        }
    assert state["iterations"] == 12
    return list(values.values())


def write_rows(folder):
    rng = np.random.default_rng(0)
    names = [f"C{i}" for i in range(len(SIZES))]
    schema = records.Schema(["I0"], names, vocabulary_sizes=SIZES)
    ids = np.stack([rng.integers(0, n, NUM_ROWS) for n in SIZES], 1)
    with records.Writer(folder / "data", schema) as writer:
        labels, dense = rng.integers(0, 2, NUM_ROWS), rng.normal(size=(NUM_ROWS, 1))
        writer.append(labels, dense, ids)


@pytest.mark.breadth(0, 1)
@pytest.mark.parametrize(
    "dropout, num_devices", [(0.3, 2), (0.0, 1), (0.0, 4)], ids=["2", "1", "4"]
)
@on_devices(4)
def test_a_training_cut_on_two_devices_resumes_on(dropout, num_devices, tmp_path):
    warnings.filterwarnings("ignore")
    tf.config.experimental.enable_op_determinism()
    # Which takes most of the time of so short trainings.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    write_rows(tmp_path)
    whole = train(tmp_path, 2, "whole", dropout)
    assert train(tmp_path, 2, "cut", dropout, cut=True) is None
    shutil.copytree(tmp_path / "cut", tmp_path / "copy")
    resumed = train(tmp_path, num_devices, "copy", dropout)
    atol = 0 if num_devices == 2 else 1e-5
    for a, b in zip(whole, resumed, strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=0)
