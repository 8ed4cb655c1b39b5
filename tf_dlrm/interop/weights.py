"""Copying of the weights of other models into the layers of a `DLRM`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import keras
import numpy as np

from tf_dlrm.features import FeatureSpec
from tf_dlrm.layers import MLP
from tf_dlrm.model import DLRM


class DenseStack(NamedTuple):
    """The dense layers of an MLP, in order.

    Attributes:
        kernels: Kernel of each layer, `(inputs, outputs)`.
        biases: Bias of each layer, `(outputs,)`; `None` if the layers have no biases.
        activation: Activation after each layer but the last.
        final_activation: Activation after the last layer.
    """

    kernels: list[np.ndarray]
    biases: list[np.ndarray] | None
    activation: str | None = "relu"
    final_activation: str | None = None

    def make_mlp(self, name: str) -> MLP:
        """Create an `MLP` with these layers; `copy_to` copies the weights."""
        return MLP(
            [kernel.shape[1] for kernel in self.kernels],
            activation=self.activation,
            final_activation=self.final_activation,
            use_bias=self.biases is not None,
            name=name,
        )

    def copy_to(self, mlp: MLP) -> None:
        """Copy the weights to a built MLP from `make_mlp`."""
        for i, layer in enumerate(mlp.dense_layers):
            layer.kernel.assign(self.kernels[i])
            if self.biases is not None:
                layer.bias.assign(self.biases[i])


def make_model(
    spec: FeatureSpec,
    bottom: DenseStack,
    top: DenseStack,
    interaction: str | keras.layers.Layer,
    rows: Sequence[np.ndarray],
    embedding: Callable | None = None,
    projections: dict[str, DenseStack] | None = None,
) -> DLRM:
    """Create a `DLRM` with these weights, copying tables block by block.

    Args:
        spec: The `FeatureSpec`.
        bottom: The bottom MLP.
        top: The top MLP, up to the logit.
        interaction: `"dot"`, `"cat"`, `"cross"`, or a layer.
        rows: The rows of each table, `(vocabulary_size, embedding_dim)`.
        embedding: Function of the tables that returns the embedding layer. Default:
            `EmbeddingCollection`.
        projections: Layers between the embedding of a feature and the interaction, by
            feature name.
    """
    projections = projections or {}
    model = DLRM(
        spec,
        bottom.make_mlp("bottom_mlp"),
        top.make_mlp("top_mlp"),
        interaction=interaction,
        embedding=None if embedding is None else embedding(spec.tables),
        feature_mlp_dims={
            name: stack.make_mlp(f"mlp_{name}") for name, stack in projections.items()
        },
    )
    if model.bottom_mlp is not None:
        bottom.copy_to(model.bottom_mlp)
    top.copy_to(model.top_mlp)
    for name, stack in projections.items():
        stack.copy_to(model.feature_mlps[name])
    for table, values in zip(spec.tables, rows, strict=True):
        model.embedding.set_table(table.name, values)
    return model
