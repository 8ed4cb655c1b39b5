"""Interactions of dense and embedding vectors: dot products, concatenation, DCN-v2."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf
from keras import ops

from tf_dlrm.layers.mlp import check_savable
from tf_dlrm.layers.triangle import Triangle
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Shape

Vectors: TypeAlias = tf.Tensor | Sequence[tf.Tensor]
Shapes = Shape | Sequence[Shape]

# Shapes: B batch, N vectors of a row (1 dense + F embeddings), D width.


@keras.saving.register_keras_serializable(package="tf_dlrm")
class DotInteraction(keras.layers.Layer):
    """Second-order interaction: dot products of all pairs of vectors.

    Let z_0 be the bottom MLP's output and z_1 .. z_F the pooled embeddings. The output
    is z_0, followed by z_i · z_j for the strict lower triangle in row-major order:
    (1,0), (2,0), (2,1), (3,0), ...

    Args:
        self_interaction: Whether to include the diagonal z_i · z_i.
        append_first: Whether z_0 precedes the dot products. A `DLRM` without dense
            features has no dense vector to pass on and sets this to `False`.

    Call arguments:
        inputs: A list of `(batch, D)` and `(batch, n, D)` float tensors, in the
            order z_0, z_1, ...; or one `(batch, F + 1, D)` tensor.

    Returns:
        `(batch, D + (F + 1) F / 2)` float tensor, or
        `(batch, D + (F + 2)(F + 1) / 2)` with self interaction. Without
        `append_first`, the D columns of z_0 are absent.

    Raises:
        ValueError: If the vectors have different widths.

    Example:

    >>> import numpy as np, tf_dlrm
    >>> dense, pooled = np.ones((2, 4), "float32"), np.ones((2, 3, 4), "float32")
    >>> tf_dlrm.layers.DotInteraction()([dense, pooled]).shape
    TensorShape([2, 10])

    Reference:
        Naumov et al. 2019, arXiv 1906.00091, section 2.3. The layers of this name in
        TFRS and keras-rs do not include z_0 in the output.
    """

    def __init__(
        self, self_interaction: bool = False, append_first: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.self_interaction = bool(self_interaction)
        self.append_first = bool(append_first)
        self._triangles: dict[int, Triangle] = {}

    def call(self, inputs: Vectors) -> tf.Tensor:
        first, others = _first_and_others(inputs)
        num_vectors = int(others.shape[1]) + 1
        if num_vectors not in self._triangles:
            self._triangles[num_vectors] = Triangle(num_vectors, self.self_interaction)
        result = self._triangles[num_vectors](first, others)
        return result if self.append_first else result[:, first.shape[-1] :]

    def compute_output_shape(self, input_shape: Shapes) -> Shape:
        batch, num_vectors, width = _stacked_shape(input_shape)
        extra = 1 if self.self_interaction else -1
        num_products = num_vectors * (num_vectors + extra) // 2
        return (batch, num_products + (width if self.append_first else 0))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "self_interaction": self.self_interaction,
            "append_first": self.append_first,
        }


@keras.saving.register_keras_serializable(package="tf_dlrm")
class CatInteraction(keras.layers.Layer):
    """Concatenation of all vectors, which leaves their interaction to the top MLP.

    Call arguments:
        inputs: A list of `(batch, D)` and `(batch, n, D)` float tensors (widths may
            differ), or one `(batch, n, D)` tensor.

    Returns:
        `(batch, sum of all widths)` float tensor.

    Reference:
        The `cat` option of Naumov et al. 2019, arXiv 1906.00091.
    """

    def call(self, inputs: Vectors) -> tf.Tensor:
        return flatten_vectors(inputs)

    def compute_output_shape(self, input_shape: Shapes) -> Shape:
        return _flat_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


@keras.saving.register_keras_serializable(package="tf_dlrm")
class CrossInteraction(keras.layers.Layer):
    """Cross network of DCN-v2 over the concatenation of all vectors.

    Let x_0 be the concatenation. Layer l computes
    `x_{l+1} = x_0 * (W_l x_l + b_l) + x_l`; with `rank`, W_l is a product `U_l V_l` of
    that rank.

    Args:
        num_layers: Number of cross layers.
        rank: Rank of the kernels; default: full matrices.
        use_bias: Whether each layer has a bias b_l.
        kernel_regularizer: Keras regularizer of every kernel, such as `"l2"`; with
            `rank`, of U_l and V_l each.

    Call arguments:
        inputs: A list of `(batch, D)` and `(batch, n, D)` float tensors (widths may
            differ), or one `(batch, n, D)` tensor.

    Returns:
        `(batch, sum of all widths)` float tensor.

    Raises:
        ValueError: If `num_layers` or `rank` is not a positive integer.
        TypeError: If the regularizer is a lambda.

    Reference:
        Wang et al. 2021, arXiv 2008.13535, equations 1 and 2 (the low-rank form
        without experts). MLPerf's DLRM-v2 uses it as torchrec's `LowRankCrossNet`,
        whose `V` and `W` are the transposes of `projections` and `kernels`.
    """

    def __init__(
        self,
        num_layers: int = 3,
        rank: int | None = None,
        use_bias: bool = True,
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if num_layers < 1 or (rank is not None and rank < 1):
            raise UserError(
                "`num_layers` and `rank` must be positive integers (rank may be "
                f"None). Received: num_layers={num_layers}, rank={rank}"
            )
        self.num_layers, self.rank = int(num_layers), rank and int(rank)
        self.use_bias = bool(use_bias)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        check_savable("kernel_regularizer", self.kernel_regularizer)

    def build(self, input_shape: Shapes) -> None:
        width = _flat_shape(input_shape)[-1]
        self.kernels, self.projections, self.biases = [], [], []
        for i in range(self.num_layers):
            if self.rank:
                self.projections.append(
                    self.add_weight(
                        shape=(width, self.rank),
                        initializer="glorot_normal",
                        regularizer=self.kernel_regularizer,
                        name=f"projection_{i}",
                    )
                )
            self.kernels.append(
                self.add_weight(
                    shape=(self.rank or width, width),
                    initializer="glorot_normal",
                    regularizer=self.kernel_regularizer,
                    name=f"kernel_{i}",
                )
            )
            if self.use_bias:
                self.biases.append(
                    self.add_weight(
                        shape=(width,), initializer="zeros", name=f"bias_{i}"
                    )
                )
        # tf.train.Checkpoint does not track the contents of Keras' lists.
        self._checkpointed = tf.Module()
        self._checkpointed.weights = [*self.projections, *self.kernels, *self.biases]
        self.built = True

    def call(self, inputs: Vectors) -> tf.Tensor:
        first = ops.cast(flatten_vectors(inputs), self.compute_dtype)
        x = first
        for i in range(self.num_layers):
            product = ops.matmul(x, self.projections[i]) if self.rank else x
            product = ops.matmul(product, self.kernels[i])
            if self.use_bias:
                product = product + self.biases[i]
            x = first * product + x
        return x

    def compute_output_shape(self, input_shape: Shapes) -> Shape:
        return _flat_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_layers": self.num_layers,
            "rank": self.rank,
            "use_bias": self.use_bias,
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }


def stack_vectors(inputs: Vectors) -> tf.Tensor:
    """Stack `(B, D)` and `(B, n, D)` tensors into one `(B, N, D)` tensor."""
    if not isinstance(inputs, (list, tuple)):
        return inputs
    parts = [x if len(x.shape) == 3 else ops.expand_dims(x, 1) for x in inputs]
    widths = {int(x.shape[-1]) for x in parts}
    if len(widths) > 1:
        raise UserError(
            "Dot interaction needs vectors of equal width. Use `feature_mlp_dims` to "
            "give features of other widths an MLP, or use interaction='cat'. Received "
            f"widths: {[int(x.shape[-1]) for x in parts]}"
        )
    return ops.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _first_and_others(inputs: Vectors) -> tuple[tf.Tensor, tf.Tensor]:
    """Return z_0 as `(B, D)` and z_1 .. z_F as `(B, F, D)`."""
    two = isinstance(inputs, (list, tuple)) and len(inputs) == 2
    if two and (len(inputs[0].shape), len(inputs[1].shape)) == (2, 3):
        if inputs[0].shape[-1] == inputs[1].shape[-1]:
            return inputs[0], inputs[1]
    z = stack_vectors(inputs)
    return z[:, 0, :], z[:, 1:, :]


def flatten_vectors(inputs: Vectors) -> tf.Tensor:
    """Concatenate `(B, D)` and `(B, n, D)` tensors to `(B, sum of widths)`."""
    inputs = inputs if isinstance(inputs, (list, tuple)) else [inputs]
    parts = [
        x
        if len(x.shape) == 2
        else ops.reshape(x, (-1, int(x.shape[1]) * int(x.shape[2])))
        for x in inputs
    ]
    return ops.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]


def _shapes(input_shape: Any) -> list[Any]:
    """Return a list of shapes from one shape or a list of shapes."""
    one = isinstance(input_shape[0], int) or input_shape[0] is None
    return [tuple(input_shape)] if one else [tuple(s) for s in input_shape]


def _stacked_shape(input_shape: Any) -> tuple[int | None, int, int]:
    shapes = _shapes(input_shape)
    count = sum(1 if len(shape) == 2 else shape[1] for shape in shapes)
    return shapes[0][0], count, shapes[0][-1]


def _flat_shape(input_shape: Any) -> Shape:
    shapes = _shapes(input_shape)
    width = sum(s[1] if len(s) == 2 else s[1] * s[2] for s in shapes)
    return (shapes[0][0], width)
