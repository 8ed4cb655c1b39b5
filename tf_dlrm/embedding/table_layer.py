"""`TableLayer`: the embedding layer over a `TableStore` and its `RowTrainer`."""

import contextlib
import math
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, Self

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tf_dlrm.embedding import agreement, bags, id_ranges, penalties, table_files
from tf_dlrm.embedding.contract import EmbeddingLayer
from tf_dlrm.embedding.global_batch import join
from tf_dlrm.embedding.growing import GrowingTables
from tf_dlrm.embedding.growing.layer_methods import GrowingMethods
from tf_dlrm.embedding.recording import Lookup, find_recording
from tf_dlrm.embedding.row_places import RowPlace
from tf_dlrm.embedding.row_trainer import RowTrainer, join_lookups, same_form
from tf_dlrm.embedding.table_files import TableFiles
from tf_dlrm.embedding.table_store import TableStore
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime import rows as row_ops
from tf_dlrm.runtime import xla
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Ids, Shape


class TableLayer(GrowingMethods, EmbeddingLayer):
    """Embedding layer whose tables are in a `TableStore` and are trained by rows.

    Args:
        tables: The `EmbeddingTable`s. Their features, in this order, are the columns of
            the ids.
        seed: Integer seed of the initial values; `None` draws one from Python's
            `random`, which `keras.utils.set_random_seed` seeds.
        make_store: Function of the tables that returns their `TableStore`.
        **kwargs: Arguments of `EmbeddingLayer`.

    Attributes:
        features: `(feature, EmbeddingTable)` of each column.
    """

    built: bool

    def __init__(
        self,
        tables: Sequence[EmbeddingTable],
        seed: int | None,
        make_store: Callable[[tuple[EmbeddingTable, ...]], TableStore],
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("autocast", False)  # ids and weights keep their dtypes
        super().__init__(**kwargs)
        self.supports_jit = False  # XLA removes range checks
        self.tables = tuple(
            EmbeddingTable.from_config(table) if isinstance(table, dict) else table
            for table in tables
        )
        if not self.tables:
            raise UserError("`tables` must hold at least one EmbeddingTable.")
        for table in self.tables:
            penalties.check_rows(table)
        seed = random.randint(1, 10**9) if seed is None else int(seed)
        self.seed = agreement.agree_on_seed(seed, self.tables)
        self.features = [(f, table) for table in self.tables for f in table.features]
        self.num_features = len(self.features)
        self._store = make_store(self.tables)
        self.devices = self._store.devices
        self._trainer = RowTrainer(self._store)
        self._growing_tables: GrowingTables | None = None
        if any(table.growing is not None for table in self.tables):
            self._growing_tables = GrowingTables(self._store)
        self._files = TableFiles(self._store, self._trainer, self._growing_tables)
        # Build now: every size is known, and Keras makes the first call in a scratch
        # graph, where such large variables should not be created.
        self.build()

    # Weights

    def build(self, input_shape: Shape | None = None) -> None:
        """Create the tables and set their initial values."""
        if self.built:
            return
        self._store.build(self)
        for table in self.tables:
            if table.growing is None:
                self._initialize(table)
        if self._growing_tables is not None:
            self._growing_tables.build(self)
        self.built = True

    def _initialize(self, table):
        if table.initializer is None:
            blocks = self._uniform_blocks(table)
        else:
            size, width = table.vocabulary_size, table.embedding_dim
            values = agreement.of_chief(
                table.initializer((size, width), dtype="float32")
            )
            ranges = row_ops.block_ranges(size, width)
            blocks = ((a, values[a:b]) for a, b in ranges)
        for first_row, block in blocks:
            self._store.write_rows(table.name, None, first_row, block)

    def _uniform_blocks(self, table):
        """Yield first rows and blocks of the initial values without an initializer."""
        size, width = table.vocabulary_size, table.embedding_dim
        limit = size**-0.5
        seed = (self.seed + zlib.crc32(table.name.encode())) % (1 << 31)
        for a, b in row_ops.block_ranges(size, width):
            shape = (b - a, width)
            yield a, tf.random.stateless_uniform(shape, (seed, a), -limit, limit)

    def use_xla(self, enabled: bool) -> None:
        """Choose whether XLA may compile lookups and updates from now on."""
        with xla.disabled(not enabled):
            self._store.choose_engines()

    # Forward

    def translate(
        self, ids: Ids, claims_rows: bool = False, starts_step: bool = False
    ) -> Ids:
        growing = self._growing_tables
        if growing is None:
            return ids
        ids = bags.standardize_ids(ids, self.num_features)
        sizes = id_ranges.sizes_of([table for _, table in self.features])
        bad = id_ranges.any_out_of_range(ids, sizes)
        with tf.control_dependencies([id_ranges.refuse_if(bad, ids, self.features)]):
            ids = tf.nest.map_structure(tf.identity, ids)
        rows = growing.translate(ids, claims_rows, starts_step)
        return bags.nest(rows, self.num_features)

    def call(self, ids: Ids, weights: Any = None) -> Any:
        """Look up and pool the features of a batch.

        Args:
            ids: The ids, or the result of `translate`.
            weights: Factors with the shape of the ids, or `None`.

        Raises:
            tf.errors.InvalidArgumentError: If an id is out of range.
        """
        ids = bags.standardize_ids(ids, self.num_features)
        weights = bags.standardize_weights(weights, ids)
        pooled, bad = self._store.pool(ids, weights)
        if self._growing_tables is not None:  # `translate` has checked the ids
            return pooled
        # The range check runs in parallel to the lookup, which is safe with any id. The
        # result waits for the check, so that a bad batch updates nothing.
        check = id_ranges.refuse_if(bad, ids, self.features)
        with tf.control_dependencies([check]):
            return tf.nest.map_structure(tf.identity, pooled)

    def lookup(
        self,
        ids: Ids,
        weights: Any = None,
        columns: Sequence[int] | None = None,
        read: Callable[[tf.Variable, tf.Tensor], tf.Tensor] | None = None,
        find: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    ) -> Any:
        """Look rows up and pool them, ignoring ids out of range.

        Args:
            ids: As in `EmbeddingLayer.lookup`.
            weights: As in `EmbeddingLayer.lookup`.
            columns: As in `EmbeddingLayer.lookup`.
            read: As in `EmbeddingLayer.lookup`.
            find: Function of ids of growing tables and the numbers of their tables that
                returns their slots, to find ids in another form.
        """
        if columns is None:
            columns = range(self.num_features)
        ids = bags.standardize_ids(ids, len(columns))
        weights = bags.standardize_weights(weights, ids)
        if self._growing_tables is not None:
            ids = self._growing_tables.read(ids, columns, find)
        return self._store.lookup(ids, weights, columns, read or row_ops.gather)

    def lookup_rows(self, ids: Ids, weights: Any = None) -> Any:
        ids = bags.standardize_ids(ids, self.num_features)
        weights = bags.standardize_weights(weights, ids)
        columns = range(self.num_features)
        return self._store.lookup(ids, weights, columns, row_ops.gather)

    def penalty(self, lookups: Sequence[Ids]) -> tf.Tensor | None:
        if not (self.trainable and penalties.by_regularizer(self.tables)):
            return None
        ids = same_form(lookups, self.num_features)
        return self._store.penalty(join([(own, None) for own in ids])[0])

    @property
    def lookup_variables(self) -> list[tf.Variable]:
        """The `tf.Variable`s that `lookup` reads, without repetitions."""
        self.settle()
        return self._store.variables

    def row_places(self) -> list[RowPlace]:
        return self._store.row_places()

    @property
    def id_variables(self) -> list[tf.Variable]:
        growing = self._growing_tables
        return [] if growing is None else [growing.slots.ids]

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the layer, see `settle`."""
        self.settle()
        return super().variables

    @property
    def weights(self) -> list[keras.Variable]:
        """The weights of the layer, see `settle`."""
        self.settle()
        return super().weights

    def settle(self) -> None:
        self._store.settle()

    def compute_output_spec(
        self, ids: Ids, weights: Any = None, training: bool | None = None
    ) -> Any:
        """Return `keras.KerasTensor`s with the shapes of the result of a call."""
        shapes = [(ids.shape[0], table.embedding_dim) for _, table in self.features]
        if not self._store.has_one_width:
            return [keras.KerasTensor(shape, "float32") for shape in shapes]
        shape = (ids.shape[0], self.num_features, shapes[0][1])
        return keras.KerasTensor(shape, "float32")

    # Training

    def build_optimizer(
        self, optimizer: SparseOptimizer | dict[str, SparseOptimizer]
    ) -> None:
        self._trainer.build(self, optimizer)

    @property
    def iterations(self) -> tf.Variable | None:
        """Number of updates so far, int64; `None` before `build_optimizer`."""
        return self._trainer.iterations

    def apply_gradients(
        self,
        gradients: Any,
        ids: Ids,
        weights: Any = None,
        learning_rate: tf.Tensor | None = None,
        applies: tf.Tensor | None = None,
    ) -> None:
        ids = self.translate(ids)
        ids = bags.standardize_ids(ids, self.num_features)
        weights = bags.standardize_weights(weights, ids)
        self._trainer.apply(gradients, ids, weights, learning_rate, applies)

    def apply_lookups(
        self,
        lookups: Sequence[Lookup],
        gradients: Sequence[Any],
        learning_rate: tf.Tensor | None,
        applies: tf.Tensor | None,
        penalty_gradient: tf.Tensor | None = None,
    ) -> None:
        """Update the rows of all lookups of a training step, in one optimizer step.

        Gradients of rows that several lookups share are summed first.

        Args:
            lookups: The `Lookup`s, at least one.
            gradients: Gradients of the pooled vectors, one structure for each lookup.
            learning_rate: Float scalar for optimizers that follow the learning rate of
                the model, or `None`.
            applies: Bool scalar tensor: if `False`, nothing changes. `None` is `True`.
            penalty_gradient: Derivative of this replica's share of the loss with
                respect to the lookups' `penalty`; `None` without penalties.

        Raises:
            ValueError: If the ids of several lookups have different forms.
        """
        joined, ids, weights = join_lookups(lookups, gradients, self.num_features)
        self._trainer.apply(
            joined, ids, weights, learning_rate, applies, penalty_gradient
        )

    # State by logical table

    def get_table(self, name: str) -> np.ndarray:
        if find_recording(self) is not None:
            raise UserError(
                f"`get_table('{name}')` returns an array, through which a training "
                "step cannot send gradients. Call the layer to look rows up, "
                "`self.embedding(ids)`, as often as you need."
            )
        self.settle()
        return self._store.read(name)

    def get_rows(self, name: str, rows: npt.ArrayLike) -> np.ndarray:
        num_rows, _ = self._store.shape(name)
        rows = np.asarray(rows, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < num_rows:
            raise UserError(
                f"Table '{name}' has rows 0 to {num_rows - 1:,}. Received: rows from "
                f"{rows.min():,} to {rows.max():,}"
            )
        self.settle()
        return self._store.read_rows(name, rows)

    def set_table(self, name: str, rows: npt.ArrayLike) -> None:
        self.settle()
        self.num_overwrites += 1
        table_files.write(self._store, name, None, rows)

    def get_state(self, tables: Sequence[str] | None = None) -> dict[str, Any]:
        names = [table.name for table in self.tables] if tables is None else tables
        slots = {
            name: {s: self._store.read(name, s) for s in self._store.slot_widths(name)}
            for name in names
        }
        iterations = 0 if self.iterations is None else int(self.iterations.numpy())
        return {"iterations": iterations, "slots": slots}

    def set_state(self, state: dict[str, Any]) -> None:
        """Set the optimizer state that `get_state` returned for the same optimizers.

        Raises:
            ValueError: If this layer does not have such a table, slot or shape.
        """
        if self.iterations is None:
            raise UserError("Call `build_optimizer` before `set_state`.")
        for name, slots in state["slots"].items():
            for slot, values in slots.items():
                table_files.write(self._store, name, slot, values)
        self.iterations.assign(state["iterations"])

    def initial_rows(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the initial values of a table without an initializer, in blocks.

        They follow from the seed and the name of the table.

        Raises:
            ValueError: If there is no such table.
        """
        table = self._store.find(name)
        if table.initializer is None and table.growing is None:
            for first_row, block in self._uniform_blocks(table):
                yield first_row, block.numpy()

    def slot_bytes(self, tables: Sequence[str] | None = None) -> int:
        names = [table.name for table in self.tables] if tables is None else tables
        return sum(
            4 * math.prod(self._store.shape(name, slot))
            for name in names
            for slot in self._store.slot_widths(name)
        )

    # Keras calls these methods for `.keras` and `.weights.h5` files.

    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        """Write tables and optimizer state by logical table to a mapping of arrays."""
        self._files.save(store)

    def load_own_variables(self, store: Mapping[str, Any]) -> None:
        """Load tables and optimizer state that `save_own_variables` wrote."""
        self.num_overwrites += 1
        self._files.load(store)

    @contextlib.contextmanager
    def skipping_mismatches(self, skips: bool) -> Iterator[None]:
        """Return a context in which loading a file skips tables that do not match it.

        Args:
            skips: Whether to skip such tables instead of raising an error.
        """
        self._files.skips_mismatches = skips
        try:
            yield
        finally:
            self._files.skips_mismatches = False

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        return {
            **super().get_config(),
            "tables": [table.get_config() for table in self.tables],
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Create a layer from the result of `get_config()`."""
        config = dict(config)
        tables = [EmbeddingTable.from_config(table) for table in config.pop("tables")]
        return cls(tables, **config)
