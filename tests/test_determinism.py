"""Bit-equal weights from equal seeds, and equal results whatever XLA compiles."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import tf_dlrm
from tf_dlrm.runtime import xla

SCRIPT = """
import os
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import hashlib, keras, numpy as np, tensorflow as tf, tf_dlrm

tf.config.experimental.enable_op_determinism()

def train():
    keras.utils.set_random_seed(5)
    tables = [tf_dlrm.EmbeddingTable(n, 50, 4, combiner=c)
              for n, c in zip("abc", ("sum", "mean", "sqrtn"))]
    spec = tf_dlrm.FeatureSpec(("d", "e"), tables)
    top = tf_dlrm.layers.MLP((16, 1), dropout=0.3)
    model = tf_dlrm.DLRM(spec, (8, 4), top)
    metrics = tf_dlrm.metrics.click_metrics()
    model.compile(keras.optimizers.Adagrad(0.1), metrics=metrics)
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 6, 300 * 3)
    values = rng.integers(0, 50, lengths.sum())
    inner = tf.RaggedTensor.from_row_lengths(values, lengths)
    ids = tf.RaggedTensor.from_uniform_row_length(inner, 3)
    x = {"dense_features": rng.normal(size=(300, 2)).astype("float32"),
         "sparse_features": ids}
    y = rng.integers(0, 2, 300).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(300, seed=1).batch(64)
    model.fit(data, epochs=3, verbose=0)
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    return digest.hexdigest()

print(train() == train())
"""


@pytest.mark.integration
def test_equal_seeds_give_bit_equal_weights():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True"]


@pytest.mark.breadth(0, 1)
@pytest.mark.parametrize("embedding_optimizer", ["sgd", "adagrad", "row_wise_adagrad"])
def test_jit_compile_changes_the_speed_only(embedding_optimizer):
    rng = np.random.default_rng(0)
    spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable(n, 30, 4) for n in "ab"])
    first = tf_dlrm.DLRM(spec, (8, 4), (8, 1))
    x = {
        "dense_features": rng.normal(size=(100, 1)).astype("float32"),
        "sparse_features": rng.integers(-1, 30, (100, 2)),
    }
    y = rng.integers(0, 2, 100).astype("float32")
    results = []
    for jit_compile in ("auto", True, False):
        model = tf_dlrm.DLRM.from_config(first.get_config())
        model.set_weights(first.get_weights())
        model.compile(
            "adagrad",
            jit_compile=jit_compile,
            embedding_optimizer=tf_dlrm.optimizers.get(embedding_optimizer)
            if embedding_optimizer == "row_wise_adagrad"
            else embedding_optimizer,
        )
        # The last batch is a smaller one.
        model.fit(x, y, batch_size=32, epochs=2, shuffle=False, verbose=0)
        results.append(model.get_weights() + [model.predict(x, verbose=0)])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            # Sums in another order: steps of 0.001 agree to float32 rounding.
            np.testing.assert_allclose(a, b, atol=2e-6)


@pytest.mark.xla
@pytest.mark.integration
def test_jit_compile_false_compiles_nothing(monkeypatch):
    spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable("a", 30, 4)])
    x = {"dense_features": np.ones((9, 1)), "sparse_features": np.zeros((9, 1), int)}
    y = np.ones(9, "float32")
    compiled, call = [], xla.Kernel.__call__

    def spy(kernel, *arguments, **options):
        if options.get("compiled", xla.enabled()):
            compiled.append(kernel._name)
        return call(kernel, *arguments, **options)

    monkeypatch.setattr(xla.Kernel, "__call__", spy)
    for jit_compile in ("auto", False):
        model = tf_dlrm.DLRM(spec, (8, 4), (8, 1))
        metrics = tf_dlrm.metrics.click_metrics()
        model.compile("adam", metrics=metrics, jit_compile=jit_compile)
        model.fit(x, y, verbose=0, validation_data=(x, y))
        model.evaluate(x, y, verbose=0)
        model.predict(x, verbose=0)
        model.train_on_batch(x, y)
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x))
        tape.gradient(loss, model.trainable_variables)
        if jit_compile == "auto":  # the spy sees what is compiled
            names = {"embedding_lookup", "embedding_update", "dense_optimizer"}
            assert names | {"interaction", "metrics"} == set(compiled)
            compiled.clear()
    assert not compiled


@pytest.mark.integration
def test_an_export_holds_no_compiled_kernels(tmp_path):
    """Servers come without XLA."""
    spec = tf_dlrm.FeatureSpec(("d",), [tf_dlrm.EmbeddingTable("a", 30, 4)])
    model = tf_dlrm.DLRM(spec, (8, 4), (8, 1))
    model.compile("sgd")
    x = {"dense_features": np.ones((9, 1)), "sparse_features": np.zeros((9, 1), int)}
    model.predict(x, verbose=0)  # traced with kernels before
    path = tf_dlrm.export_saved_model(model, tmp_path)
    saved = saved_model_pb2.SavedModel()
    saved.ParseFromString((pathlib.Path(path) / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    assert len(functions) > 1
    for function in functions:
        assert not function.attr["_XlaMustCompile"].b, function.signature.name
        # Nor gradients of its own, which would hold them, or warn where it is loaded.
        assert not any("_gradient_op_type" in node.attr for node in function.node_def)
