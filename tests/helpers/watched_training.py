"""What the callbacks for TensorBoard write, against NumPy in float64."""

import keras
import numpy as np
import tensorflow as tf

import tf_dlrm
from helpers import event_files
from tf_dlrm import callbacks
from tf_dlrm.sharding import ShardedEmbeddingCollection

SIZES = {"a": 40, "b": 9, "c": 25, "d": 6}
PLAN = dict(
    zip(SIZES, ("row_wise", "column_wise", "table_wise", "data_parallel"), strict=True)
)
TABLES = [tf_dlrm.EmbeddingTable(name, n, 8) for name, n in SIZES.items()]
SPEC = tf_dlrm.FeatureSpec(("x", "y", "z"), TABLES)
BATCH_SIZE, STEPS, EPOCHS = 7, 2, 2  # of two devices one has a row more
NUM_ROWS = BATCH_SIZE * STEPS * EPOCHS


def make_rows(form):
    """Dense features, ids (a list of bags by row and feature), labels."""
    rng = np.random.default_rng(5)
    dense = rng.normal(size=(NUM_ROWS, 3)).astype("float32")
    label = rng.integers(0, 2, NUM_ROWS).astype("float32")
    lengths = np.ones((NUM_ROWS, len(SIZES)), int)
    if form == "ragged":
        lengths = rng.integers(0, 4, lengths.shape)
    bags = [
        [rng.integers(0, size, n).tolist() for size, n in zip(SIZES.values(), row)]
        for row in lengths
    ]
    return dense, bags, label


def make_dataset(form):
    dense, bags, label = make_rows(form)
    if form == "ragged":
        flat = tf.ragged.constant([bag for row in bags for bag in row], dtype=tf.int64)
        ids = tf.RaggedTensor.from_uniform_row_length(flat, len(SIZES))
    else:
        ids = np.array(bags)[:, :, 0]
        ids[1, 0] = -1  # no id
        bags[1][0] = []
    features = {"dense_features": dense, "sparse_features": ids}
    return tf.data.Dataset.from_tensor_slices((features, label)).batch(BATCH_SIZE), bags


def make_model(num_devices, jit_compile=False):
    keras.utils.set_random_seed(3)
    embedding = None
    if num_devices > 1:
        embedding = ShardedEmbeddingCollection(TABLES, PLAN, seed=4)
    model = tf_dlrm.DLRM(SPEC, (8,), (16, 1), interaction="cat", embedding=embedding)
    model.compile(
        keras.optimizers.SGD(0.3),
        metrics=tf_dlrm.metrics.click_metrics(),
        jit_compile=jit_compile,
    )
    return model


def gradient_norms(model, dense, bags, label):
    """Of the first batch, by hand: of the MLPs and of the pooled vectors."""
    x = dense[:BATCH_SIZE].astype(np.float64)
    y = label[:BATCH_SIZE, None].astype(np.float64)
    tables = [model.embedding.get_table(t.name).astype(np.float64) for t in TABLES]
    pooled = np.array(
        [[t[bag].sum(0) for t, bag in zip(tables, row)] for row in bags[:BATCH_SIZE]]
    ).reshape(BATCH_SIZE, -1)
    (w0, b0), (w1, b1), (w2, b2) = [
        [np.asarray(v.numpy(), np.float64) for v in layer.weights]
        for layer in (*model.bottom_mlp.dense_layers, *model.top_mlp.dense_layers)
    ]
    z = np.maximum(x @ w0 + b0, 0)
    h0 = np.concatenate([z, pooled], 1)
    h1 = np.maximum(h0 @ w1 + b1, 0)
    d2 = (1 / (1 + np.exp(-(h1 @ w2 + b2))) - y) / BATCH_SIZE
    d1 = d2 @ w2.T * (h1 > 0)
    d_h0 = d1 @ w1.T
    d0 = d_h0[:, :8] * (z > 0)
    of_dense = [
        x.T @ d0, d0.sum(0), h0.T @ d1, d1.sum(0), h1.T @ d2, d2.sum(0)
    ]  # fmt: skip
    squares = sum(float((each**2).sum()) for each in of_dense)
    return np.sqrt(squares), np.sqrt((d_h0[:, 8:] ** 2).sum())


