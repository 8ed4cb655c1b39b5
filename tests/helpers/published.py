"""A small model that trains and publishes, with the full export at each publication."""

import pathlib

import numpy as np
import tensorflow as tf

import tf_dlrm
from helpers import delta_oracle, small_model
from tf_dlrm.callbacks import PublishDeltas

REQUEST = {
    "dense_features": small_model.make_data()[0]["dense_features"],
    "sparse_features": small_model.make_data()[0]["sparse_features"][:, :, None],
}


class FullExports(PublishDeltas):
    """Publish, and write a full export at each publication too.

    Attributes:
        exports: Path of the full export of each state, in order.
    """

    def __init__(self, base_dir, full_dir, dtype="float32", **options):
        super().__init__(base_dir, dtype=dtype, verbose=0, **options)
        self._full_dir, self._own_dtype = full_dir, dtype
        self.exports = []

    def publish(self):
        done = super().publish()
        path = tf_dlrm.export_saved_model(
            self.model, self._full_dir, table_dtype=self._own_dtype, updatable=True
        )
        self.exports.append(path)
        return done


def publish(folder, dtype="float32", batch_size=16, full=True, model=None, **options):
    """Train a small model for one epoch and publish after each batch.

    Returns:
        The folder of the published model, and the callback.
    """
    base_dir = pathlib.Path(folder, "published")
    model = model or small_model.compiled()
    options = {"every_steps": 1, **options}
    if full:
        callback = FullExports(base_dir, pathlib.Path(folder, "full"), dtype, **options)
    else:
        callback = PublishDeltas(base_dir, dtype=dtype, verbose=0, **options)
    x, y = small_model.make_data()
    model.fit(
        x, y, batch_size=batch_size, shuffle=False, callbacks=[callback], verbose=0
    )
    return base_dir, callback


def answers_of(version):
    """Return the answers of an export to `REQUEST`."""
    signature = tf.saved_model.load(str(version)).signatures["serving_default"]
    inputs = {name: tf.constant(value) for name, value in REQUEST.items()}
    return signature(**inputs)["probabilities"].numpy()


def assert_states(base_dir, exports, base=1):
    """Assert that every state equals the full export, by the oracle of NumPy."""
    for sequence, path in enumerate(exports):
        weights = delta_oracle.apply_chain(base_dir, base, sequence)
        delta_oracle.assert_equal(weights, delta_oracle.weights_of(path))


def differs(answers, others):
    """Return whether answers of two states differ."""
    return not np.array_equal(answers, others)
