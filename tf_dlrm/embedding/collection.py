"""`EmbeddingCollection`: all tables on each device, fused by width."""

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

    Tables of equal width share one variable, so that a batch costs one gather, one
    reduction and one update for all of them. No operation reads a whole table.

    In a `DLRM`, a row-sparse optimizer updates the tables. In any other `keras.Model`,
    they are ordinary trainable weights whose gradient contains each touched row once;
    stock Keras optimizers handle it correctly, but slowly. (If the layer is called
    several times in one graph or under one eager tape, its gradient is dense.)

    Under a strategy with several replicas, each device has a copy of all tables. A step
    of a `DLRM` updates each copy with the ids and gradients of the global batch, so the
    weights equal those of training on one device. To spread large tables over devices,
    use `tf_dlrm.sharding.ShardedEmbeddingCollection`.

    Args:
        tables: The `EmbeddingTable`s. Their features, in this order, are the columns of
            the ids.
        seed: Integer seed of the initial values. Default: drawn from Python's
            `random`, which `keras.utils.set_random_seed` seeds.

    Call arguments:
        ids: int32/int64 `(batch, F)`, with -1 for no id; `(batch, F, L)` padded with
            -1; or a `tf.RaggedTensor` `(batch, F, None)`.
        weights: float32 factors with the shape of the ids, or `None`.

    Returns:
        float32 `(batch, F, embedding_dim)`, or, if widths differ, a list of F tensors
        `(batch, width of the feature)`.

    Raises:
        ValueError, TypeError: If tables, ids or weights break the rules above.
        tf.errors.InvalidArgumentError: If an id is outside its table. `lookup`, which
            exported models run, ignores such an id instead. No id ever reads a row of
            another table. (XLA cannot compile the check; use `lookup` in functions
            that XLA compiles.)

    Example:

    >>> import numpy as np, tf_dlrm
    >>> layer = tf_dlrm.layers.EmbeddingCollection(
    ...     [tf_dlrm.EmbeddingTable("C1", 100, 8),
    ...      tf_dlrm.EmbeddingTable("C2", 50, 8)])
    >>> layer(np.array([[3, 4], [99, -1]])).shape
    TensorShape([2, 2, 8])

    Reference:
        Naumov et al. 2019, arXiv 1906.00091, section 2.1. Pooling equals
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
