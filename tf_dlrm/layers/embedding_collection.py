"""`EmbeddingCollection`: all tables of a model on one device, fused by width."""

import collections
import random
import weakref
import zlib
from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dlrm import huge_pages
from tf_dlrm import rows as row_ops
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.layers import bags
from tf_dlrm.layers.fused_table import FusedTable
from tf_dlrm.layers.logical_tables import LogicalTables, check_names


@keras.saving.register_keras_serializable(package="tf_dlrm")
class EmbeddingCollection(LogicalTables, keras.layers.Layer):
    """Embedding tables with pooling and exact row-sparse updates.

    Tables of equal width are rows of one variable, so that a batch costs one gather,
    one reduction and one update however many tables there are. Nothing here ever
    reads a table densely.

    This is the *embedding contract*, all that `tf_dlrm.DLRM` asks of its embedding
    layer: calling it, `build_optimizer`, `apply_gradients`, `get_table`,
    `set_table`, `get_state`, `set_state`. Inside a `DLRM` the tables are updated by
    their own row-sparse optimizer. Inside any other `keras.Model` they are ordinary
    trainable weights whose gradient holds each touched row once, which stock Keras
    optimizers handle correctly, if slowly. (Called several times in one graph, or
    under one eager tape, its gradient is dense.)

    It trains on one device: under a strategy of several replicas it is refused.

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
        RuntimeError: When it is called under several replicas.
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

    def __init__(self, tables: Sequence[EmbeddingTable], seed=None, **kwargs):
        kwargs.setdefault("autocast", False)  # ids and weights arrive as they are
        super().__init__(**kwargs)
        self.supports_jit = False  # range checks vanish under XLA
        self.tables = tuple(
            EmbeddingTable.from_config(table) if isinstance(table, dict) else table
            for table in tables
        )
        if not self.tables:
            raise ValueError("`tables` must hold at least one EmbeddingTable.")
        self.seed = random.randint(1, 10**9) if seed is None else int(seed)
        self.features = [(f, table) for table in self.tables for f in table.features]
        self.num_features = len(self.features)
        by_width = collections.defaultdict(list)
        for table in self.tables:
            by_width[table.embedding_dim].append(table)
        self._fused = [
            FusedTable(width, tables, self.tables) for width, tables in by_width.items()
        ]
        self._of_table = {t.name: fused for fused in self._fused for t in fused.tables}
        self._iterations = None
        self._graphs = weakref.WeakSet()  # that called this layer
        self._last_call = None  # the last eager one, while a tape remembers it
        self._optimizers = {}
        # Now, not at the first call: Keras makes that call in a scratch graph, where
        # no variable of this size should be born, and every size is known already.
        self.build()

    # Weights

    def build(self, input_shape=None):
        if self.built:
            return
        for fused in self._fused:
            # Zeros first, rows after: random numbers for a whole table at once would
            # take its memory three times over.
            weight = self.add_weight(
                shape=(fused.num_rows + 1, fused.width),
                initializer="zeros",
                dtype="float32",
                autocast=False,
                name=f"tables_{fused.width}",
            )
            setattr(self, f"tables_{fused.width}", weight)  # for tf.train.Checkpoint
            fused.variable = row_ops.local_variables(weight.value)[0]
            huge_pages.use_for(fused.variable)
            for table in fused.tables:
                self._initialize(fused, table)
        self.built = True

    def _initialize(self, fused, table):
        first, size = fused.first_row[table.name], table.vocabulary_size
        if table.initializer is not None:
            values = table.initializer((size, table.embedding_dim), dtype="float32")
            make_block = lambda a, b: values[a:b]  # noqa: E731
        else:
            limit = size**-0.5
            seed = (self.seed + zlib.crc32(table.name.encode())) % (1 << 31)

            def make_block(a, b):
                shape = (b - a, table.embedding_dim)
                return tf.random.stateless_uniform(shape, (seed, a), -limit, limit)

        row_ops.write_range(fused.variable, first, size, make_block)

    def _find(self, name):
        if name not in self._of_table:
            raise ValueError(
                f"There is no table '{name}'. Tables: {', '.join(self._of_table)}"
            )
        fused = self._of_table[name]
        return fused, fused.by_name[name]

    # Forward

    def call(self, ids, weights=None):
        _refuse_replicas()
        ids = bags.standardize_ids(ids, self.num_features)
        weights = bags.standardize_weights(weights, ids)
        call = self._new_call()
        pooled, bad = zip(
            *[fused.pool(*group, call) for fused, *group in self._groups(ids, weights)]
        )
        # The range check is done beside the lookup, which reads nothing wrong; what
        # uses the result waits for it, so that nothing is updated from a bad batch.
        with tf.control_dependencies([self._refuse_if(tf.reduce_any(bad), ids)]):
            pooled = [tf.identity(vectors) for vectors in pooled]
        return self._in_feature_order(pooled)

    def _refuse_if(self, bad, ids):
        """Raises `InvalidArgumentError` naming table and value, if `bad`."""

        def refuse():
            bags.refuse_ids(
                ids,
                [table.vocabulary_size for _, table in self.features],
                [feature for feature, _ in self.features],
                [table.name for _, table in self.features],
            )
            return tf.constant(True)

        return tf.cond(bad, refuse, lambda: tf.constant(False))

    def _new_call(self):
        """What a call of this layer has to know: whether it is the first.

        The slices of two calls would be put side by side, with rows in both repeated;
        from the second on the gradient is dense, which is slow and right. In a graph
        all calls count, in nested graphs too. In eager mode the last call counts as
        long as a tape has not let go of it.
        """
        call = _Call()
        if tf.executing_eagerly():
            last = self._last_call and self._last_call()
            call.sparse_gradient = last is None
            self._last_call = weakref.ref(call)
        else:
            graph = _outermost_graph()
            call.sparse_gradient = graph not in self._graphs
            self._graphs.add(graph)
        return call

    def lookup(self, ids, weights=None):
        """The forward pass without the range check: an id out of range is no id.

        What an exported model runs, with nothing that only a training program needs.
        """
        ids = bags.standardize_ids(ids, self.num_features)
        weights = bags.standardize_weights(weights, ids)
        return self._in_feature_order(
            [
                lookup.pool(row_ops.gather(fused.variable, lookup.rows))
                for fused, *group in self._groups(ids, weights)
                for lookup in [fused.lookup(*group)]
            ]
        )

    def _groups(self, ids, weights):
        """Each fused table with the ids and weights of its features."""
        for fused in self._fused:
            group = (ids, weights)
            if len(self._fused) > 1:
                group = bags.select_features(
                    ids, weights, fused.columns, self.num_features
                )
            yield fused, *group

    def _in_feature_order(self, pooled):
        if len(self._fused) == 1:
            return pooled[0]
        result = [None] * self.num_features
        for fused, vectors in zip(self._fused, pooled):
            for i, column in enumerate(fused.columns):
                result[column] = vectors[:, i, :]
        return result

    def compute_output_spec(self, ids, weights=None):
        _refuse_replicas()
        shapes = [(ids.shape[0], table.embedding_dim) for _, table in self.features]
        if len(self._fused) > 1:
            return [keras.KerasTensor(shape, "float32") for shape in shapes]
        shape = (ids.shape[0], self.num_features, self._fused[0].width)
        return keras.KerasTensor(shape, "float32")

    # Training

    def build_optimizer(self, optimizer) -> None:
        """Creates optimizer state; what an earlier optimizer had is dropped.

        Args:
            optimizer: A `tf_dlrm.optimizers` object for all tables, or a dict of
                table name to such an object, which must name every table.

        Raises:
            ValueError: If a dict names an unknown table or leaves one out.
            RuntimeError: Under several replicas.
        """
        _refuse_replicas()
        if not isinstance(optimizer, dict):
            optimizer = dict.fromkeys(self._of_table, optimizer)
        check_names(optimizer, list(self._of_table))
        self._optimizers = optimizer
        distinct = list({id(each): each for each in optimizer.values()}.values())
        for each in distinct:
            each.build()
        iterations = tf.Variable(0, dtype=tf.int64, trainable=False, name="iterations")
        self._iterations = row_ops.local_variables(iterations)[0]
        # Assigned, so that tf.train.Checkpoint finds all of it.
        self._optimizer_state = tf.Module()
        for i, each in enumerate(distinct):
            for variable in each.variables:
                setattr(self._optimizer_state, f"learning_rate_{i}", variable)
        for fused in self._fused:
            fused.build_optimizer({t.name: optimizer[t.name] for t in fused.tables})
            for name, slot in fused.slots().items():
                setattr(self._optimizer_state, name, slot)

    @property
    def iterations(self):
        """Number of updates applied so far: int64 `tf.Variable`, `None` before
        `build_optimizer`."""
        return self._iterations

    def apply_gradients(self, gradients, ids, weights=None, learning_rate=None):
        """Updates the rows that a batch looked up. O(values in the batch).

        Args:
            gradients: Gradient of the loss with respect to what calling this layer
                with the same ids and weights returned, in the same structure.
            ids: As in the call.
            weights: As in the call.
            learning_rate: For optimizers that follow the model's, float scalar.

        Raises:
            RuntimeError: Before `build_optimizer`, or under several replicas.
        """
        if self._iterations is None:
            raise RuntimeError(
                "The tables have no optimizer: call `build_optimizer` (a DLRM's "
                "`compile` does)."
            )
        _refuse_replicas()
        ids = bags.standardize_ids(ids, self.num_features)
        weights = bags.standardize_weights(weights, ids)
        rates = {
            id(o): o.current_learning_rate(self._iterations, learning_rate)
            for o in self._optimizers.values()
        }
        step = tf.identity(self._iterations.assign_add(1))
        for fused, *group in self._groups(ids, weights):
            pooled = gradients
            if len(self._fused) > 1:
                pooled = tf.stack([gradients[c] for c in fused.columns], axis=1)
            fused.update(*group, tf.cast(pooled, tf.float32), rates, step)

    # Where a logical table lies, for `LogicalTables`

    def _slot_names(self, name):
        return self._of_table[name].slot_names(name)

    def _region(self, name, slot):
        fused, table = self._find(name)
        if slot is None:
            return fused.variable, fused.first_row[name], table.vocabulary_size
        return *fused.find_slot(name, slot), table.vocabulary_size

    def _shape(self, name, slot):
        variable, _, num_rows = self._region(name, slot)
        return num_rows, int(variable.shape[1])

    def _read(self, name, slot):
        return row_ops.read_range(*self._region(name, slot))

    def _write(self, name, slot, values):
        region = self._region(name, slot)
        row_ops.write_range(*region, lambda a, b: values[a:b])

    def get_config(self):
        return {
            **super().get_config(),
            "tables": [table.get_config() for table in self.tables],
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        tables = [EmbeddingTable.from_config(table) for table in config.pop("tables")]
        return cls(tables, **config)


class _Call:
    """One call of the layer; alive as long as its gradient may be asked for."""

    sparse_gradient: bool


def _outermost_graph():
    """The graph that is traced, from outside of its branches, loops and calls."""
    graph = tf.compat.v1.get_default_graph()
    while hasattr(getattr(graph, "outer_graph", None), "outer_graph"):
        graph = graph.outer_graph
    return graph


def _refuse_replicas() -> None:
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if replicas > 1:
        raise RuntimeError(
            "EmbeddingCollection trains on one device: its tables would drift apart "
            "on several. Use one device (no strategy, or one of a single replica). "
            f"Received: a strategy of {replicas} replicas"
        )
