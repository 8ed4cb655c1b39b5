"""Batches for the tests of the guard, good and bad ones."""

import keras
import numpy as np
import tensorflow as tf


class Normalized(keras.layers.Layer):
    """An interaction whose forward pass changes statistics."""

    def build(self, shapes):
        self.normalization = keras.layers.BatchNormalization(momentum=0.5)
        self.normalization.build((None, 16))

    def call(self, vectors, training=None):
        dense, pooled = vectors
        joined = tf.concat([dense, tf.reshape(pooled, (-1, 12))], 1)
        return self.normalization(joined, training=True)

    def compute_output_shape(self, shapes):
        return (None, 16)


def table_state(model):
    """Tables and what their optimizer holds: NumPy arrays."""
    names = [table.name for table in model.spec.tables]
    state = model.embedding.get_state(names)
    slots = [slot for name in names for slot in state["slots"][name].values()]
    tables = [model.embedding.get_table(name) for name in names]
    return [*tables, *slots, np.array(state["iterations"])]


def make_batches(num_batches, batch_size, weighted=False):
    """Batches of two dense features and three one-hot ones of 20 values."""
    rng = np.random.default_rng(5)
    batches = []
    for _ in range(num_batches):
        features = {
            "dense_features": rng.normal(size=(batch_size, 2)).astype(np.float32),
            "sparse_features": rng.integers(0, 20, (batch_size, 3)),
        }
        label = rng.integers(0, 2, batch_size).astype(np.float32)
        weight = (rng.random(batch_size).astype(np.float32),) * weighted
        batches.append((features, label, *weight))
    return batches


def poison(batch, name, value, row=1):
    """A copy of a batch with a value in one row of its label, weight or feature."""
    features, label, *weight = batch
    features, label = {k: v.copy() for k, v in features.items()}, label.copy()
    weight = [each.copy() for each in weight]
    place = {"label": label, "weight": weight and weight[0]}.get(name)
    place = features[name] if place is None else place
    place[row] = value
    return (features, label, *weight)