def check(folder, num_devices=1, form="one_hot", jit_compile=False):
    dataset, bags = make_dataset(form)
    dense, _, label = make_rows(form)
    strategy = tf.distribute.get_strategy()
    if num_devices > 1:
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(num_devices)]
        )
    with strategy.scope():
        model = make_model(num_devices, jit_compile)
    norms = gradient_norms(model, dense, bags, label)
    model.fit(
        dataset.repeat(),
        steps_per_epoch=STEPS,
        epochs=EPOCHS,
        validation_data=dataset,
        verbose=0,
        callbacks=[
            callbacks.TensorBoardLogger(folder, BATCH_SIZE, every_steps=1),
            callbacks.GradientNormLogger(folder, every_steps=1),
            callbacks.TouchedRowLogger(folder),
            callbacks.RowNormLogger(folder),
            callbacks.HistogramLogger(folder),
            callbacks.PRCurveLogger(folder),
            callbacks.EmbeddingProjector(folder, ["a", "c"], max_rows=30),
        ],
    )
    found = event_files.read(folder / "train")
    check_gradients(found, norms)
    check_touched(found, bags)
    check_tables(found, model, folder)
    shares = found["speed/input_wait_share"]
    assert all(0 <= share <= 1 for share in shares.values())
    assert set(found["optimizer/learning_rate"]) == {1, 2, 3, 4}
    curve = event_files.read(folder / "validation")["precision_recall/pr_curves"]
    assert set(curve) == {STEPS, STEPS * EPOCHS}
    assert curve[STEPS][:, 0].tolist()[:2] == [label.sum(), (1 - label).sum()]


def check_gradients(found, expected):
    for name, norm in zip(("dense", "pooled"), expected, strict=True):
        for tag in (f"gradients/{name}_norm", f"gradients/{name}_norm_max"):
            assert set(found[tag]) == {1, 2, 3, 4}
            np.testing.assert_allclose(found[tag][1], norm, rtol=2e-5, err_msg=tag)


def check_touched(found, bags):
    total, sums = sum(SIZES.values()), np.zeros((EPOCHS, 2))
    for i, (name, size) in enumerate(SIZES.items()):
        seen = set()
        for epoch in range(EPOCHS):
            first = epoch * STEPS * BATCH_SIZE
            part = bags[first : first + STEPS * BATCH_SIZE]
            touched = {value for row in part for value in row[i]}
            seen |= touched
            step = STEPS * (epoch + 1)
            for k, (tag, count) in enumerate(
                (("touched", len(touched)), ("dead", size - len(seen)))
            ):
                value = found[f"rows_{tag}/{name}"][step]
                np.testing.assert_allclose(value, count / size, rtol=1e-6)
                sums[epoch, k] += count
    for epoch in range(EPOCHS):
        for k, tag in enumerate(("touched", "dead")):
            value = found[f"rows_{tag}/all"][STEPS * (epoch + 1)]
            np.testing.assert_allclose(value, sums[epoch, k] / total, rtol=1e-6)
    assert 0 < found["rows_dead/a"][STEPS] < 1


def check_tables(found, model, folder):
    last = STEPS * EPOCHS
    for table in TABLES:
        rows = model.embedding.get_table(table.name)
        norms = np.linalg.norm(rows.astype(np.float64), axis=1)
        for tag, value in (("mean", norms.mean()), ("max", norms.max())):
            written = found[f"row_norm_{tag}/{table.name}"][last]
            np.testing.assert_allclose(written, value, rtol=1e-6)
        histogram = found[f"rows/{table.name}"][last]  # left, right, count
        assert histogram[:, 2].sum() == rows.size
        np.testing.assert_allclose(histogram[0, 0], rows.min(), rtol=1e-6)
        np.testing.assert_allclose(histogram[-1, 1], rows.max(), rtol=1e-6)
    kernel = model.top_mlp.dense_layers[0].kernel.numpy()
    histogram = found["weights/top_mlp/dense_0/kernel"][last]
    assert histogram[:, 2].sum() == kernel.size
    for name, count in (("a", 30), ("c", 25)):
        written = np.loadtxt(folder / "train" / "projector" / f"{name}.tsv")
        expected = model.embedding.get_table(name)[:count]
        np.testing.assert_allclose(written, expected, rtol=1e-5)
