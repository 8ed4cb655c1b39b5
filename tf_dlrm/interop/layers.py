"""Interactions of other libraries, for imported models."""

from typing import Any

import keras
import tensorflow as tf
from keras import ops

from tf_dlrm.layers import CrossInteraction
from tf_dlrm.layers.interactions import Shapes, Vectors
from tf_dlrm.runtime.types import Shape


@keras.saving.register_keras_serializable(package="tf_dlrm")
class CrossBesideDense(CrossInteraction):
    """Cross network whose output is concatenated with the bottom MLP's output z_0.

    TFRS calls this `concat_dense`.

    Args:
        num_layers: Number of cross layers.
        rank: Rank of the kernels; default: full matrices.
        use_bias: Whether the cross layers have biases.

    Call arguments:
        inputs: A list of z_0 `(batch, D)` and other `(batch, D)` or `(batch, n, D)`
            float tensors (widths may differ).

    Returns:
        `(batch, D + sum of all widths)` float tensor.

    Reference:
        `tfrs.experimental.models.Ranking(concat_dense=True)` of TensorFlow
        Recommenders 0.7.
    """

    def call(self, inputs: Vectors) -> tf.Tensor:
        crossed = super().call(inputs)
        return ops.concatenate([ops.cast(inputs[0], crossed.dtype), crossed], axis=1)

    def compute_output_shape(self, input_shape: Shapes) -> Shape:
        batch, width = super().compute_output_shape(input_shape)
        first: Any = input_shape[0]
        return (batch, first[-1] + width)
