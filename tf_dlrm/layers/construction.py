"""Construction of the parts of a `DLRM` from the arguments of its constructor."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tf_dlrm.embedding.collection import EmbeddingCollection
from tf_dlrm.embedding.contract import EmbeddingLayer
from tf_dlrm.features import FeatureSpec
from tf_dlrm.layers.interactions import CatInteraction, CrossInteraction, DotInteraction
from tf_dlrm.layers.mlp import MLP
from tf_dlrm.runtime import replicas
from tf_dlrm.runtime.errors import UserError


def make_mlp(
    dims: Any,
    argument: str,
    name: str,
    policy: keras.DTypePolicy,
    final_activation: str | None,
) -> MLP:
    """Return an `MLP` with layers of `dims`, or `dims` itself if it is an `MLP`.

    Args:
        dims: Sequence of integers, or an `MLP`.
        argument: Name of the constructor's argument, for the error message.
        name: Name of the layer.
        policy: Its dtype policy.
        final_activation: Activation after the last layer; `None` for a linear output.

    Raises:
        ValueError: If the dims are wrong; the message names the argument.
    """
    if isinstance(dims, MLP):
        return dims
    try:
        return MLP(dims, final_activation=final_activation, name=name, dtype=policy)
    except ValueError as error:
        raise UserError(str(error).replace("`dims`", f"`{argument}`", 1)) from None


def _scope_name(feature: str) -> str:
    """Return the name of a feature's MLP; scope names allow only some characters."""
    return "mlp_" + re.sub(r"[^A-Za-z0-9_.-]", "_", feature)


DEFAULT_BOTTOM_MLP_DIMS = (512, 256, 64, 16)


def make_bottom_mlp(
    dims: Sequence[int] | MLP | None, spec: FeatureSpec, policy: keras.DTypePolicy
) -> MLP | None:
    """Return the bottom MLP; `None` for a spec without dense features.

    Raises:
        ValueError: If the dims are wrong, or are set without dense features.
    """
    if spec.num_dense:
        return make_mlp(dims, "bottom_mlp_dims", "bottom_mlp", policy, "relu")
    if dims is not None and dims != DEFAULT_BOTTOM_MLP_DIMS:
        raise UserError(
            "`bottom_mlp_dims` must be omitted or None for a spec without dense "
            f"features. Received: bottom_mlp_dims={dims}"
        )
    return None


def make_top_mlp(dims: Sequence[int] | MLP, policy: keras.DTypePolicy) -> MLP:
    """Return the top MLP, which ends in the click logit.

    Raises:
        ValueError: If the last dim is not 1, or the last layer is not linear.
    """
    mlp = make_mlp(dims, "top_mlp_dims", "top_mlp", policy, None)
    if mlp.dims[-1] != 1 or mlp.final_activation is not keras.activations.linear:
        raise UserError(
            "`top_mlp_dims` must end in 1, the click logit, without activation. "
            f"Received: top_mlp_dims={mlp.dims}"
        )
    return mlp


def make_embedding(
    embedding: EmbeddingLayer | None, spec: FeatureSpec
) -> EmbeddingLayer:
    """Return the layer for the tables of `spec`: `embedding` itself, or a new one.

    Raises:
        TypeError: If `embedding` is not an `EmbeddingLayer`.
        ValueError: If it holds other tables, or was created for other devices.
    """
    if embedding is None:
        return EmbeddingCollection(spec.tables, name="embedding")
    if not isinstance(embedding, EmbeddingLayer):
        raise TypeError(
            "`embedding` must be a tf_dlrm.layers.EmbeddingLayer, such as an "
            f"EmbeddingCollection. Received: {type(embedding).__name__}"
        )
    replicas.check_devices(embedding, "A DLRM")
    tables, expected = _describe(embedding.tables), _describe(spec.tables)
    if tables and tables != expected:
        raise UserError(
            "`embedding` must hold the tables of `spec` in the same order. Received "
            f"(feature, table, rows): {tables[:3]} ..., expected {expected[:3]} ..."
        )
    return embedding


def _describe(tables):
    return [(f, t.name, t.vocabulary_size) for t in tables for f in t.features]


def make_feature_mlps(
    dims: Sequence[int] | Mapping[str, Sequence[int] | MLP] | None,
    spec: FeatureSpec,
    policy: keras.DTypePolicy,
) -> dict[str, MLP]:
    """Return the MLPs between the pooled vectors and the interaction, by feature.

    Raises:
        TypeError: If `dims` is a single `MLP`.
        ValueError: If a feature does not exist, or dims are wrong.
    """
    if not dims:
        return {}
    if isinstance(dims, MLP):
        raise TypeError(
            "`feature_mlp_dims` must be dims for all features, or a dict of feature "
            "names to dims or MLPs. With a single MLP, all features would share its "
            "weights."
        )
    if not isinstance(dims, Mapping):
        dims = dict.fromkeys(spec.sparse_features, dims)
    unknown = sorted(set(dims) - set(spec.sparse_features))
    if unknown:
        raise UserError(
            "`feature_mlp_dims` names features that the spec does not have: "
            f"{', '.join(unknown)}"
        )
    return {
        name: make_mlp(own_dims, "feature_mlp_dims", _scope_name(name), policy, "relu")
        for name, own_dims in dims.items()
    }


def make_interaction(
    interaction: str | keras.layers.Layer,
    self_interaction: bool,
    has_dense: bool,
    num_vectors: int,
    policy: keras.DTypePolicy,
) -> keras.layers.Layer:
    """Return the interaction layer for a name, or `interaction` itself if it is one.

    Raises:
        ValueError: If the name is unknown, if `self_interaction` is set for anything
            but `"dot"`, or if `"dot"` has only one vector.
    """
    if isinstance(interaction, keras.layers.Layer):
        return interaction
    if self_interaction and interaction != "dot":
        raise UserError(
            "`self_interaction` requires interaction='dot'. Received: "
            f"interaction={interaction!r}"
        )
    if interaction == "dot":
        if num_vectors == 1 and not self_interaction:
            raise UserError(
                "interaction='dot' multiplies pairs of vectors, but the spec has only "
                "one sparse feature and no dense ones. Use interaction='cat'."
            )
        return DotInteraction(
            self_interaction, append_first=has_dense, name="interaction", dtype=policy
        )
    if interaction == "cat":
        return CatInteraction(name="interaction", dtype=policy)
    if interaction == "cross":
        return CrossInteraction(name="interaction", dtype=policy)
    raise UserError(
        "`interaction` must be 'dot', 'cat', 'cross' or a Keras layer. Received: "
        f"interaction={interaction!r}"
    )
