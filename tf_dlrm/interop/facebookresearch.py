"""Import of checkpoints of facebookresearch/dlrm (`dlrm_s_pytorch.py`)."""

import collections
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from tf_dlrm.features import EmbeddingTable, FeatureSpec
from tf_dlrm.interop.torch_files import read_torch_file, short
from tf_dlrm.interop.weights import DenseStack, make_model
from tf_dlrm.layers import CatInteraction, DotInteraction
from tf_dlrm.model import DLRM
from tf_dlrm.runtime.errors import UserError

Weights = dict[str, dict[int, dict[str, np.ndarray]]]  # by stack, position and kind

_MLP_KEY = re.compile(r"(bot_l|top_l)\.(\d+)\.(weight|bias)")
_TABLE_KEY = re.compile(r"emb_l\.(\d+)\.(weight|embs\.weight|proj\.weight)")
# Parts of a state_dict that have no counterpart in this package.
_NO_COUNTERPART = (
    (r"emb_l\.\d+\.weight_[qr]", "quotient-remainder tables (--qr-flag)"),
    (r"v_W_l\.\d+", "learned weights of rows (--weighted-pooling=learned)"),
)


def from_facebookresearch_dlrm(
    checkpoint: str | os.PathLike | Mapping,
    spec: FeatureSpec | None = None,
    interaction: str | None = None,
    self_interaction: bool = False,
    embedding: Callable | None = None,
) -> DLRM:
    """Create a `DLRM` from a checkpoint of facebookresearch/dlrm.

    The predictions equal those of the PyTorch model. The file is read without torch and
    without running pickled code. Tables are copied from the file block by block, so
    that memory holds them only once. Tables of mixed dimensions keep their widths and
    projections. The ids of values must come from the same preprocessing as in the
    original training. The optimizer state is not imported.

    Args:
        checkpoint: A checkpoint that `dlrm_s_pytorch.py` saved, a file with a
            state_dict from `torch.save`, or the state_dict itself (with torch tensors
            or arrays).
        spec: Names of features and tables, with one table for each sparse feature in
            the order of the checkpoint. Default: Criteo's names I1, I2, ... and C1, C2,
            ...
        interaction: The interaction of the original model, `"dot"` or `"cat"`. Default:
            the one that matches the widths.
        self_interaction: Whether the original model includes the products of vectors
            with themselves. This cannot be inferred, because a model without them and
            with one more table has the same widths.
        embedding: Function of the tables that returns the embedding layer, such as
            `tf_dlrm.sharding.ShardedEmbeddingCollection`. Default:
            `EmbeddingCollection`.

    Returns:
        The model, not compiled. Its top MLP ends in the logit; `DLRM` adds the sigmoid.

    Raises:
        ValueError: If the file is damaged or contains anything but tensors and plain
            containers; if weights are missing, do not match each other, or have no
            counterpart; or if `spec` has other sizes.

    Example:

    >>> import numpy as np, tf_dlrm
    >>> def linear(inputs, outputs):
    ...     return np.zeros((outputs, inputs), "float32"), np.zeros(outputs, "float32")
    >>> state = {"emb_l.0.weight": np.ones((7, 4), "float32")}
    >>> state["bot_l.0.weight"], state["bot_l.0.bias"] = linear(2, 4)
    >>> state["top_l.0.weight"], state["top_l.0.bias"] = linear(5, 1)
    >>> model = tf_dlrm.interop.from_facebookresearch_dlrm(state)
    >>> model.spec.sparse_features, model.embedding.get_table("C1").shape
    (('C1',), (7, 4))

    Reference:
        `DLRM_Net` of github.com/facebookresearch/dlrm, dlrm_s_pytorch.py.
    """
    weights = _sort_weights(_state_dict(checkpoint))
    bottom, top = (_dense_stack(weights[name], name) for name in ("bot_l", "top_l"))
    rows, projections = _tables(weights)
    widths = [
        values.shape[1] if i not in projections else projections[i].shape[0]
        for i, values in enumerate(rows)
    ]
    if spec is None:
        spec = _criteo_names(bottom, rows)
    else:
        _check_spec(spec, bottom, rows)
    stacks = {
        spec.sparse_features[i]: DenseStack([values.T], None)
        for i, values in projections.items()
    }
    layer = _interaction(bottom, top, widths, interaction, self_interaction)
    return make_model(spec, bottom, top, layer, rows, embedding, stacks)


def _state_dict(checkpoint: str | os.PathLike | Mapping) -> dict[str, np.ndarray]:
    """Return the weights by name, without the prefixes of wrappers."""
    if not isinstance(checkpoint, Mapping):
        checkpoint = read_torch_file(checkpoint)
    state = checkpoint
    if isinstance(state, Mapping) and "state_dict" in state:
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(k, str) for k in state):
        raise UserError(
            "`checkpoint` must be a state_dict (weights by name), or have one as the "
            f"entry 'state_dict'. Received: {_describe(checkpoint)}"
        )
    # DataParallel and DistributedDataParallel insert a module of this name.
    return {
        ".".join(part for part in key.split(".") if part != "module"): _array(
            key, value
        )
        for key, value in state.items()
    }


def _array(key: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a torch tensor, if torch is installed
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) == "torch.bfloat16" else value
        value = value.numpy()
    if not isinstance(value, np.ndarray):
        raise UserError(
            f"{short(key)} in the state_dict must be a tensor. Received: {short(value)}"
        )
    return value


