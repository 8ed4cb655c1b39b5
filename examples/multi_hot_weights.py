"""Feed bags of ids with weights; two features share one table and are pooled by mean.

Run it with `python examples/multi_hot_weights.py`. Here the ids are numbers already, so
that no vocabulary is needed.
"""

import keras
import numpy as np
import tensorflow as tf

import tf_dlrm

NUM_ITEMS, NUM_ROWS = 50, 20_000
items = tf_dlrm.EmbeddingTable(
    "item",
    vocabulary_size=NUM_ITEMS,
    embedding_dim=8,
    combiner="mean",  # sum(weight * row) / sum(weight); an empty bag gives zeros
    features=["shown", "watched"],  # both look up their rows here
)
spec = tf_dlrm.FeatureSpec(dense=(), tables=[items])

# A bag of up to four watched items; the weight is the share that was watched.
rng = np.random.default_rng(0)
taste = rng.normal(size=(NUM_ITEMS, 2))
shown = rng.integers(0, NUM_ITEMS, NUM_ROWS)
watched = rng.integers(0, NUM_ITEMS, (NUM_ROWS, 4))
watched[np.arange(4) >= rng.integers(0, 5, (NUM_ROWS, 1))] = -1  # -1 is no id
share = rng.random((NUM_ROWS, 4)).astype("float32") * (watched >= 0)
mean_taste = np.einsum("nl,nld->nd", share, taste[watched])
mean_taste /= np.maximum(share.sum(axis=1, keepdims=True), 1e-6)
logit = 2 * (mean_taste * taste[shown]).sum(axis=1) - 1
click = (rng.random(NUM_ROWS) < 1 / (1 + np.exp(-logit))).astype("float32")

# (rows, features, ids of a bag): the shorter bag is padded with -1.
ids = np.full((NUM_ROWS, 2, 4), -1)
weights = np.zeros((NUM_ROWS, 2, 4), "float32")
ids[:, 0, 0], weights[:, 0, 0] = shown, 1.0
ids[:, 1], weights[:, 1] = watched, share


def evaluate(with_weights):
    """Return the AUC on new rows after training with or without the weights."""
    features = {"sparse_features": ids}
    if with_weights:
        features["sparse_weights"] = weights
    keras.utils.set_random_seed(0)
    model = tf_dlrm.DLRM(spec, top_mlp_dims=(32, 1))
    adagrad = keras.optimizers.Adagrad(0.05, initial_accumulator_value=1e-6)
    metrics = [tf_dlrm.metrics.ClickAUC()]
    # Compiling would take longer than this short run.
    model.compile(adagrad, metrics=metrics, jit_compile=False)
    batches = tf.data.Dataset.from_tensor_slices((features, click)).batch(250)
    model.fit(batches.take(64), epochs=5, verbose=0)
    return model.evaluate(batches.skip(64), verbose=0, return_dict=True)["auc"]


print(f"AUC without weights: {evaluate(False):.3f}")
print(f"AUC with weights:    {evaluate(True):.3f}")
