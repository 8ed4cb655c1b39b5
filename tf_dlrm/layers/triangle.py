"""Dot products of all pairs of vectors, and their gradient.

Automatic differentiation of picking a triangle out of z zᵀ yields a scatter and two
matrix products. The gradient equals S z with a symmetric S, which needs only a gather
and one product. oneDNN computes the products; XLA kernels pick and spread the entries.
"""

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime import gradients, xla

# Shapes: B batch, N vectors of a row, D width, P pairs.


class Triangle:
    """z_0 followed by the lower triangle of the Gram matrix, in row-major order.

    Args:
        num_vectors: Number of vectors, N.
        with_diagonal: Whether to include each vector's product with itself.
    """

    def __init__(self, num_vectors: int, with_diagonal: bool) -> None:
        n = self._num_vectors = num_vectors
        self._with_diagonal = with_diagonal
        i, j = np.tril_indices(n, 0 if with_diagonal else -1)
        self._pairs = (i * n + j).astype(np.int32)
        # The pair that each entry of the symmetric (N, N) gradient comes from.
        places = np.zeros((n, n), np.int32)
        places[i, j] = places[j, i] = np.arange(len(i))
        self._places = places.reshape(-1)
        self._pick = xla.Kernel(self._pick_pairs, "interaction")
        self._spread = xla.Kernel(self._spread_pairs, "interaction")

    def __call__(self, first: tf.Tensor, others: tf.Tensor) -> tf.Tensor:
        """Compute `(B, D + P)` from z_0 `(B, D)` and z_1 .. `(B, N - 1, D)`."""
        if not len(self._pairs):
            return first
        num_rows = tf.shape(first)[0]
        width = first.shape[-1]
        if xla.is_for_servers():
            z = tf.concat([first[:, None, :], others], 1)
            return self._slice_pairs(first, tf.matmul(z, z, transpose_b=True))
        # Decided once, because the gradient may be computed in another context.
        compiled = xla.enabled()

        @gradients.custom_gradient
        def triangle(first, others):
            z = tf.concat([first[:, None, :], others], 1)
            if compiled:
                z = xla.pad_rows(z)
            gram = tf.matmul(z, z, transpose_b=True)

            def gradient(upstream):
                # It may arrive as tf.IndexedSlices.
                upstream = pairs = tf.convert_to_tensor(upstream)
                if compiled:
                    pairs = xla.pad_rows(upstream)
                spread = self._spread(pairs, width, compiled=compiled)
                z_gradient = tf.matmul(spread, z)[:num_rows]
                first_gradient = z_gradient[:, 0, :] + upstream[:, :width]
                return first_gradient, z_gradient[:, 1:, :]

            padded = xla.pad_rows(first) if compiled else first
            picked = self._pick(padded, gram, compiled=compiled)
            return picked[:num_rows], gradient

        result = triangle(first, others)
        return tf.ensure_shape(result, (first.shape[0], width + len(self._pairs)))

    def _pick_pairs(self, first: tf.Tensor, gram: tf.Tensor) -> tf.Tensor:
        gram = tf.reshape(gram, (-1, self._num_vectors**2))
        pairs = tf.gather(_bits(gram), self._pairs, axis=1)
        return _floats(tf.concat([_bits(first), pairs], 1), gram.dtype)

    def _slice_pairs(self, first: tf.Tensor, gram: tf.Tensor) -> tf.Tensor:
        """Pick the pairs row by row, which is twice as fast without XLA."""
        n = self._num_vectors
        flat = tf.reshape(gram, (-1, n * n))
        last = int(self._with_diagonal)
        rows = [flat[:, i * n : i * n + i + last] for i in range(1 - last, n)]
        return tf.concat([first, *rows], 1)

    def _spread_pairs(self, upstream: tf.Tensor, width: int) -> tf.Tensor:
        n, dtype = self._num_vectors, upstream.dtype
        spread = tf.gather(_bits(upstream), self._places + width, axis=1)
        diagonal = np.eye(n, dtype=bool).reshape(-1)
        if self._with_diagonal:
            spread = _floats(spread, dtype)
            spread = tf.where(diagonal, spread * 2, spread)
        else:
            spread = _floats(tf.where(diagonal, tf.zeros_like(spread), spread), dtype)
        return tf.reshape(spread, (-1, n, n))


def _bits(x: tf.Tensor) -> tf.Tensor:
    """View bfloat16 as integers, because XLA would move it as float32."""
    return tf.bitcast(x, tf.uint16) if x.dtype == tf.bfloat16 else x


def _floats(x: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    return tf.bitcast(x, dtype) if x.dtype != dtype else x