def _sort_weights(state: dict[str, np.ndarray]) -> Weights:
    """Return weights as `{"bot_l": {layer: {"weight", "bias"}}, "top_l", "emb_l"}`."""
    weights: Weights = {
        name: collections.defaultdict(dict) for name in ("bot_l", "top_l", "emb_l")
    }
    unknown = []
    for key, value in state.items():
        if match := _MLP_KEY.fullmatch(key):
            part, number, kind = match.groups()
            weights[part][int(number)][kind] = value
        elif match := _TABLE_KEY.fullmatch(key):
            weights["emb_l"][int(match[1])][match[2].removeprefix("embs.")] = value
        else:
            unknown.append(key)
    for pattern, part in _NO_COUNTERPART:
        keys = [key for key in unknown if re.fullmatch(pattern, key)]
        if keys:
            raise UserError(
                f"The checkpoint has {part}, which have no counterpart. Received: "
                f"{short(keys[0])}"
            )
    absent = [name for name, layers in weights.items() if not layers]
    if unknown or absent:
        raise UserError(
            "The state_dict is not one of facebookresearch/dlrm (bot_l.0.weight, "
            f"bot_l.0.bias, emb_l.0.weight, top_l.0.weight, ...). Missing: {absent}, "
            f"unknown: {short(unknown)}"
        )
    return weights


def _dense_stack(layers: dict[int, dict[str, np.ndarray]], name: str) -> DenseStack:
    """Return linear layers in order; activations have the positions between them."""
    kernels: list[np.ndarray] = []
    biases: list[np.ndarray] = []
    for place in sorted(layers):
        layer = layers[place]
        shapes = {kind: values.shape for kind, values in layer.items()}
        weight = shapes.get("weight", ())
        width = kernels[-1].shape[1] if kernels else weight[-1:] and weight[-1]
        if len(weight) != 2 or shapes.get("bias") != weight[:1] or weight[1] != width:
            raise UserError(
                f"'{name}.{place}' must have a weight (outputs, {width or 'inputs'}) "
                f"and a bias (outputs,). Received: {shapes}"
            )
        kernels.append(layer["weight"].T)
        biases.append(layer["bias"])
    return DenseStack(
        kernels, biases, final_activation="relu" if name == "bot_l" else None
    )


def _tables(weights: Weights) -> tuple[list[np.ndarray], dict[int, np.ndarray]]:
    """Return the rows of each table, and the projections of those that have one."""
    rows, projections = [], {}
    tables = weights["emb_l"]
    if sorted(tables) != list(range(len(tables))):
        raise UserError(
            "Tables are missing: each process of a distributed run saves only its own "
            f"tables. Received: emb_l {sorted(tables)}"
        )
    for number in range(len(tables)):
        table = tables[number]
        shapes = {kind: values.shape for kind, values in table.items()}
        shape = shapes.get("weight", ())
        if len(shape) != 2 or 0 in shape:
            raise UserError(
                f"'emb_l.{number}' must have a weight (rows, width). Received: {shapes}"
            )
        rows.append(table["weight"])
        if "proj.weight" in table:
            projection = table["proj.weight"]
            if projection.ndim != 2 or projection.shape[1] != shape[1]:
                raise UserError(
                    f"'emb_l.{number}.proj.weight' must be (outputs, {shape[1]}). "
                    f"Received: {shapes}"
                )
            projections[number] = projection
    return rows, projections


def _interaction(
    bottom: DenseStack,
    top: DenseStack,
    widths: list[int],
    interaction: str | None,
    self_interaction: bool,
) -> keras.layers.Layer:
    """Return the interaction whose output has the width of the top MLP's input."""
    dense_width, num_vectors = bottom.kernels[-1].shape[1], len(widths) + 1
    choices = {} if self_interaction else {"cat": dense_width + sum(widths)}
    if set(widths) == {dense_width}:
        extra = 1 if self_interaction else -1
        num_pairs = num_vectors * (num_vectors + extra) // 2
        choices["dot"] = dense_width + num_pairs
    width = top.kernels[0].shape[0]
    matches = [
        name
        for name, expected in choices.items()
        if expected == width and interaction in (None, name)
    ]
    if len(matches) != 1:
        problem = "both interactions" if matches else "no interaction"
        raise UserError(
            f"The top MLP takes {width} inputs, which matches {problem} of "
            f"{len(widths)} tables: {choices}. Received: interaction={interaction!r}, "
            f"self_interaction={self_interaction!r}"
        )
    if matches == ["cat"]:
        return CatInteraction(name="interaction")
    return DotInteraction(self_interaction, name="interaction")


def _criteo_names(bottom: DenseStack, rows: list[np.ndarray]) -> FeatureSpec:
    return FeatureSpec(
        dense=[f"I{i + 1}" for i in range(bottom.kernels[0].shape[0])],
        tables=[
            EmbeddingTable(f"C{i + 1}", *values.shape) for i, values in enumerate(rows)
        ],
    )


def _check_spec(spec: FeatureSpec, bottom: DenseStack, rows: list[np.ndarray]) -> None:
    sizes = [table.vocabulary_size for table in spec.tables]
    received = (spec.num_dense, spec.num_sparse, sizes)
    expected = (bottom.kernels[0].shape[0], len(rows), [len(values) for values in rows])
    widths = [table.embedding_dim for table in spec.tables]
    combiners = {table.combiner for table in spec.tables}
    if received != expected or widths != [values.shape[1] for values in rows]:
        raise UserError(
            "`spec` must have the tables of the checkpoint in the same order. Expected "
            f"(dense features, sparse features, rows): {expected}. Received: "
            f"{received}, with embedding_dim {widths}"
        )
    if combiners != {"sum"}:
        raise UserError(
            "All tables of `spec` must have combiner='sum', because "
            f"facebookresearch/dlrm sums bags. Received: {sorted(combiners)}"
        )


def _describe(value: Any) -> str:
    names = list(value)[:5] if isinstance(value, Mapping) else value
    return f"{type(value).__name__} {short(names)}"
