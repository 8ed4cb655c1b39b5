"""`export_split`: the front layers of a model on a device, the rest on a server.

# B rows, F features of one part, L padded length, W width of all vectors of the device
"""

import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tf_dlrm.model import DLRM
from tf_dlrm.runtime import xla
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import PathLike
from tf_dlrm.runtime.units import format_bytes
from tf_dlrm.serving import versions
from tf_dlrm.serving.signatures import PROBABILITIES, weights_for_inference

EDGE_FILE = "edge.tflite"
_VECTORS = "edge_vectors"


class SplitModel(tf.Module):
    """The two parts of a model, as signatures.

    Args:
        model: The model.
        edge_features: Names of the sparse features of the device.
        max_hotness: Length L of padded bags.
        max_table_bytes: Largest size of a table of the device.

    Attributes:
        functions: `edge` and `serving_edge`.
        num_edge_parameters: Number of values in the tables of the device.
    """

    def __init__(
        self,
        model: DLRM,
        edge_features: Sequence[str],
        max_hotness: int,
        max_table_bytes: int,
    ) -> None:
        super().__init__(name="tf_dlrm_split")
        names = _check_features(model, edge_features)
        self._model, self._length = model, max_hotness
        owners = [(f, table) for table in model.spec.tables for f in table.features]
        self._columns = [i for i, (name, _) in enumerate(owners) if name in names]
        self._others = [i for i, (name, _) in enumerate(owners) if name not in names]
        self._owners = [owners[i][1] for i in self._columns]
        self._rows = {}
        for table in self._owners:
            num_bytes = 4 * table.vocabulary_size * table.embedding_dim
            if num_bytes > max_table_bytes:
                raise UserError(
                    f"Table '{table.name}' takes {format_bytes(num_bytes)}, more than "
                    f"`max_table_bytes`={max_table_bytes:,} allows on the device. "
                    "Leave its features in the cloud, or raise the limit."
                )
            rows = model.embedding.get_table(table.name)
            null_row = np.zeros((1, table.embedding_dim), np.float32)
            self._rows[table.name] = np.concatenate([rows, null_row])
        self.num_edge_parameters = sum(rows.size for rows in self._rows.values())
        bottom = model.bottom_mlp
        self._bottom_width = 0 if bottom is None else bottom.dims[-1]
        self._widths = [table.embedding_dim for table in self._owners]
        self.weights = weights_for_inference(model)
        self.functions = {"edge": self._make_edge(), "serving_edge": self._make_cloud()}

    @property
    def width(self) -> int:
        """Number of values that the device sends for each row."""
        return self._bottom_width + sum(self._widths)

    def _specs(self, num_features: int) -> tf.TensorSpec:
        shape = (None, num_features, self._length)
        return tf.TensorSpec(shape, tf.int64, "sparse_features")

    def _make_edge(self) -> Any:
        model = self._model
        dense = tf.TensorSpec((None, model.spec.num_dense), tf.float32)

        def compute(dense: Any, ids: Any) -> dict[str, tf.Tensor]:
            parts = []
            if model.bottom_mlp is not None:
                finite = tf.math.abs(dense) <= np.finfo(np.float32).max
                dense = tf.where(finite, dense, tf.zeros_like(dense))
                vectors = model.bottom_mlp(dense, training=False)
                parts.append(tf.cast(vectors, tf.float32))
            for i, table in enumerate(self._owners):
                parts.append(
                    _pool(self._rows[table.name], ids[:, i, :], table.combiner)
                )
            return {_VECTORS: tf.concat(parts, axis=1)}

        inputs = []
        if model.bottom_mlp is not None:
            inputs.append(tf.TensorSpec(dense.shape, tf.float32, "dense_features"))
        if self._owners:
            inputs.append(self._specs(len(self._owners)))

        def edge(*tensors: tf.Tensor) -> dict[str, tf.Tensor]:
            rest = list(tensors)
            first = rest.pop(0) if model.bottom_mlp is not None else None
            return compute(first, rest[0] if rest else None)

        return tf.function(edge, input_signature=inputs, autograph=False)

    def _make_cloud(self) -> Any:
        model = self._model
        vectors_spec = tf.TensorSpec((None, self.width), tf.float32, _VECTORS)

        def serving_edge(
            edge_vectors: tf.Tensor, sparse_features: tf.Tensor
        ) -> dict[str, tf.Tensor]:
            ids = sparse_features
            ids = tf.squeeze(ids, axis=2) if self._length == 1 else ids
            with xla.for_servers():
                pooled = model.embedding.lookup(ids, None, columns=self._others)
                parts = tf.split(
                    edge_vectors, [self._bottom_width, *self._widths], axis=1
                )
                vectors = _join(pooled, parts[1:], self._others, self._columns)
                bottom = parts[0] if model.bottom_mlp is not None else None
                probabilities = model.score_vectors(bottom, vectors)
                probabilities = model.recalibrate(probabilities)
            return {PROBABILITIES: probabilities}

        inputs = [vectors_spec, self._specs(len(self._others))]
        return tf.function(serving_edge, input_signature=inputs, autograph=False)


