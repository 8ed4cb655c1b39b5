"""DLRM in NumPy float64, forward and backward by hand: what the model must equal.

Written from the paper's formulas, with dense tables and dense gradients, and nothing
of the package in it.
"""

import numpy as np


def pool(table, ids, weights, combiner):
    """One pooled vector; `ids` and `weights` are lists of one bag."""
    ids, w = np.asarray(ids, int), np.asarray(weights, np.float64)
    if len(ids) == 0:
        return np.zeros(table.shape[1]), np.zeros(0)
    divisor = {
        "sum": 1.0,
        "mean": w.sum(),
        "sqrtn": np.sqrt((w**2).sum()),
    }[combiner]
    c = w / divisor if divisor != 0 else np.zeros_like(w)
    return c @ table[ids], c


class NumpyDLRM:
    """Float64 DLRM with dot interaction.

    `bags[b][f]` is the list of ids of example b and feature f, `weights` alike;
    `table_of[f]` the index of the table that feature f reads.
    """

    def __init__(
        self, tables, combiners, table_of, bottom, top, self_interaction=False
    ):
        self.tables = [t.astype(np.float64) for t in tables]
        self.combiners, self.table_of = combiners, table_of
        self.bottom = [(k.astype(np.float64), b.astype(np.float64)) for k, b in bottom]
        self.top = [(k.astype(np.float64), b.astype(np.float64)) for k, b in top]
        self.offset = 0 if self_interaction else -1

    def forward(self, dense, bags, weights=None):
        x, self.cache = dense.astype(np.float64), {}
        if weights is None:
            weights = [[[1.0] * len(bag) for bag in row] for row in bags]
        x, self.bottom_inputs = self._mlp(self.bottom, x, last_relu=True)
        pooled = np.zeros((len(dense), len(self.table_of), x.shape[1]))
        self.coefficients = []
        for b, row in enumerate(bags):
            self.coefficients.append([])
            for f, bag in enumerate(row):
                t = self.table_of[f]
                pooled[b, f], c = pool(
                    self.tables[t], bag, weights[b][f], self.combiners[t]
                )
                self.coefficients[b].append(c)
        z = np.concatenate([x[:, None], pooled], axis=1)
        pairs = [(i, j) for i in range(z.shape[1]) for j in range(i + 1 + self.offset)]
        dots = np.stack([(z[:, i] * z[:, j]).sum(1) for i, j in pairs], axis=1)
        logit, self.top_inputs = self._mlp(
            self.top, np.concatenate([x, dots], axis=1), last_relu=False
        )
        self.z, self.pairs, self.bags = z, pairs, bags
        return 1.0 / (1.0 + np.exp(-logit))

    @staticmethod
    def _mlp(layers, x, last_relu):
        inputs = []
        for i, (kernel, bias) in enumerate(layers):
            inputs.append(x)
            x = x @ kernel + bias
            if last_relu or i < len(layers) - 1:
                x = np.maximum(x, 0)
        return x, [*inputs, x]

    @staticmethod
    def _mlp_backward(layers, inputs, g, last_relu):
        gradients = []
        for i in reversed(range(len(layers))):
            if last_relu or i < len(layers) - 1:
                g = g * (inputs[i + 1] > 0)
            gradients.append((inputs[i].T @ g, g.sum(0)))
            g = g @ layers[i][0].T
        return gradients[::-1], g

    def gradients(self, dense, bags, label, weights=None, row_scale=None):
        """Dense gradients of the mean binary cross-entropy: tables, bottom, top."""
        p = self.forward(dense, bags, weights)
        scale = np.full(len(label), 1.0 / len(label))
        if row_scale is not None:
            scale = scale * row_scale
        g = (p[:, 0] - label)[:, None] * scale[:, None]
        top, g = self._mlp_backward(self.top, self.top_inputs, g, last_relu=False)
        width = self.z.shape[2]
        g_z = np.zeros_like(self.z)
        for k, (i, j) in enumerate(self.pairs):
            g_pair = g[:, width + k][:, None]
            g_z[:, i] += g_pair * self.z[:, j]
            g_z[:, j] += g_pair * self.z[:, i]
        bottom, _ = self._mlp_backward(
            self.bottom, self.bottom_inputs, g[:, :width] + g_z[:, 0], last_relu=True
        )
        tables = [np.zeros_like(t) for t in self.tables]
        for b, row in enumerate(self.bags):
            for f, bag in enumerate(row):
                for id_, c in zip(bag, self.coefficients[b][f]):
                    tables[self.table_of[f]][id_] += c * g_z[b, f + 1]
        return tables, bottom, top

    def parameters(self):
        flat = [*self.tables]
        for kernel, bias in (*self.bottom, *self.top):
            flat += [kernel, bias]
        return flat

    def step(self, update, *batch, **kwargs):
        """One optimizer step; `update(index, parameter, gradient)` acts in place."""
        tables, bottom, top = self.gradients(*batch, **kwargs)
        gradients = [*tables]
        for kernel, bias in (*bottom, *top):
            gradients += [kernel, bias]
        for i, (p, g) in enumerate(zip(self.parameters(), gradients)):
            update(i, p, g)


def sgd(learning_rate):
    def update(i, p, g):
        p -= learning_rate * g

    return update


def adagrad(learning_rate, initial=0.1, epsilon=1e-7):
    accumulators = {}

    def update(i, p, g):
        a = accumulators.setdefault(i, np.full_like(p, initial))
        a += g**2
        p -= learning_rate * g / np.sqrt(a + epsilon)

    return update
