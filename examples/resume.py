"""Interrupt a training, resume it, and get the weights of one that never stopped.

Run it with `python examples/resume.py`. The same lines start a training and resume it,
also in the middle of an epoch.
"""

import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

import pipelines
import tf_dlrm

# Equal bits need operations that always sum in the same order.
tf.config.experimental.enable_op_determinism()
folder = pathlib.Path(tempfile.mkdtemp())
planted = pipelines.synthetic.Planted(vocabulary_sizes=(50,) * 26)
planted.write(folder / "train.tsv", num_rows=8_000)
parser = pipelines.Parser(pipelines.Vocabulary.build(folder / "train.tsv"))


class Interrupt(keras.callbacks.Callback):
    """Stop the training after some steps, as a power cut would."""

    def __init__(self, num_steps):
        super().__init__()
        self.num_steps = num_steps

    def on_train_batch_end(self, batch, logs=None):
        self.num_steps -= 1
        if self.num_steps == 0:
            raise InterruptedError("power cut")


def train(checkpoints, *callbacks):
    """Train for two epochs: from the start, or from the newest checkpoint."""
    keras.utils.set_random_seed(0)
    model = tf_dlrm.DLRM(parser.spec(8), (16, 8), (16, 1))
    # Compiling would take longer than this short run.
    model.compile(keras.optimizers.Adagrad(0.02), jit_compile=False)
    rows = pipelines.read(folder / "train.tsv", parser, 128, shuffle=True, seed=0)
    checkpoint = tf_dlrm.callbacks.ResumableTraining(
        checkpoints, every_steps=20, verbose=0
    )
    model.fit(
        checkpoint.resume(model, rows),
        initial_epoch=checkpoint.initial_epoch,
        epochs=2,
        callbacks=[checkpoint, *callbacks],
        verbose=0,
    )
    return model


uninterrupted = train(folder / "uninterrupted")
try:
    train(folder / "interrupted", Interrupt(num_steps=90))
except InterruptedError as error:
    print(f"Step 90 of 126: {error}")
# The same call again. The newest checkpoint is of step 83, so 7 steps are repeated.
resumed = train(folder / "interrupted")

pairs = zip(uninterrupted.get_weights(), resumed.get_weights(), strict=True)
is_equal = all(np.array_equal(one, other) for one, other in pairs)
print(f"All weights are equal, bit for bit: {is_equal}")
