"""`MLP`: dense layers with the initial values of the DLRM paper's code."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Shape

# The defaults of torch and Paddle, in which these networks were published. With Keras'
# 0.99 and 1e-3 the statistics need ten times as many steps to match the data.
MOMENTUM, EPSILON = 0.9, 1e-5
PLACES = (False, True, "after_activation")


@keras.saving.register_keras_serializable(package="tf_dlrm")
class MLP(keras.layers.Layer):
    """Stack of dense layers, for DLRM's bottom and top networks.

    Initial values are normal, as in the paper's code: a layer with `n` inputs and `m`
    outputs has a kernel with variance `2 / (m + n)` and a bias with variance `1 / m`.

    Args:
        dims: Width of each layer, for example `(512, 256, 64, 16)`.
        activation: Activation between layers.
        final_activation: Activation after the last layer; default: linear, as for a
            logit.
        dropout: Share of values set to zero during training, after each activation but
            the last.
        batch_normalization: Whether each layer but the last has batch normalization
            (momentum 0.9, epsilon 1e-5): `True` puts it before the activation,
            `"after_activation"` after it. With several replicas, the statistics are
            computed over the global batch.
        use_bias: Whether the layers have biases.
        kernel_regularizer: Keras regularizer of every kernel, such as `"l2"`.
        frozen: Names of inner layers that are not trained, such as `"dense_0"` or
            `"norm_1"`. Setting `trainable = False` on these layers has the same effect.

    Call arguments:
        inputs: `(batch, n)` float tensor.
        training: Whether dropout and batch statistics are active.

    Returns:
        `(batch, dims[-1])` float tensor of the layer's compute dtype.

    Raises:
        ValueError: If `dims` is empty or holds anything but positive integers, if
            `dropout` is outside `[0, 1)`, if `batch_normalization` has another value,
            or if `frozen` names a layer that does not exist.
        TypeError: If an activation or the regularizer is a lambda.

    Example:

    >>> import numpy as np, tf_dlrm
    >>> mlp = tf_dlrm.layers.MLP((32, 8), final_activation="relu")
    >>> mlp(np.zeros((4, 13), "float32")).shape
    TensorShape([4, 8])

    Reference:
        Naumov et al. 2019, arXiv 1906.00091, section 2.2.
    """

    def __init__(
        self,
        dims: Sequence[int],
        activation: str | Callable | None = "relu",
        final_activation: str | Callable | None = None,
        dropout: float = 0.0,
        batch_normalization: bool | str = False,
        use_bias: bool = True,
        kernel_regularizer: Any = None,
        frozen: Sequence[str] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dims = check_dims("dims", dims)
        if not 0.0 <= dropout < 1.0:
            raise UserError(
                f"`dropout` must be at least 0 and below 1. Received: {dropout}"
            )
        self.activation = keras.activations.get(activation)
        self.final_activation = keras.activations.get(final_activation)
        self.dropout = float(dropout)
        if batch_normalization not in PLACES:
            raise UserError(
                f"`batch_normalization` must be one of {PLACES}. Received: "
                f"{batch_normalization!r}"
            )
        self.batch_normalization = batch_normalization
        self.use_bias = bool(use_bias)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        for name in ("activation", "final_activation", "kernel_regularizer"):
            check_savable(name, getattr(self, name))
        # Public: interop and users read the dense layers from here, in order.
        self.dense_layers = [
            keras.layers.Dense(
                dim,
                use_bias=self.use_bias,
                kernel_initializer=keras.initializers.VarianceScaling(
                    scale=1.0, mode="fan_avg", distribution="untruncated_normal"
                ),
                bias_initializer=keras.initializers.RandomNormal(stddev=dim**-0.5),
                kernel_regularizer=self.kernel_regularizer,
                dtype=self.dtype_policy,
                name=f"dense_{i}",
            )
            for i, dim in enumerate(self.dims)
        ]
        self.normalizations = [
            keras.layers.BatchNormalization(
                momentum=MOMENTUM,
                epsilon=EPSILON,
                dtype=self.dtype_policy,
                name=f"norm_{i}",
            )
            for i in range(len(self.dims) - 1)
            if self.batch_normalization
        ]
        self.dropouts = [
            keras.layers.Dropout(
                self.dropout, dtype=self.dtype_policy, name=f"dropout_{i}"
            )
            for i in range(len(self.dims) - 1)
            if self.dropout
        ]
        by_name = {layer.name: layer for layer in self._inner_layers()}
        for name in frozen:
            if name not in by_name:
                raise UserError(
                    f"`frozen` may only name these layers: {list(by_name)}. Received: "
                    f"{name!r}"
                )
            by_name[name].trainable = False
        # tf.train.Checkpoint does not track the contents of Keras' lists.
        self._checkpointed = tf.Module()
        self._checkpointed.dense_layers = list(self.dense_layers)
        self._checkpointed.normalizations = list(self.normalizations)

    def build(self, input_shape: Shape) -> None:
        has_replicas = tf.distribute.get_strategy().num_replicas_in_sync > 1
        for i, (layer, dim) in enumerate(zip(self.dense_layers, self.dims)):
            build(layer, input_shape)
            input_shape = (input_shape[0], dim)
            if i < len(self.normalizations):
                self.normalizations[i].synchronized = has_replicas
                build(self.normalizations[i], input_shape)
            if i < len(self.dropouts):
                self.dropouts[i].build(input_shape)
        self.built = True

    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = inputs
        for i, layer in enumerate(self.dense_layers):
            x = layer(x)
            if i == len(self.dims) - 1:
                return self.final_activation(x)
            if self.batch_normalization == "after_activation":
                x = self.normalizations[i](self.activation(x), training=training)
            elif self.batch_normalization:
                x = self.activation(self.normalizations[i](x, training=training))
            else:
                x = self.activation(x)
            if self.dropouts:
                x = self.dropouts[i](x, training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.dims[-1])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "dims": list(self.dims),
            "activation": keras.activations.serialize(self.activation),
            "final_activation": keras.activations.serialize(self.final_activation),
            "dropout": self.dropout,
            "batch_normalization": self.batch_normalization,
            "use_bias": self.use_bias,
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "frozen": [e.name for e in self._inner_layers() if not e.trainable],
        }

    def _inner_layers(self) -> list[keras.layers.Layer]:
        return [*self.dense_layers, *self.normalizations]


def build(
    layer: keras.layers.Layer, input_shape: Shape | Sequence[Shape] | None
) -> None:
    """Build a layer unless it is built already; freeze a frozen layer's variables."""
    if not layer.built:  # layers from a config or from the user may be built already
        layer.build(input_shape)
        layer.built = True
    if not layer.trainable:
        # Keras creates trainable variables even in a frozen layer, and assigning the
        # value that `trainable` already has does nothing.
        layer.trainable = True
        layer.trainable = False


def check_dims(argument: str, dims: Iterable[int]) -> tuple[int, ...]:
    """Return `dims` as a tuple of ints, or raise an error that names `argument`."""
    try:
        values = tuple(int(dim) for dim in dims)
    except (TypeError, ValueError):
        values = ()
    if not values or any(dim < 1 for dim in values) or values != tuple(dims):
        raise UserError(
            f"`{argument}` must be a non-empty sequence of positive integers. "
            f"Received: {argument}={dims!r}"
        )
    return values


def check_savable(name: str, function: Any) -> None:
    """Check that an argument can be saved with a model.

    Args:
        name: Name of the argument.
        function: Its value.

    Raises:
        TypeError: If it is a lambda.
    """
    if getattr(function, "__name__", None) == "<lambda>":
        raise TypeError(
            f"`{name}` must not be a lambda, which cannot be saved with a model. "
            "Define it with `def` and decorate it with "
            "keras.saving.register_keras_serializable()."
        )
