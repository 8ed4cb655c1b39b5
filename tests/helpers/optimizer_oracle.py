"""Each row-sparse optimizer and its formula on a dense gradient, in float64."""

import numpy as np

from tf_dlrm import optimizers


def dense_sgd(table, g, state, step):
    table -= 0.1 * g


def dense_adagrad(inside):
    def update(table, g, state, step):
        a = state.setdefault("a", np.full_like(table, 0.1 if inside else 0.0))
        a += g**2
        root = np.sqrt(a + 1e-7) if inside else np.sqrt(a) + 1e-7
        table -= np.where(g != 0, 0.1 * g / np.maximum(root, 1e-30), 0.0)

    return update


def row_wise_adagrad(table, g, state, step):
    a = state.setdefault("a", np.zeros((len(table), 1)))
    a += (g**2).mean(axis=1, keepdims=True)
    table -= np.where(g != 0, 0.1 * g / (np.sqrt(a) + 1e-8), 0.0)


def lazy_adam(table, g, state, step):
    m = state.setdefault("m", np.zeros_like(table))
    v = state.setdefault("v", np.zeros_like(table))
    rows = np.abs(g).sum(1) > 0
    m[rows] = 0.9 * m[rows] + 0.1 * g[rows]
    v[rows] = 0.999 * v[rows] + 0.001 * g[rows] ** 2
    m_hat, v_hat = m / (1 - 0.9**step), v / (1 - 0.999**step)
    # torch.optim.SparseAdam adds epsilon to the uncorrected root.
    root = np.sqrt(v_hat) + 1e-7 / np.sqrt(1 - 0.999**step)
    table[rows] -= 0.1 * (m_hat / root)[rows]


def ftrl(table, g, state, step):
    n = state.setdefault("n", np.full_like(table, 0.1))
    z = state.setdefault("z", np.zeros_like(table))
    rows = np.abs(g).sum(1) > 0
    root = np.sqrt(n + g**2)
    z[rows] += (g - (root - np.sqrt(n)) / 0.1 * table)[rows]
    n += g**2
    shrunk = (np.clip(z, -0.3, 0.3) - z) / ((0.5 + root) / 0.1 + 2 * 0.2)
    table[rows] = shrunk[rows]


def dense_sgd_l2(table, g, state, step):
    table -= 0.1 * (g + 0.3 * table)


def dense_adagrad_l2(table, g, state, step):
    a = state.setdefault("a", np.full_like(table, 0.1))
    g = g + 0.3 * table
    a += g**2
    table -= 0.1 * g / np.sqrt(a + 1e-7)


def dense_adam(l2, corrects):
    def update(table, g, state, step):
        m = state.setdefault("m", np.zeros_like(table))
        v = state.setdefault("v", np.zeros_like(table))
        g = g + l2 * table
        m[:] = 0.9 * m + 0.1 * g
        v[:] = 0.999 * v + 0.001 * g**2
        m_hat, v_hat = m / (1 - 0.9**step), v / (1 - 0.999**step)
        epsilon = 1e-4 if corrects else 1e-4 / np.sqrt(1 - 0.999**step)
        table -= 0.1 * m_hat / (np.sqrt(v_hat) + epsilon)

    return update


CASES = {
    "sgd": (lambda: optimizers.SparseSGD(0.1), dense_sgd),
    "adagrad": (lambda: optimizers.SparseAdagrad(0.1), dense_adagrad(True)),
    "adagrad_torch": (
        lambda: optimizers.SparseAdagrad(
            0.1, initial_accumulator_value=0.0, epsilon_outside_root=True
        ),
        dense_adagrad(False),
    ),
    "row_wise": (lambda: optimizers.RowWiseAdagrad(0.1), row_wise_adagrad),
    "adam": (lambda: optimizers.SparseAdam(0.1), lazy_adam),
    "ftrl": (
        lambda: optimizers.SparseFtrl(
            0.1,
            l1_regularization_strength=0.3,
            l2_regularization_strength=0.2,
            beta=0.5,
        ),
        ftrl,
    ),
    "dense_sgd": (lambda: optimizers.DenseSGD(0.1), dense_sgd),
    "dense_sgd_l2": (lambda: optimizers.DenseSGD(0.1, l2=0.3), dense_sgd_l2),
    "dense_adagrad": (lambda: optimizers.DenseAdagrad(0.1), dense_adagrad(True)),
    "dense_adagrad_l2": (
        lambda: optimizers.DenseAdagrad(0.1, l2=0.3),
        dense_adagrad_l2,
    ),
    "dense_adam": (
        lambda: optimizers.DenseAdam(0.1, epsilon=1e-4),
        dense_adam(0.0, corrects=False),
    ),
    "dense_adam_l2": (
        lambda: optimizers.DenseAdam(0.1, epsilon=1e-4, l2=0.3),
        dense_adam(0.3, corrects=False),
    ),
    "dense_adam_of_torch": (
        lambda: optimizers.DenseAdam(0.1, epsilon=1e-4, l2=0.3, corrects_epsilon=True),
        dense_adam(0.3, corrects=True),
    ),
}
