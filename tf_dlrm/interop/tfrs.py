"""Models of TensorFlow Recommenders: `tfrs.experimental.models.Ranking`."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from tf_dlrm.features import EmbeddingTable, FeatureSpec
from tf_dlrm.interop.layers import CrossBesideDense
from tf_dlrm.interop.tfrs_parts import Cat, Cross, Dot, Ranking, read_ranking
from tf_dlrm.interop.weights import make_model
from tf_dlrm.layers import CatInteraction, CrossInteraction, DotInteraction
from tf_dlrm.model import DLRM
from tf_dlrm.runtime.errors import UserError


def from_tfrs(
    model: Any, dense: Sequence[str] | None = None, embedding: Callable | None = None
) -> DLRM:
    """Make a `DLRM` from a trained `Ranking` model of TensorFlow Recommenders.

    The predictions are equal. Features keep their names, tables those of their
    `TableConfig` (without a name, of their first feature). TFRS puts features in
    alphabetical order, the dense vector behind them; a `DLRM` has the dense vector
    first. The weights are reordered, which shows only if you compare kernels. An
    interaction with `concat_dense=False` gets weights of zero for the dense vector;
    the zeros of `skip_gather` are left out. Compile options, regularizers and the
    state of optimizers are not taken over.

    The process needs `TF_USE_LEGACY_KERAS=1` in its environment from the start, which
    TFRS asks for; Keras 3 works beside it.

    Args:
        model: A `tfrs.experimental.models.Ranking` that has its weights, with
            `TPUEmbedding` (not on a TPU) or `PartialTPUEmbedding`; stacks that are
            tfrs `MLP` or `Sequential` of `Dense`; `DotInteraction`, a `Concatenate`,
            or a `Sequential` of `Concatenate()` and one `Cross` or `MultiLayerDCN`.
        dense: Names of the columns of the dense tensor; `None` for dense_0, dense_1,
            ...
        embedding: Function of the tables that makes the embedding layer, for example
            `tf_dlrm.sharding.ShardedEmbeddingCollection`. Default:
            `EmbeddingCollection`.

    Returns:
        The model, not compiled; its predictions are `(batch, 1)`, those of TFRS
        `(batch,)`.

    Raises:
        ImportError: If TFRS cannot be imported in this process.
        TypeError: If `model` is not a `Ranking`.
        ValueError: If a part has no weights yet or no counterpart; the message names
            it.

    Reference:
        tensorflow-recommenders 0.7.7, experimental/models/ranking.py.
    """
    parts = read_ranking(model)
    spec = _make_spec(parts, dense)
    # Of each vector of ours (the dense one, then the features): its place in TFRS.
    names = sorted(spec.sparse_features)
    order = [len(names), *(names.index(name) for name in spec.sparse_features)]
    widths = [parts.bottom.kernels[-1].shape[1]]
    widths += [table.embedding_dim for table in spec.tables for _ in table.features]
    interaction, kernel = _interaction(parts, order, widths)
    top = parts.top._replace(kernels=[kernel, *parts.top.kernels[1:]])
    rows = [table.rows for table in parts.tables]
    result = make_model(spec, parts.bottom, top, interaction, rows, embedding)
    if isinstance(parts.interaction, Cross):
        _copy_cross(parts.interaction, _flat_places(order, widths), result.interaction)
    return result


def _make_spec(parts: Ranking, dense: Sequence[str] | None) -> FeatureSpec:
    num_dense = parts.bottom.kernels[0].shape[0]
    if dense is None:
        dense = [f"dense_{i}" for i in range(num_dense)]
    if isinstance(dense, str) or len(dense) != num_dense:
        raise UserError(
            f"`dense` must name the {num_dense} columns of the dense tensor. Received: "
            f"dense={dense!r}"
        )
    tables = [
        EmbeddingTable(
            table.name or table.features[0],
            table.rows.shape[0],
            table.rows.shape[1],
            combiner=table.combiner,
            features=table.features,
        )
        for table in parts.tables
    ]
    return FeatureSpec(dense, tables)


def _interaction(
    parts: Ranking, order: list[int], widths: list[int]
) -> tuple[keras.layers.Layer, np.ndarray]:
    """The interaction, and the top MLP's first kernel for what it returns."""
    theirs, kernel = parts.interaction, parts.top.kernels[0]
    width = widths[0] if parts.concat_dense else 0  # of the dense vector put in front
    of_dense, of_interaction = kernel[:width], kernel[width:]
    num_inputs = _num_outputs(theirs, widths)
    if len(of_interaction) != num_inputs:
        raise UserError(
            f"`top_stack` takes {len(kernel)} inputs, and the interaction of "
            f"{len(order) - 1} features gives {width + num_inputs}: the model was "
            "built with other features than those of `embedding_layer`."
        )
    if isinstance(theirs, Dot):
        of_pairs = of_interaction[_pairs(theirs, order)]
        if not parts.concat_dense:
            of_dense = np.zeros((widths[0], kernel.shape[1]), kernel.dtype)
        layer = DotInteraction(theirs.self_interaction, name="interaction")
        return layer, np.concatenate([of_dense, of_pairs])
    of_vectors = of_interaction[_flat_places(order, widths)]
    if isinstance(theirs, Cat):
        of_vectors[:width] += of_dense  # the dense vector was there twice
        return CatInteraction(name="interaction"), of_vectors
    kind = CrossBesideDense if parts.concat_dense else CrossInteraction
    layer = kind(
        num_layers=len(theirs.kernels),
        rank=theirs.projections[0].shape[1] if theirs.projections else None,
        use_bias=theirs.biases is not None,
        name="interaction",
    )
    return layer, np.concatenate([of_dense, of_vectors])


def _num_outputs(theirs: Dot | Cat | Cross, widths: list[int]) -> int:
    if not isinstance(theirs, Dot):
        return sum(widths)
    n = len(widths)
    if theirs.skip_gather:
        return n * n
    return n * (n + 1) // 2 if theirs.self_interaction else n * (n - 1) // 2


def _pairs(theirs: Dot, order: list[int]) -> np.ndarray:
    """Of each pair of ours, in our order: its place in TFRS' output."""
    n, places = len(order), np.asarray(order)
    i, j = np.tril_indices(n, 0 if theirs.self_interaction else -1)
    row, column = np.maximum(places[i], places[j]), np.minimum(places[i], places[j])
    if theirs.skip_gather:
        return row * n + column
    if theirs.self_interaction:
        return row * (row + 1) // 2 + column
    return row * (row - 1) // 2 + column


def _flat_places(order: list[int], widths: list[int]) -> np.ndarray:
    """Of each value of our vectors side by side: its place in TFRS' concatenation."""
    width_of = dict(zip(order, widths))
    first = np.cumsum([0, *(width_of[place] for place in range(len(order)))])
    return np.concatenate([first[p] + np.arange(width_of[p]) for p in order])


def _copy_cross(theirs: Cross, places: np.ndarray, layer: CrossInteraction) -> None:
    for i, kernel in enumerate(theirs.kernels):
        if theirs.projections is None:
            layer.kernels[i].assign(kernel[places][:, places])
        else:
            layer.projections[i].assign(theirs.projections[i][places])
            layer.kernels[i].assign(kernel[:, places])
        if theirs.biases is not None:
            layer.biases[i].assign(theirs.biases[i][places])
