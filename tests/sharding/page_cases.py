"""Runs in a process of its own: docs/hybrid_parallel.md on two devices."""

import os
import pathlib
import sys

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import keras
import numpy as np
import tensorflow as tf
from helpers import guide

import tf_dlrm

SIZES = (11, 50, 7, 101, 3)


def make_data(num_rows):
    rng = np.random.default_rng(num_rows)
    features = {
        "dense_features": rng.random((num_rows, 2)).astype("float32"),
        "sparse_features": np.stack([rng.integers(0, n, num_rows) for n in SIZES], 1),
    }
    label = rng.integers(0, 2, num_rows).astype("float32")
    return tf.data.Dataset.from_tensor_slices((features, label)).batch(20)


def main():
    (cpu,) = tf.config.list_physical_devices("CPU")
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(cpu, two)
    keras.utils.set_random_seed(1)
    tables = [tf_dlrm.EmbeddingTable(f"C{i}", n, 16) for i, n in enumerate(SIZES)]
    spec = tf_dlrm.FeatureSpec(("a", "b"), tables)
    train, valid = make_data(90), make_data(45)
    (block,) = guide.blocks("hybrid_parallel.md")
    names = {"tf": tf, "tf_dlrm": tf_dlrm, "spec": spec, "train": train, "valid": valid}
    exec(compile(block, "hybrid_parallel.md", "exec"), names)
    model = names["model"]
    assert names["strategy"].num_replicas_in_sync == 2
    assert names["embedding"].plan.num_devices == 2
    assert model.optimizer.iterations.numpy() == 5
    assert np.isfinite(model.history.history["val_auc"]).all()
    print("passed")


if __name__ == "__main__":
    main()
