"""Reading of the parts of a TFRS `Ranking` model, the only module with its attributes.

The attributes are private, like most of TFRS', and were checked against
tensorflow-recommenders 0.7.7. Subclasses of its parts that override `call` are refused,
because their computation is unknown.
"""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.interop.weights import DenseStack
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.errors import UserError


class Table(NamedTuple):
    """A table and the features that read it, in the order of TFRS."""

    name: str | None
    rows: Any
    combiner: str
    features: list[str]


class Dot(NamedTuple):
    """The options of a `DotInteraction`."""

    self_interaction: bool
    skip_gather: bool


class Cat(NamedTuple):
    """A concatenation, which has no options."""


class Cross(NamedTuple):
    """The kernels, projections and biases of the layers of a cross network.

    `projections` or `biases` is `None` if the layers have none.
    """

    kernels: list[np.ndarray]
    projections: list[np.ndarray] | None
    biases: list[np.ndarray] | None


class Ranking(NamedTuple):
    """The parts of a `Ranking` model.

    The interaction gets the vectors of the sorted features, then the dense vector.
    """

    tables: list[Table]
    bottom: DenseStack
    top: DenseStack
    interaction: Dot | Cat | Cross
    concat_dense: bool


class VariableRows:
    """Rows of a variable that are read in slices, never the whole table at once."""

    def __init__(self, variable: tf.Variable) -> None:
        self._variable = variable
        self.shape = tuple(variable.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> tf.Tensor:
        return row_ops.gather(self._variable, tf.range(rows.start, rows.stop))


def read_ranking(model: Any) -> Ranking:
    """Return the parts of a `tfrs.experimental.models.Ranking`.

    Raises:
        ImportError: If TFRS cannot be imported in this process.
        TypeError: If `model` is not a `Ranking`.
        ValueError: If a part has no counterpart, or has no weights yet.
    """
    tfrs = _import_tfrs()
    kind = tfrs.experimental.models.Ranking
    if not _is(model, kind):
        raise TypeError(
            "`model` must be a tfrs.experimental.models.Ranking with the `call` of "
            f"that class. Received: {type(model).__name__}"
        )
    top = _read_stack(tfrs, model._top_stack, "top_stack")
    if top.final_activation != "sigmoid" or top.kernels[-1].shape[1] != 1:
        raise UserError(
            "`top_stack` must end in one unit with activation 'sigmoid', because a "
            "DLRM predicts click probabilities. Received: "
            f"{top.kernels[-1].shape[1]} units, activation {top.final_activation!r}"
        )
    return Ranking(
        tables=_read_tables(tfrs, model._embedding_layer),
        bottom=_read_stack(tfrs, model._bottom_stack, "bottom_stack"),
        top=top._replace(final_activation=None),
        interaction=_read_interaction(tfrs, model._feature_interaction),
        concat_dense=bool(model._concat_dense),
    )


def _import_tfrs() -> Any:
    try:
        import tensorflow_recommenders
    except ImportError as error:
        value = os.environ.get("TF_USE_LEGACY_KERAS")
        raise ImportError(
            "To import a TFRS model, install tensorflow-recommenders and start the "
            "process with TF_USE_LEGACY_KERAS=1, because TFRS requires Keras 2. (Keras "
            "3 and tf_dlrm work in the same process.) Received: "
            f"TF_USE_LEGACY_KERAS={value!r}"
        ) from error
    return tensorflow_recommenders


def _is(layer: Any, kind: Any) -> bool:
    return isinstance(layer, kind) and type(layer).call is kind.call


def _refuse(part: str, layer: Any, rule: str) -> NoReturn:
    raise ValueError(
        f"`{part}` {rule}. Received: {type(layer).__name__} '{layer.name}'"
    )


# MLPs


def _read_stack(tfrs: Any, stack: Any, part: str) -> DenseStack:
    if _is(stack, tfrs.layers.blocks.MLP):
        layers = stack._sublayers
    elif _is(stack, tf.keras.Sequential):
        layers = stack.layers
    else:
        _refuse(part, stack, "must be a tfrs MLP or a Sequential of Dense layers")
    for layer in layers:
        if not _is(layer, tf.keras.layers.Dense):
            _refuse(part, layer, "must contain only Dense layers")
        _check_ready(layer, part)
    activations = [_activation(layer, part) for layer in layers]
    between = set(activations[:-1]) or {"relu"}
    with_bias = {layer.use_bias for layer in layers}
    if len(between) > 1 or len(with_bias) > 1:
        raise UserError(
            f"All layers of `{part}` but the last must have the same activation, and "
            f"either all layers or none a bias. Received: activations {activations}, "
            f"use_bias {[layer.use_bias for layer in layers]}"
        )
    return DenseStack(
        kernels=[layer.kernel.numpy() for layer in layers],
        biases=[layer.bias.numpy() for layer in layers]
        if with_bias == {True}
        else None,
        activation=between.pop(),
        final_activation=activations[-1],
    )


def _check_ready(layer: Any, part: str) -> None:
    if not layer.built:
        raise UserError(
            f"`{part}` has no weights yet. Call the model on a batch first, and then "
            "load its checkpoint if it has one."
        )
    if layer.compute_dtype != "float32":
        raise UserError(
            f"`{part}` computes in {layer.compute_dtype}, so predictions would differ. "
            "Load the weights into a Ranking with dtype policy float32."
        )


def _activation(layer: Any, part: str) -> str:
    """Return the name of an activation, which must be equal in Keras 2 and 3."""
    name = getattr(layer.activation, "__name__", type(layer.activation).__name__)
    x = tf.constant(np.linspace(-6, 6, 121, dtype=np.float32)[None])
    try:
        same = np.allclose(
            keras.activations.get(name)(x), layer.activation(x), rtol=1e-6, atol=1e-6
        )
    except (TypeError, ValueError):
        same = False
    if not same:
        raise UserError(
            f"`{part}` has the activation {name!r}, which Keras 3 does not have or "
            "computes differently."
        )
    return name


# Tables


def _read_tables(tfrs: Any, layer: Any) -> list[Table]:
    from tensorflow_recommenders.experimental.layers.embedding import (
        partial_tpu_embedding,
    )

    tables: dict[Any, Table] = {}
    if _is(layer, tfrs.layers.embedding.TPUEmbedding):
        _add_tpu_tables(tables, layer)
    elif _is(layer, partial_tpu_embedding.PartialTPUEmbedding):
        if layer.tpu_embedding is not None:
            _add_tpu_tables(tables, layer.tpu_embedding)
        for feature, embedding in layer.keras_embedding_layers.items():
            _check_ready(embedding, "embedding_layer")
            rows = VariableRows(embedding.embeddings)
            table = tables.setdefault(id(embedding), Table(None, rows, "sum", []))
            table.features.append(feature)
    else:
        _refuse(
            "embedding_layer",
            layer,
            "must be TFRS' TPUEmbedding or PartialTPUEmbedding, which define which "
            "feature reads which table",
        )
    for table in tables.values():
        table.features.sort()
    return sorted(tables.values(), key=lambda table: table.features[0])


def _add_tpu_tables(tables: dict[Any, Table], layer: Any) -> None:
    if layer._using_tpu:
        raise UserError(
            "`embedding_layer` was created under a TPUStrategy, where its variables "
            "are placeholders. Create the model without a TPUStrategy and restore a "
            "checkpoint."
        )
    configs = layer._feature_config
    if not isinstance(configs, Mapping) or not all(
        isinstance(config, tf.tpu.experimental.embedding.FeatureConfig)
        for config in configs.values()
    ):
        raise UserError(
            "The feature_config of `embedding_layer` must be a dict of names to "
            f"FeatureConfigs. Received: {type(configs).__name__} {configs!r}"
        )
    originals = {id(own): original for original, own in layer._table_config_map}
    for feature, config in configs.items():
        if config.max_sequence_length or config.output_shape:
            raise UserError(
                f"Feature '{feature}' returns a sequence (max_sequence_length, "
                "output_shape), but a DLRM pools each bag to one vector."
            )
        original = originals[id(config.table)]
        rows = VariableRows(layer.embedding_tables[original])
        table = Table(original.name, rows, original.combiner, [])
        tables.setdefault(id(original), table).features.append(feature)


# Interactions


def _read_interaction(tfrs: Any, layer: Any) -> Dot | Cat | Cross:
    lib = tfrs.layers.feature_interaction
    if _is(layer, lib.DotInteraction):
        return Dot(layer._self_interaction, layer._skip_gather)
    layers = layer.layers if _is(layer, tf.keras.Sequential) else [layer]
    if (
        layers
        and _is(layers[0], tf.keras.layers.Concatenate)
        and layers[0].axis in (-1, 1)
    ):
        if len(layers) == 1:
            return Cat()
        if len(layers) == 2 and _is(layers[1], lib.Cross):
            return _read_cross(layers[1])
        if len(layers) == 2 and _is(layers[1], lib.MultiLayerDCN):
            return _read_multi_layer(layers[1])
    raise UserError(
        "`feature_interaction` must be a DotInteraction, a Concatenate, or a "
        "Sequential of Concatenate() and one Cross or MultiLayerDCN. (Several Cross "
        "layers in a row are not a DCN-v2 cross network, because each uses its own "
        f"input as x_0.) Received: {[type(own).__name__ for own in layers]}"
    )


def _read_cross(layer: Any) -> Cross:
    if layer._preactivation is not tf.keras.activations.linear:
        _refuse("feature_interaction", layer, "must not have a `preactivation`")
    if layer._projection_dim is None:
        dense = [layer._dense] if layer.built else []
    elif layer._diag_scale:
        _refuse(
            "feature_interaction",
            layer,
            "must not combine `diag_scale` and `projection_dim`: the sum has full rank",
        )
    else:
        dense = [layer._dense_u, layer._dense_v] if layer.built else []
    for part in dense or [layer]:
        _check_ready(part, "feature_interaction")
    kernel = dense[-1].kernel.numpy()
    if layer._diag_scale:
        kernel = kernel + layer._diag_scale * np.eye(len(kernel), dtype=np.float32)
    return Cross(
        kernels=[kernel],
        projections=[dense[0].kernel.numpy()] if len(dense) == 2 else None,
        biases=[dense[-1].bias.numpy()] if layer._use_bias else None,
    )


def _read_multi_layer(layer: Any) -> Cross:
    if not layer.built:
        _check_ready(layer, "feature_interaction")
    for dense in [*layer._dense_u_kernels, *layer._dense_v_kernels]:
        _check_ready(dense, "feature_interaction")
    return Cross(
        kernels=[dense.kernel.numpy() for dense in layer._dense_v_kernels],
        projections=[dense.kernel.numpy() for dense in layer._dense_u_kernels],
        biases=[dense.bias.numpy() for dense in layer._dense_v_kernels]
        if layer._use_bias
        else None,
    )
