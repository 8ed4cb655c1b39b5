"""Import of `tfrs.experimental.models.Ranking` models of TensorFlow Recommenders."""

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
    """Create a `DLRM` from a trained `Ranking` model of TensorFlow Recommenders (TFRS).

    The predictions are equal. Features keep their names. Tables have the names of their
    `TableConfig`, or of their first feature if these have none. TFRS sorts features
    alphabetically and puts the dense vector last, whereas a `DLRM` has the dense vector
    first; the weights are reordered accordingly, which only matters if you compare
    kernels. For an interaction with `concat_dense=False`, the weights of the dense
    vector are zero. The zeros of `skip_gather` are dropped. Compile options,
    regularizers and optimizer state are not imported.

    TFRS requires the environment variable `TF_USE_LEGACY_KERAS=1` from the start of the
    process. You can use Keras 3 in the same process.

    Args:
        model: A built `tfrs.experimental.models.Ranking` with
            `TPUEmbedding` (not on a TPU) or `PartialTPUEmbedding`; stacks that are
            TFRS' `MLP` or a `Sequential` of `Dense`; and as its interaction
            `DotInteraction`, `Concatenate`, or a `Sequential` of `Concatenate()` and
            one `Cross` or `MultiLayerDCN`.
        dense: Names of the columns of the dense tensor. Default: dense_0, dense_1, ...
        embedding: Function of the tables that returns the embedding layer, such as
            `tf_dlrm.sharding.ShardedEmbeddingCollection`. Default:
            `EmbeddingCollection`.

    Returns:
        The model, not compiled. Its predictions have the shape `(batch, 1)`, whereas
        those of TFRS have the shape `(batch,)`.

    Raises:
        ImportError: If TFRS cannot be imported in this process.
        TypeError: If `model` is not a `Ranking`.
        ValueError: If a part has no weights yet, or has no counterpart; the message
            names it.

    Reference:
        tensorflow-recommenders 0.7.7, experimental/models/ranking.py.
    """
    parts = read_ranking(model)
    spec = _make_spec(parts, dense)
    # The position in TFRS of each vector of the DLRM (the dense one, then features).
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
    """Return the interaction, and the top MLP's first kernel for its output."""
    theirs, kernel = parts.interaction, parts.top.kernels[0]
    width = widths[0] if parts.concat_dense else 0  # width of a leading dense vector
    dense_rows, interaction_rows = kernel[:width], kernel[width:]
    num_inputs = _num_outputs(theirs, widths)
    if len(interaction_rows) != num_inputs:
        raise UserError(
            f"`top_stack` takes {len(kernel)} inputs, but the interaction of "
            f"{len(order) - 1} features returns {width + num_inputs}. The model was "
            "built with other features than those of `embedding_layer`."
        )
    if isinstance(theirs, Dot):
        pair_rows = interaction_rows[_pairs(theirs, order)]
        if not parts.concat_dense:
            dense_rows = np.zeros((widths[0], kernel.shape[1]), kernel.dtype)
        layer = DotInteraction(theirs.self_interaction, name="interaction")
        return layer, np.concatenate([dense_rows, pair_rows])
    vector_rows = interaction_rows[_flat_places(order, widths)]
    if isinstance(theirs, Cat):
        vector_rows[:width] += dense_rows  # TFRS has the dense vector twice
        return CatInteraction(name="interaction"), vector_rows
    kind = CrossBesideDense if parts.concat_dense else CrossInteraction
    layer = kind(
        num_layers=len(theirs.kernels),
        rank=theirs.projections[0].shape[1] if theirs.projections else None,
        use_bias=theirs.biases is not None,
        name="interaction",
    )
    return layer, np.concatenate([dense_rows, vector_rows])


def _num_outputs(theirs: Dot | Cat | Cross, widths: list[int]) -> int:
    if not isinstance(theirs, Dot):
        return sum(widths)
    n = len(widths)
    if theirs.skip_gather:
        return n * n
    return n * (n + 1) // 2 if theirs.self_interaction else n * (n - 1) // 2


def _pairs(theirs: Dot, order: list[int]) -> np.ndarray:
    """Return the position in TFRS' output of each pair of a DLRM, in order."""
    n, places = len(order), np.asarray(order)
    i, j = np.tril_indices(n, 0 if theirs.self_interaction else -1)
    row, column = np.maximum(places[i], places[j]), np.minimum(places[i], places[j])
    if theirs.skip_gather:
        return row * n + column
    if theirs.self_interaction:
        return row * (row + 1) // 2 + column
    return row * (row - 1) // 2 + column


def _flat_places(order: list[int], widths: list[int]) -> np.ndarray:
    """Return the position in TFRS' concatenation of each value of a DLRM's vectors."""
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