def _check_features(model: DLRM, edge_features: Sequence[str]) -> set[str]:
    """Return the names of the sparse features of the device."""
    sparse = [f for table in model.spec.tables for f in table.features]
    dense, names = list(model.spec.dense), list(edge_features)
    unknown = [name for name in names if name not in sparse + dense]
    if unknown or len(set(names)) < len(names):
        raise UserError(
            "`edge_features` must name features of the model, each once. Received: "
            f"{names}" + (f", unknown: {unknown}" if unknown else "")
        )
    own_dense = [name for name in dense if name in names]
    if own_dense and len(own_dense) < len(dense):
        missing = [name for name in dense if name not in names]
        raise UserError(
            "The bottom MLP takes all dense features, so `edge_features` must name all "
            f"of them or none (they are on the device in any case). Missing: {missing}"
        )
    own = {name for name in sparse if name in names}
    if own == set(sparse):
        raise UserError(
            "`edge_features` must leave at least one sparse feature to the cloud. "
            f"Received all: {names}"
        )
    if not own and not dense:
        raise UserError(
            "`edge_features` must name a sparse feature: the model has no bottom MLP "
            "that could be on the device."
        )
    if type(model).score is not DLRM.score:
        raise UserError(
            f"{type(model).__name__} overrides `score`, so its layers cannot be split."
        )
    return own


def _pool(rows: np.ndarray, ids: tf.Tensor, combiner: str) -> tf.Tensor:
    """Return pooled rows `(B, D)` of ids `(B, L)`; ids out of range are ignored."""
    null_row = len(rows) - 1
    is_id = (ids >= 0) & (ids < null_row)
    places = tf.where(is_id, ids, null_row * tf.ones_like(ids))
    vectors = tf.gather(tf.constant(rows), places)
    if ids.shape[1] == 1:
        return vectors[:, 0, :]
    total = tf.reduce_sum(vectors, axis=1)
    if combiner == "sum":
        return total
    count = tf.reduce_sum(tf.cast(is_id, tf.float32), axis=1, keepdims=True)
    if combiner == "sqrtn":
        count = tf.sqrt(count)
    return total / tf.maximum(count, 1.0)


def _join(
    pooled: Any, vectors: list[tf.Tensor], others: list[int], columns: list[int]
) -> Any:
    """Return the pooled vectors of all features in the order of the model."""
    own = pooled if isinstance(pooled, list) else tf.unstack(pooled, axis=1)
    by_column = dict(zip([*others, *columns], [*own, *vectors], strict=True))
    ordered = [by_column[column] for column in range(len(by_column))]
    if isinstance(pooled, list) or len({int(v.shape[1]) for v in ordered}) > 1:
        return ordered
    return tf.stack(ordered, axis=1)


def export_split(
    model: DLRM,
    path: PathLike,
    edge_features: Sequence[str] = (),
    max_hotness: int = 1,
    max_table_bytes: int = 1 << 20,
    version: int | None = None,
) -> str:
    """Export a model in two parts: front layers for a device, the rest for a server.

    The device computes the bottom MLP and looks up the small tables of
    `edge_features`; it sends vectors instead of raw features. Both parts together give
    the model's probabilities, bit for bit in TensorFlow.

    Args:
        model: A `DLRM`.
        path: Folder of versions. `<path>/<version>/` is a SavedModel for the server,
            and contains `edge.tflite` for LiteRT.
        edge_features: Names of the sparse features whose tables are on the device. The
            dense features, if any, are always there.
        max_hotness: Length of the padded bags.
        max_table_bytes: Largest size of a table on the device, as float32.
        version: Version number. Default: the next one.

    Returns:
        The path of the version. The signature `serving_edge` takes `edge_vectors`,
        float32 `(B, W)`, the output of `edge.tflite`; and `sparse_features`, int64
        `(B, F, max_hotness)`, of the other features in order. The signature `edge` is
        the part of the device in TensorFlow.

    Raises:
        ValueError: If a feature is unknown, a table is larger than the limit, or no
            feature is left for the server.

    Example:

    >>> import tempfile, numpy as np, tf_dlrm
    >>> tables = [tf_dlrm.EmbeddingTable("a", 10, 4), tf_dlrm.EmbeddingTable("b", 9, 4)]
    >>> model = tf_dlrm.DLRM(tf_dlrm.FeatureSpec(("d",), tables), (4,), (4, 1))
    >>> path = tf_dlrm.serving.export_split(model, tempfile.mkdtemp(), ["a"])
    On the device: ...
    >>> ids = tf.ones((1, 1, 1), tf.int64)
    >>> edge = tf.saved_model.load(path).signatures["edge"]
    >>> edge(dense_features=tf.ones((1, 1)), sparse_features=ids)["edge_vectors"].shape
    TensorShape([1, 8])
    """
    if max_hotness < 1:
        raise UserError(f"`max_hotness` must be at least 1. Received: {max_hotness!r}")
    module = SplitModel(model, edge_features, int(max_hotness), int(max_table_bytes))
    with versions.staged_directory(path, version) as staged:
        functions: dict[str, Any] = module.functions
        tf.saved_model.save(module, str(staged.path), signatures=functions)
        concrete = functions["edge"].get_concrete_function()
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
        content = converter.convert()
        (staged.path / EDGE_FILE).write_bytes(content)
    _describe(model, module, len(content))
    return str(pathlib.Path(path) / str(staged.version))


def _describe(model: DLRM, module: SplitModel, num_bytes: int) -> None:
    """Print sizes and multiplications of both parts."""
    bottom = 0 if model.bottom_mlp is None else _multiplications(model.bottom_mlp)
    total = bottom + _multiplications(model.top_mlp)
    print(
        f"On the device: {format_bytes(num_bytes)}, {bottom:,} multiplications of MLPs "
        f"a row, {module.num_edge_parameters:,} values in tables. It sends "
        f"{4 * module.width:,} bytes a row. On the server: {total - bottom:,} "
        "multiplications of MLPs a row.",
        flush=True,
    )


def _multiplications(mlp: Any) -> int:
    return sum(math.prod(layer.kernel.shape) for layer in mlp.dense_layers)
