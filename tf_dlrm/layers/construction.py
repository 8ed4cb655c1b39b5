"""The parts of a `DLRM`, made of what its constructor takes, or refused by name."""

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
    """Return an `MLP` of `dims`, or the one that was given.

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
    """Name of a feature's MLP; TensorFlow allows few characters in scopes."""
    return "mlp_" + re.sub(r"[^A-Za-z0-9_.-]", "_", feature)


DEFAULT_BOTTOM_MLP_DIMS = (512, 256, 64, 16)


def make_bottom_mlp(
    dims: Sequence[int] | MLP | None, spec: FeatureSpec, policy: keras.DTypePolicy
) -> MLP | None:
    """Return the bottom MLP; `None` for a spec without dense features.

    Raises:
        ValueError: If the dims are wrong, or have no dense features to act on.
    """
    if spec.num_dense:
        return make_mlp(dims, "bottom_mlp_dims", "bottom_mlp", policy, "relu")
    if dims is not None and dims != DEFAULT_BOTTOM_MLP_DIMS:
        raise UserError(
            "`bottom_mlp_dims` must be left out, or None, for a spec without dense "
            f"features. Received: bottom_mlp_dims={dims}"
        )
    return None


def make_top_mlp(dims: Sequence[int] | MLP, policy: keras.DTypePolicy) -> MLP:
    """Return the top MLP, which ends in the click logit.

    Raises:
        ValueError: If it ends in anything else.
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
    """Return the layer that holds the tables of `spec`: the given one, or a new one.

    Raises:
        TypeError: If it is not an `EmbeddingLayer`.
        ValueError: If it holds other tables, or was made for other devices.
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
            "`embedding` must hold the tables of `spec`, in that order. Received "
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
    """Return the MLPs between pooled vectors and interaction, by feature.

    Raises:
        TypeError: If one `MLP` is given for all features.
        ValueError: If a feature does not exist, or dims are wrong.
    """
    if not dims:
        return {}
    if isinstance(dims, MLP):
        raise TypeError(
            "`feature_mlp_dims` takes dims for every feature, or a dict of feature "
            "name to dims or MLP; one MLP for all features would share its weights."
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
        name: make_mlp(each, "feature_mlp_dims", _scope_name(name), policy, "relu")
        for name, each in dims.items()
    }


def make_interaction(
    interaction: str | keras.layers.Layer,
    self_interaction: bool,
    has_dense: bool,
    num_vectors: int,
    policy: keras.DTypePolicy,
) -> keras.layers.Layer:
    """Return the interaction layer of a name, or the one that was given.

    Raises:
        ValueError: If there is no interaction of that name, or it is not `"dot"` and
            `self_interaction` is set, or it is and has a single vector.
    """
    if isinstance(interaction, keras.layers.Layer):
        return interaction
    if self_interaction and interaction != "dot":
        raise UserError(
            "`self_interaction` goes with interaction='dot'. Received: "
            f"interaction={interaction!r}"
        )
    if interaction == "dot":
        if num_vectors == 1 and not self_interaction:
            raise UserError(
                "interaction='dot' multiplies pairs of vectors, and the spec has one "
                "sparse feature and no dense ones: use interaction='cat'."
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
