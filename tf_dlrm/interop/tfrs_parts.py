"""The parts of a TFRS `Ranking` model: the one place that knows its attributes.

They are private, as most of TFRS' are; checked against tensorflow-recommenders 0.7.7.
A part with code of its own (a subclass with another `call`) is refused: what it
computes is not known.
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
    """A table and the features that read it, in TFRS' order of features."""

    name: str | None
    rows: Any
    combiner: str
    features: list[str]


class Dot(NamedTuple):
    """The options of a `DotInteraction`."""

    self_interaction: bool
    skip_gather: bool


class Cat(NamedTuple):
    """A concatenation."""


class Cross(NamedTuple):
    """A cross network: by layer its kernel, projection and bias; `None` for neither."""

    kernels: list[np.ndarray]
    projections: list[np.ndarray] | None
    biases: list[np.ndarray] | None


class Ranking(NamedTuple):
    """The parts. Vectors meet in the order of sorted features, the dense one last."""

    tables: list[Table]
    bottom: DenseStack
    top: DenseStack
    interaction: Dot | Cat | Cross
    concat_dense: bool


class VariableRows:
    """Rows of a variable, read in slices: never the whole table at once."""

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
        TypeError: If this is not a `Ranking`.
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
            "`top_stack` must end in one unit with activation 'sigmoid': a DLRM gives "
            f"click probabilities. Received: {top.kernels[-1].shape[1]} units, "
            f"activation {top.final_activation!r}"
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
            "Reading a TFRS model needs tensorflow-recommenders, in a process that was "
            "started with TF_USE_LEGACY_KERAS=1: TFRS runs on Keras 2 only. (Keras 3 "
            f"and tf_dlrm work beside it.) Received: TF_USE_LEGACY_KERAS={value!r}"
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
            _refuse(part, layer, "must hold Dense layers only")
        _check_ready(layer, part)
    activations = [_activation(layer, part) for layer in layers]
    between = set(activations[:-1]) or {"relu"}
    with_bias = {layer.use_bias for layer in layers}
    if len(between) > 1 or len(with_bias) > 1:
        raise UserError(
            f"All layers of `{part}` but the last must have one activation, and all or "
            f"none a bias. Received: activations {activations}, use_bias "
            f"{[layer.use_bias for layer in layers]}"
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
            f"`{part}` has no weights yet: call the model on a batch, or load a "
            "checkpoint into it after that."
        )
    if layer.compute_dtype != "float32":
        raise UserError(
            f"`{part}` computes in {layer.compute_dtype}, so that predictions could "
            "not be equal. Load the weights into a Ranking of dtype policy float32."
        )


def _activation(layer: Any, part: str) -> str:
    """The name of an activation that is the same function in Keras 2 and 3."""
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
            f"`{part}` has an activation that Keras 3 does not have by this name, or "
            f"computes differently: {name!r}"
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
            "must be tfrs' TPUEmbedding or PartialTPUEmbedding, which say which "
            "feature reads which table",
        )
    for table in tables.values():
        table.features.sort()
    return sorted(tables.values(), key=lambda table: table.features[0])


def _add_tpu_tables(tables: dict[Any, Table], layer: Any) -> None:
    if layer._using_tpu:
        raise UserError(
            "`embedding_layer` was made under a TPUStrategy, where its variables are "
            "placeholders. Make the model without one and restore a checkpoint."
        )
    configs = layer._feature_config
    if not isinstance(configs, Mapping) or not all(
        isinstance(config, tf.tpu.experimental.embedding.FeatureConfig)
        for config in configs.values()
    ):
        raise UserError(
            "The feature_config of `embedding_layer` must be a dict of name to "
            f"FeatureConfig. Received: {type(configs).__name__} {configs!r}"
        )
    originals = {id(own): original for original, own in layer._table_config_map}
    for feature, config in configs.items():
        if config.max_sequence_length or config.output_shape:
            raise UserError(
                f"Feature '{feature}' keeps a sequence (max_sequence_length, "
                "output_shape); tables of a DLRM pool a bag to one vector."
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
        "Sequential of Concatenate() and one Cross or MultiLayerDCN. (Cross layers in "
        "a row each take their own input for x_0: no cross network of DCN-v2.) "
        "Received: "
        f"{[type(each).__name__ for each in layers]}"
    )


def _read_cross(layer: Any) -> Cross:
    if layer._preactivation is not tf.keras.activations.linear:
        _refuse("feature_interaction", layer, "must have no `preactivation`")
    if layer._projection_dim is None:
        dense = [layer._dense] if layer.built else []
    elif layer._diag_scale:
        _refuse(
            "feature_interaction",
            layer,
            "must not have `diag_scale` with `projection_dim`: the sum is of full rank",
        )
    else:
        dense = [layer._dense_u, layer._dense_v] if layer.built else []
    for each in dense or [layer]:
        _check_ready(each, "feature_interaction")
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
    for each in [*layer._dense_u_kernels, *layer._dense_v_kernels]:
        _check_ready(each, "feature_interaction")
    return Cross(
        kernels=[each.kernel.numpy() for each in layer._dense_v_kernels],
        projections=[each.kernel.numpy() for each in layer._dense_u_kernels],
        biases=[each.bias.numpy() for each in layer._dense_v_kernels]
        if layer._use_bias
        else None,
    )
