"""No temporary of a table's size: in fit, evaluate, predict, calls, gradients."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration

SCRIPT = """
import os, resource, sys
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras, numpy as np, tensorflow as tf
import tf_dlrm

def peak_mb():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def train(num_rows):
    tables = [tf_dlrm.EmbeddingTable(n, num_rows // 2, 16) for n in "ab"]
    spec = tf_dlrm.FeatureSpec(("d",), tables)
    model = tf_dlrm.DLRM(spec, (16,), (16, 1))
    model.compile(sys.argv[1], metrics=tf_dlrm.metrics.click_metrics())
    start = peak_mb()
    rng = np.random.default_rng(0)
    x = {"dense_features": np.ones((512, 1), "float32"),
         "sparse_features": rng.integers(0, num_rows // 2, (512, 2))}
    y = np.ones(512, "float32")
    model.fit(x, y, batch_size=128, verbose=0, validation_data=(x, y))
    model.train_on_batch(x, y)
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    model(x)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(x, training=True))
    gradients = tape.gradient(loss, model.trainable_variables)
    return peak_mb() - start

train(1000)  # what TensorFlow itself takes, once and for each model
programs = train(1000)
print(train(10_000_000) - programs)
"""


@pytest.mark.breadth(0, 1)
@pytest.mark.parametrize("optimizer", ["adam", "adagrad", "sgd"])
def test_no_temporary_of_a_tables_size(optimizer):
    """Two tables of 320 MB; half of one is far above what busy threads leave."""
    command = [sys.executable, "-c", SCRIPT, optimizer]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) < 160
