"""Estimate the importance of all features at once, from one backward pass.

The log loss of a row is expanded at its vector e (a pooled embedding, or the value of a
dense feature). The second order estimates the increase of the loss if e becomes the
vector of another row; the first order is only a score, to rank features by:

    first order:  mean of -g . (m - e), the score of SHARK
    second order: mean of g . (m - e) + p (1 - p) / 2 * ((J . (m - e))^2 + J' C J)

# m mean and C covariance of e over the rows, J gradient of the logit, p prediction,
# g = (p - y) J gradient of the loss; n rows, U units, W width of a unit
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from pipelines.evaluation import row_sources
from pipelines.evaluation.held_rows import HeldRows
from pipelines.progress import bar

_EPSILON = 1e-7  # as in the metric LogLoss


def estimate(
    model, schema, rows: HeldRows, units: Sequence[Sequence[int]], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the score of first order and the estimate of second order of each unit.

    Args:
        model: A `DLRM`.
        schema: The columns.
        rows: Labelled rows.
        units: Positions of the columns of each unit: dense features, then sparse ones.
        batch_size: Rows in a step.

    Returns:
        float64 `(U,)` scores of first order, and `(U,)` estimated increases of the log
        loss.

    Reference:
        Zhang et al. 2023, SHARK, arXiv 2308.09395, section 3, for the first order. Its
        sign depends on how far a model has been trained, and it vanishes for a model
        that fits its rows; the second order does not.
    """
    look_up, differentiate = _make_steps(model, schema, rows.expand)
    total, num_rows = 0.0, len(rows)
    sums = [0.0] * len(units)
    products = [0.0] * len(units)
    with bar("Estimating", 2 * num_rows) as update:
        for first, batch, weights in _batches(rows, batch_size):
            columns = _columns(*look_up(*batch))
            total += weights.sum()
            for unit, places in enumerate(units):
                vectors = _join(columns, places)
                sums[unit] += weights @ vectors
                products[unit] += vectors.T @ (weights[:, None] * vectors)
            update(min(first + batch_size, num_rows))
        means = [s / total for s in sums]
        covariances = [
            p / total - np.outer(m, m) for p, m in zip(products, means, strict=True)
        ]
        slopes, curvatures = np.zeros(len(units)), np.zeros(len(units))
        for first, batch, weights in _batches(rows, batch_size):
            predictions, *tensors = differentiate(*batch)
            p = predictions.numpy().astype(np.float64)
            columns, gradients = _columns(*tensors[:2]), _columns(*tensors[2:])
            error = weights * (p - rows.labels[first : first + len(p)])
            spread = weights * p * (1 - p) / 2
            for unit, places in enumerate(units):
                gradient = _join(gradients, places)
                shift = ((means[unit] - _join(columns, places)) * gradient).sum(1)
                variance = ((gradient @ covariances[unit]) * gradient).sum(1)
                slopes[unit] += error @ shift
                curvatures[unit] += spread @ (shift**2 + variance)
            update(num_rows + min(first + batch_size, num_rows))
    return -slopes / total, (slopes + curvatures) / total


def _batches(rows, batch_size):
    """Yield the first row of each batch, its features as tensors, and its weights."""
    for first in range(0, len(rows), batch_size):
        batch = rows.read(first, first + batch_size)
        dense, ids, splits, id_weights, _, weights = row_sources.tensors(
            batch, 0, batch_size
        )
        yield first, (dense, ids, splits, id_weights), weights.astype(np.float64)


def _columns(dense, vectors):
    """Return float64 `(n, W)` of each column."""
    dense = dense.numpy().astype(np.float64)
    columns = [dense[:, i : i + 1] for i in range(dense.shape[1])]
    return columns + [vector.numpy().astype(np.float64) for vector in vectors]


def _join(columns, places):
    return np.concatenate([columns[place] for place in places], axis=1)


def _make_steps(model, schema, expand):
    """Return functions of a batch: its vectors; and with them, their gradients."""

    def look_up(*tensors):
        features = row_sources.make_features(schema, expand, *tensors)
        with model.xla_settings():
            batch = model.standardize(features)
            return batch.dense, model.embedding(batch.ids, weights=batch.weights)

    def separate(pooled):
        if isinstance(pooled, list | tuple):
            return list(pooled)
        return tf.unstack(pooled, len(schema.sparse_features), axis=1)

    signature = row_sources.signature(len(schema.dense_features))[:4]

    @tf.function(input_signature=signature, autograph=False)
    def vectors(*tensors):
        dense, pooled = look_up(*tensors)
        return dense, separate(pooled)

    @tf.function(input_signature=signature, autograph=False)
    def gradients(*tensors):
        dense, pooled = look_up(*tensors)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch((dense, pooled))
            with model.xla_settings():
                p = model.score(dense, pooled)[:, 0]
            clipped = tf.clip_by_value(p, _EPSILON, 1.0 - _EPSILON)
            logit = tf.reduce_sum(tf.math.log(clipped) - tf.math.log1p(-clipped))
        of_dense, of_pooled = tape.gradient(
            logit, (dense, pooled), unconnected_gradients="zero"
        )
        p = model.recalibrate(p)  # which shifts all logits alike
        return p, dense, separate(pooled), of_dense, separate(of_pooled)

    # Concrete functions: TensorFlow warns of functions that are made several times.
    return vectors.get_concrete_function(), gradients.get_concrete_function()
