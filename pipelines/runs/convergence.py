"""`LossCurve`: detects that the loss was still falling fast at the end of training."""

import math

import keras
import numpy as np

_NUM_PARTS = 32
_FAST = 0.02  # relative fall of the loss from the third quarter to the last
_FEWEST_STEPS = 100


class LossCurve(keras.callbacks.Callback):
    """Record the mean training loss of about 32 equal parts of a training.

    Args:
        num_steps: Steps of the whole training.
    """

    def __init__(self, num_steps: int):
        super().__init__()
        self._steps_per_part = max(1, num_steps // _NUM_PARTS)
        self._num_steps, self._parts = 0, []
        # Sums over the current epoch, up to the end of its last part.
        self._batches, self._mean, self._batches_seen = 0, 0.0, 0

    def get_state(self) -> dict:
        """Return the state that a resumed training needs, as JSON-safe values."""
        return {
            "num_steps": self._num_steps,
            "parts": self._parts,
            "batches": self._batches,
            "mean": self._mean,
        }

    def set_state(self, state: dict) -> None:
        """Restore a state that `get_state` returned."""
        self._num_steps, self._parts = state["num_steps"], list(state["parts"])
        self._batches, self._mean = state["batches"], state["mean"]

    def on_train_batch_end(self, batch, logs=None):
        self._batches_seen = batch + 1
        if self._batches_seen - self._batches >= self._steps_per_part:
            self._add_part(logs)

    def on_epoch_end(self, epoch, logs=None):
        if self._batches_seen > self._batches:
            self._add_part(logs)
        self._batches, self._mean, self._batches_seen = 0, 0.0, 0

    def _add_part(self, logs):
        batches, mean = self._batches_seen, float(logs["loss"])
        # Keras reports the mean loss of the epoch so far.
        total = mean * batches - self._mean * self._batches
        self._num_steps += batches - self._batches
        self._parts.append(total / (batches - self._batches))
        self._batches, self._mean = batches, mean

    def describe(self, judge_loss: bool = True) -> dict | None:
        """Return the loss curve of a training that ended far from convergence.

        Training counts as such if the mean loss fell from the third to the last quarter
        by more than 2 percent and more than chance explains, or if there were fewer
        than 100 steps.

        Args:
            judge_loss: Whether to judge by the loss. It always falls when rows are
                repeated; then only the number of steps counts.

        Returns:
            `{"num_steps", "before", "after"}` with the mean losses of the third and the
            last quarter, or `None` if the training has converged.
        """
        if len(self._parts) < 8 or not all(map(math.isfinite, self._parts)):
            return None
        size = len(self._parts) // 4
        before = np.array(self._parts[-2 * size : -size])
        after = np.array(self._parts[-size:])
        drop = before.mean() - after.mean()
        error = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / size)
        is_fast = judge_loss and drop > _FAST * before.mean() and drop > 3 * error
        if not is_fast and self._num_steps >= _FEWEST_STEPS:
            return None
        return {
            "num_steps": self._num_steps,
            "before": float(before.mean()),
            "after": float(after.mean()),
        }
