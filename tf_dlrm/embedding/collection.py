"""`EmbeddingCollection`: all tables of a model on each device, fused by width."""

from collections.abc import Sequence
from typing import Any

import keras

from tf_dlrm.embedding.fused_store import FusedStore
from tf_dlrm.embedding.table_layer import TableLayer
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime import replicas


@keras.saving.register_keras_serializable(package="tf_dlrm")
class EmbeddingCollection(TableLayer):
    """Embedding tables with pooling and exact row-sparse updates.

    Tables of equal width are rows of one variable, so that a batch costs one gather,
    one reduction and one update however many tables there are. Nothing here ever
    reads a table densely.

    Inside a `DLRM` the tables are updated by their own row-sparse optimizer. Inside any
    other `keras.Model` they are ordinary trainable weights whose gradient holds each
    touched row once, which stock Keras optimizers handle correctly, if slowly. (Called
    several times in one graph, or under one eager tape, its gradient is dense.)

    Under a strategy of several replicas each device has a copy of all tables, and a
    step of a `DLRM` updates each copy with the ids and gradients of the global batch,
    so that the weights are those of one device. Where tables are large, spread them
    with `tf_dlrm.sharding.ShardedEmbeddingCollection`.

    Args:
        tables: The `EmbeddingTable`s; the features are theirs in this order.
        seed: Integer for the initial values; `None` draws one from Python's
            `random`, which `keras.utils.set_random_seed` seeds.

    Call arguments:
        ids: int32/int64 `(batch, F)`, `-1` for no id; `(batch, F, L)` padded with
            -1; or a `tf.RaggedTensor` `(batch, F, None)`.
        weights: float32 factors shaped as the ids, or `None`.

    Returns:
        float32 `(batch, F, embedding_dim)`; where widths differ, a list of F
        tensors `(batch, width of the feature)`.

    Raises:
        ValueError, TypeError: For tables, ids or weights that break the rules above.
        tf.errors.InvalidArgumentError: For an id outside its table. `lookup`, which
            exported models run, takes such an id for no id instead; never is another
            table's row read. (XLA cannot compile the check: in a program of its own
            use `lookup`.)

    Example:

    >>> import numpy as np, tf_dlrm
    >>> layer = tf_dlrm.layers.EmbeddingCollection(
    ...     [tf_dlrm.EmbeddingTable("C1", 100, 8),
    ...      tf_dlrm.EmbeddingTable("C2", 50, 8)])
    >>> layer(np.array([[3, 4], [99, -1]])).shape
    TensorShape([2, 2, 8])

    Reference:
        Naumov et al. 2019, arXiv 1906.00091, section 2.1; pooling as
        `tf.nn.embedding_lookup_sparse`.
    """

    def __init__(
        self, tables: Sequence[EmbeddingTable], seed: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(
            tables,
            seed,
            lambda tables: FusedStore(tables, replicas.device_names()),
            **kwargs,
        )
