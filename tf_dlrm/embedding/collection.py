"""`EmbeddingCollection`: all tables of a model on each device, fused by width."""

import collections
import random
import weakref
import zlib
from collections.abc import Sequence

import keras
import tensorflow as tf

from tf_dlrm.embedding import bags, id_ranges
from tf_dlrm.embedding.fused_table import FusedTable
from tf_dlrm.embedding.global_batch import join, unpack
from tf_dlrm.embedding.trained_tables import TrainedTables
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.runtime import huge_pages, replicas
from tf_dlrm.runtime import rows as row_ops


@keras.saving.register_keras_serializable(package="tf_dlrm")
class EmbeddingCollection(TrainedTables):
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
        # Of each replica: its copy of the tables, by width.
        self.devices = replicas.device_names()
        self._copies = [
            [FusedTable(width, found, self.tables) for width, found in by_width.items()]
            for _ in self.devices
        ]
        self._fused = self._copies[0]
        self._width_of = {
            table.name: i
            for i, fused in enumerate(self._fused)
            for table in fused.tables
        }
        self._graphs = weakref.WeakSet()  # that called this layer
        self._last_call = None  # the last eager one, while a tape remembers it
        # Now, not at the first call: Keras makes that call in a scratch graph, where
        # no variable of this size should be born, and every size is known already.
        self.build()

    # Weights

    def build(self, input_shape=None):
        if self.built:
            return
        for i, fused in enumerate(self._fused):
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
            for copy, variable in zip(
                self._copies, row_ops.local_variables(weight.value), strict=True
            ):
                copy[i].variable = variable
                huge_pages.use_for(variable)
            for table in fused.tables:
                self._initialize(table)
        self.built = True

    def _initialize(self, table):
        size = table.vocabulary_size
        if table.initializer is not None:
            values = table.initializer((size, table.embedding_dim), dtype="float32")
            make_block = lambda a, b: values[a:b]  # noqa: E731
        else:
            limit = size**-0.5
            seed = (self.seed + zlib.crc32(table.name.encode())) % (1 << 31)

            def make_block(a, b):
                shape = (b - a, table.embedding_dim)
                return tf.random.stateless_uniform(shape, (seed, a), -limit, limit)

        for region in self._regions(table.name, None):
            row_ops.write_range(*region, make_block)

    # Forward

    def call(self, ids, weights=None):
        ids = bags.standardize_ids(ids, self.num_features)
        weights = bags.standardize_weights(weights, ids)
        call = self._new_call()
        copy = self._copies[replicas.number()]
        pooled, bad = zip(
            *[
                fused.pool(*group, call)
                for fused, *group in self._groups(copy, ids, weights)
            ]
        )
        # The range check is done beside the lookup, which reads nothing wrong; what
        # uses the result waits for it, so that nothing is updated from a bad batch.
        with tf.control_dependencies(
            [id_ranges.refuse_if(tf.reduce_any(bad), ids, self.features)]
        ):
            pooled = [tf.identity(vectors) for vectors in pooled]
        return self._in_feature_order(pooled)

    def _new_call(self):
        """What a call of this layer has to know: whether it is the first.

        The slices of two calls would be put side by side, with rows in both repeated;
        from the second on the gradient is dense, which is slow and right. In a graph
        all calls count, in nested graphs too. In eager mode the last call counts as
        long as a tape has not let go of it. And replicas' slices would be put side by
        side as well.
        """
        call = _Call()
        if replicas.count() > 1:
            call.sparse_gradient = False
        elif tf.executing_eagerly():
            last = self._last_call and self._last_call()
            call.sparse_gradient = last is None
            self._last_call = weakref.ref(call)
        else:
            graph = _outermost_graph()
            call.sparse_gradient = graph not in self._graphs
            self._graphs.add(graph)
        return call

    def lookup(self, ids, weights=None, columns=None, read=row_ops.gather):
        """The forward pass without the range check: an id out of range is no id.

        What an exported model runs, with nothing that only a training program needs.

        Args:
            ids: As in the call, of the features at `columns`.
            weights: As in the call.
            columns: Numbers of features in ascending order; `None` for all.
            read: Function of one of `lookup_variables` and rows `(...,)` that returns
                them as float32 `(..., D)`, for tables that are stored otherwise.
        """
        if columns is None:
            columns = range(self.num_features)
        ids = bags.standardize_ids(ids, len(columns))
        weights = bags.standardize_weights(weights, ids)
        vectors = {}
        for fused in self._fused:
            own = [i for i, column in enumerate(columns) if column in fused.columns]
            if not own:
                continue
            group = (ids, weights)
            if len(own) < len(columns):
                group = bags.select_features(ids, weights, own, len(columns))
            lookup = fused.lookup(*group, [columns[i] for i in own])
            pooled = lookup.pool(read(fused.variable, lookup.rows))
            if len(self._fused) == 1:
                return pooled
            vectors.update({own[i]: pooled[:, i, :] for i in range(len(own))})
        return [vectors[i] for i in range(len(columns))]

    def _groups(self, copy, ids, weights):
        """Each fused table of a copy with the ids and weights of its features."""
        for fused in copy:
            group = (ids, weights)
            if len(copy) > 1:
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

    @property
    def lookup_variables(self) -> list[tf.Variable]:
        """The plain variables that `lookup` reads, each once."""
        return [fused.variable for fused in self._fused]

    def compute_output_spec(self, ids, weights=None):
        shapes = [(ids.shape[0], table.embedding_dim) for _, table in self.features]
        if len(self._fused) > 1:
            return [keras.KerasTensor(shape, "float32") for shape in shapes]
        shape = (ids.shape[0], self.num_features, self._fused[0].width)
        return keras.KerasTensor(shape, "float32")

    # Training

    def _build_slots(self, optimizers):
        slots = {}
        for fused, *others in zip(*self._copies):
            own = {table.name for table in fused.tables}
            fused.build_optimizer(
                {name: each for name, each in optimizers.items() if name in own}, others
            )
            slots.update(fused.slots)
        return slots

    def _gradient_tensors(self, gradients):
        return tf.nest.flatten(gradients)

    def _update(self, of_replicas, rates, step):
        """Updates each copy with the batches of all replicas."""
        for device, copy in zip(self.devices, self._copies, strict=True):
            with tf.device(device):
                ids, weights = join([unpack(each) for each in of_replicas])
                for fused, *group in self._groups(copy, ids, weights):
                    pooled = [
                        each["gradient_0"]
                        if len(copy) == 1
                        else tf.stack([each[f"gradient_{c}"] for c in fused.columns], 1)
                        for each in of_replicas
                    ]
                    joined = pooled[0] if len(pooled) == 1 else tf.concat(pooled, 0)
                    fused.update(*group, joined, rates, step)

    # Where a logical table lies, for `LogicalTables`

    def _slot_names(self, name):
        return self._fused[self._width_of[name]].slot_names(name)

    def _regions(self, name, slot):
        """Of each copy: the variable, the table's first row in it, and its rows."""
        if name not in self._width_of:
            raise ValueError(
                f"There is no table '{name}'. Tables: {', '.join(self._width_of)}"
            )
        regions = []
        for copy in self._copies:
            fused = copy[self._width_of[name]]
            place = (fused.variable, fused.first_row[name])
            if slot is not None:
                place = fused.find_slot(name, slot)
            regions.append((*place, fused.by_name[name].vocabulary_size))
        return regions

    def _shape(self, name, slot):
        (variable, _, num_rows), *_ = self._regions(name, slot)
        return num_rows, int(variable.shape[1])

    def _read(self, name, slot):
        return row_ops.read_range(*self._regions(name, slot)[0])

    def _read_rows(self, name, rows):
        (variable, first, _), *_ = self._regions(name, None)
        return row_ops.gather(variable, first + rows).numpy()

    def _write(self, name, slot, values):
        for region in self._regions(name, slot):
            row_ops.write_range(*region, lambda a, b: values[a:b])

    def get_config(self):
        return {
            **super().get_config(),
            "tables": [table.get_config() for table in self.tables],
            "seed": self.seed,
        }


class _Call:
    """One call of the layer; alive as long as its gradient may be asked for."""

    sparse_gradient: bool


def _outermost_graph():
    """The graph that is traced, from outside of its branches, loops and calls."""
    graph = tf.compat.v1.get_default_graph()
    while hasattr(getattr(graph, "outer_graph", None), "outer_graph"):
        graph = graph.outer_graph
    return graph
