"""Regularizers of rows, and their penalties in float64."""

import keras
import numpy as np

L1, L2 = 0.02, 0.3


class Own(keras.Regularizer):
    def get_config(self):
        return {}


@keras.saving.register_keras_serializable(package="tests")
class Quartic(Own):
    """A user's sum over values."""

    def __call__(self, x):
        return 2.0 * keras.ops.sum(x**4)


@keras.saving.register_keras_serializable(package="tests")
class RowNorms(Own):
    """A user's sum over rows (the group lasso)."""

    def __call__(self, x):
        return 0.3 * keras.ops.sum(keras.ops.sqrt(keras.ops.sum(x**2, 1) + 1e-12))


@keras.saving.register_keras_serializable(package="tests")
class Mean(Own):
    def __call__(self, x):
        return keras.ops.mean(x**2)


# The penalty on rows in float64, and its gradient.
FORMULAS = {
    "L2": (lambda x: L2 * (x**2).sum(), lambda x: 2 * L2 * x),
    "L1": (lambda x: L1 * np.abs(x).sum(), lambda x: L1 * np.sign(x)),
    "L1L2": (
        lambda x: L1 * np.abs(x).sum() + L2 * (x**2).sum(),
        lambda x: L1 * np.sign(x) + 2 * L2 * x,
    ),
    "Quartic": (lambda x: 2 * (x**4).sum(), lambda x: 8 * x**3),
    "RowNorms": (
        lambda x: 0.3 * np.sqrt((x**2).sum(1)).sum(),
        lambda x: 0.3 * x / np.sqrt((x**2).sum(1, keepdims=True)),
    ),
}


def penalty_and_gradient(table, rows, config):
    """Of a table's distinct `rows`; the gradient has the shape of the table."""
    gradient = np.zeros(table.shape)
    rows = np.unique(rows)
    if config is None or not len(rows):
        return 0.0, gradient
    value, slope = FORMULAS[type(config).__name__]
    gradient[rows] = slope(table[rows].astype(np.float64))
    return value(table[rows].astype(np.float64)), gradient
