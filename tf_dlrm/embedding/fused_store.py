"""`FusedStore`: all tables on each device, fused by width."""

import collections
import types
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tf_dlrm.embedding import bags
from tf_dlrm.embedding.engines import PooledGradients, Step
from tf_dlrm.embedding.fused_table import Call, FusedTable
from tf_dlrm.embedding.global_batch import gather, join, unpack
from tf_dlrm.embedding.row_places import RowPlace
from tf_dlrm.embedding.scaled_rows import ScaledOptimizer
from tf_dlrm.embedding.table_store import TableStore
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime import huge_pages, replicas
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime.types import Ids


class FusedStore(TableStore):
    """Tables of equal width as rows of one variable, a copy for each replica.

    The variables are weights of the layer, so that any Keras optimizer can train them.
    """

    def __init__(
        self, tables: Sequence[EmbeddingTable], devices: tuple[str, ...]
    ) -> None:
        super().__init__(tables, devices)
        by_width = collections.defaultdict(list)
        for table in tables:
            by_width[table.embedding_dim].append(table)
        # The copy of the tables of each replica, by width.
        self.copies = [
            [FusedTable(width, group, tables) for width, group in by_width.items()]
            for _ in devices
        ]
        self.fused = self.copies[0]
        self._number = {
            name: i for i, fused in enumerate(self.fused) for name in fused.by_name
        }
        # The graphs that called the layer, and the last eager call while it is alive.
        self._graphs: weakref.WeakSet[tf.Graph] = weakref.WeakSet()
        self._last_call: weakref.ref[Call] | None = None

    def build(self, layer: keras.layers.Layer) -> None:
        for i, fused in enumerate(self.fused):
            # Create zeros now and set the rows later: random numbers for a whole table
            # at once would take three times its memory.
            weight = layer.add_weight(
                shape=(fused.num_rows + 1, fused.width),
                initializer="zeros",
                dtype="float32",
                autocast=False,
                name=f"tables_{fused.width}",
            )
            setattr(layer, f"tables_{fused.width}", weight)  # for tf.train.Checkpoint
            _keep_null_row(weight)
            variables = row_ops.local_variables(weight.value)
            for copy, variable in zip(self.copies, variables, strict=True):
                copy[i].variable = variable
                huge_pages.use_for(variable)

    @property
    def variables(self) -> list[tf.Variable]:
        return [fused.variable for fused in self.fused]

    def row_places(self) -> list[RowPlace]:
        return [
            RowPlace(
                i, t.name, 0, t.vocabulary_size, 0, fused.width, fused.first_row[t.name]
            )
            for i, fused in enumerate(self.fused)
            for t in fused.tables
        ]

    def build_slots(
        self,
        layer: keras.layers.Layer,
        optimizers: dict[str, SparseOptimizer],
        held: tf.Module,
    ) -> None:
        for fused, *others in zip(*self.copies):
            own = {name: o for name, o in optimizers.items() if name in fused.by_name}
            fused.build_optimizer(own, others)
            for name, slot in fused.slots.items():
                setattr(held, name, slot)
        layer._optimizer_state = held

    def choose_engines(self) -> None:
        for copy in self.copies:
            for fused in copy:
                fused.choose_engine()

    # Lookups and updates

    def pool(self, ids: Ids, weights: tf.Tensor | None) -> tuple[Any, tf.Tensor]:
        call = self._new_call()
        copy = self.copies[replicas.local_number()]
        pooled, bad = zip(
            *[
                fused.pool(own, factors, call)
                for fused, own, factors in self._groups(copy, ids, weights)
            ]
        )
        return self._in_feature_order(pooled), tf.reduce_any(bad)

    def _new_call(self) -> Call:
        """Return a `Call`, whose gradient is sparse only if it is the first call.

        The sparse gradients of two calls would be concatenated, so rows that both
        touched would be repeated. From the second call on, the gradient is therefore
        dense, which is slow but correct. In a graph, all calls count, including those
        in nested graphs. In eager mode, the last call counts while a tape holds it.
        With several replicas, the gradient is always dense, because theirs would be
        concatenated too.
        """
        if replicas.count() > 1:
            return Call(sparse_gradient=False)
        if tf.executing_eagerly():
            last = self._last_call and self._last_call()
            call = Call(sparse_gradient=last is None)
            self._last_call = weakref.ref(call)
            return call
        graph = _outermost_graph()
        call = Call(sparse_gradient=graph not in self._graphs)
        self._graphs.add(graph)
        return call

    def _groups(
        self, copy: Sequence[FusedTable], ids: Ids, weights: tf.Tensor | None
    ) -> Iterator[tuple[FusedTable, Ids, tf.Tensor | None]]:
        """Yield each fused table of a copy with the ids and weights of its features."""
        for fused in copy:
            group = (ids, weights)
            if len(copy) > 1:
                group = bags.select_features(
                    ids, weights, fused.columns, self.num_features
                )
            yield fused, *group

    def _in_feature_order(self, pooled):
        if len(self.fused) == 1:
            return pooled[0]
        vectors_of = {
            column: vectors[:, i, :]
            for fused, vectors in zip(self.fused, pooled)
            for i, column in enumerate(fused.columns)
        }
        return [vectors_of[column] for column in range(self.num_features)]

    def penalty(self, ids: Ids) -> tf.Tensor:
        groups = self._groups(self.copies[replicas.local_number()], gather(ids), None)
        penalized = [(fused, own) for fused, own, _ in groups if fused.is_penalized]
        return tf.add_n([fused.penalty(own) for fused, own in penalized])

    def lookup(
        self,
        ids: Ids,
        weights: tf.Tensor | None,
        columns: Sequence[int],
        read: Callable[[tf.Variable, tf.Tensor], tf.Tensor],
    ) -> Any:
        vectors = {}
        for fused in self.fused:
            own = [i for i, column in enumerate(columns) if column in fused.columns]
            if not own:
                continue
            group = (ids, weights)
            if len(own) < len(columns):
                group = bags.select_features(ids, weights, own, len(columns))
            lookup = fused.lookup(*group, [columns[i] for i in own])
            pooled = lookup.pool(read(fused.variable, lookup.rows))
            pooled = fused.scaled(pooled, [columns[i] for i in own])
            if len(self.fused) == 1:
                return pooled
            vectors.update({own[i]: pooled[:, i, :] for i in range(len(own))})
        return [vectors[i] for i in range(len(columns))]

    def gradient_tensors(self, gradients: Any) -> list[tf.Tensor]:
        return tf.nest.flatten(gradients)

    def update(self, batches: Sequence[dict[str, tf.Tensor]], step: Step) -> None:
        for device, copy in zip(self.devices, self.copies, strict=True):
            with tf.device(device):
                ids, weights = join([unpack(batch) for batch in batches])
                for fused, own, factors in self._groups(copy, ids, weights):
                    pooled = [self._gradients(batch, fused) for batch in batches]
                    joined = pooled[0] if len(pooled) == 1 else tf.concat(pooled, 0)
                    fused.update(PooledGradients(own, factors, joined), step)

    def scale_rows(self, optimizer: ScaledOptimizer) -> None:
        for device, copy in zip(self.devices, self.copies, strict=True):
            with tf.device(device):
                for fused in copy:
                    fused.scale_rows(optimizer)

    def start_rows(
        self,
        tables: tf.Tensor,
        rows: tf.Tensor,
        initial: Callable[..., tf.Tensor],
    ) -> None:
        for number, fused in enumerate(self.fused):
            first = np.array([fused.first_row.get(t.name, -1) for t in self.tables])
            first_row = tf.gather(tf.constant(first), tables)
            own = None
            if len(self.fused) > 1:
                own = tf.where(first_row >= 0)[:, 0]
                first_row = tf.gather(first_row, own)
            values = initial(range(fused.width), own)
            places = first_row + (rows if own is None else tf.gather(rows, own))
            for device, copy in zip(self.devices, self.copies, strict=True):
                with tf.device(device):
                    copy[number].start_rows(places, values)

    def _gradients(self, batch, fused):
        if len(self.fused) == 1:
            return batch["gradient_0"]
        return tf.stack([batch[f"gradient_{c}"] for c in fused.columns], axis=1)

    # Access by table

    def _place(
        self, copy: Sequence[FusedTable], name: str, slot: str | None
    ) -> tuple[tf.Variable, int]:
        """Return the variable that holds a table or slot, and its first row there."""
        self.find(name)
        fused = copy[self._number[name]]
        if slot is None:
            return fused.variable, fused.first_row[name]
        return fused.find_slot(name, slot)

    def slot_widths(self, name: str) -> dict[str, int]:
        self.find(name)
        fused = self.fused[self._number[name]]
        slots = fused.slot_names(name)
        return {s: int(fused.find_slot(name, s)[0].shape[1]) for s in slots}

    def read(self, name: str, slot: str | None = None) -> np.ndarray:
        num_rows, _ = self.shape(name, slot)
        variable, first = self._place(self.fused, name, slot)
        return row_ops.read_range(variable, first, num_rows)

    def read_rows(self, name: str, rows: np.ndarray) -> np.ndarray:
        variable, first = self._place(self.fused, name, None)
        return row_ops.gather(variable, first + np.asarray(rows)).numpy()

    def write_rows(
        self, name: str, slot: str | None, first_row: int, block: Any
    ) -> None:
        for copy in self.copies:
            variable, first = self._place(copy, name, slot)
            first += first_row
            row_ops.write_range(variable, first, len(block), lambda a, b: block[a:b])


def _outermost_graph():
    """Return the graph being traced, outside of branches, loops and nested calls."""
    graph = tf.compat.v1.get_default_graph()
    while hasattr(getattr(graph, "outer_graph", None), "outer_graph"):
        graph = graph.outer_graph
    return graph


def _keep_null_row(weight: Any) -> None:
    """Make `weight.assign`, which `set_weights` calls, keep the null row at zero."""
    weight.assign = types.MethodType(_assign, weight)


def _assign(weight: Any, value: Any) -> Any:
    result = type(weight).assign(weight, value)
    variable = weight.value
    for copy in getattr(variable, "values", (variable,)):  # one for each replica
        if tf.executing_eagerly() and isinstance(copy, tf.Variable):
            num_rows, width = copy.shape
            row_ops.replace(copy, [num_rows - 1], tf.zeros((1, width)))
    return result
