"""`EmbeddingLayer`: the interface between a model and the layer that holds its tables.

A training step does not differentiate tables. It records each lookup and its pooled
vectors, differentiates with respect to these vectors, and passes their gradients to
the layer, which updates the rows.
"""

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tf_dlrm.embedding.recording import (
    Lookup,
    find_recording,
    recorded_losses,
    refuse_replicas,
)
from tf_dlrm.embedding.row_places import RowPlace
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime.types import Ids


class EmbeddingLayer(keras.layers.Layer, abc.ABC):
    """Base class of layers that hold embedding tables.

    `tf_dlrm.DLRM` calls the layer to look rows up and passes the gradients to
    `apply_lookups`, which by default calls `apply_gradients` for the only lookup of a
    step. The model knows neither where the tables are nor how they are trained.
    A subclass defines `call(ids, weights=None)` and the abstract methods. The other
    methods serve exports, checkpoints and callbacks; their defaults work for any layer.

    Args:
        activity_regularizer: Keras regularizer of the pooled vectors. Its penalty is
            divided by the number of rows of the batch and added to the loss.
        **kwargs: Arguments of `keras.layers.Layer`.

    Attributes:
        tables: The `EmbeddingTable`s, in the order of the features. If they are empty,
            the model does not check them against its spec.
        devices: Names of the devices that the layer was created for; `None` for any.
        num_overwrites: Number of times that tables were set or loaded, not trained.
    """

    tables: Sequence[EmbeddingTable] = ()
    devices: tuple[str, ...] | None = None
    num_overwrites = 0

    def __init__(self, *, activity_regularizer: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pooled_regularizer = keras.regularizers.get(activity_regularizer)

    # Lookup

    def __call__(self, ids: Ids, weights: Any = None, **kwargs: Any) -> Any:
        """Look rows up and pool them; a training step records the lookup.

        Args:
            ids: Ids of all features, in any form that `standardize_ids` accepts.
            weights: Factors with the shape of the ids, or `None`.
            **kwargs: Arguments of `keras.layers.Layer.__call__`.

        Returns:
            float32 `(batch, F, embedding_dim)`, or a list of F tensors
            `(batch, width)`.
        """
        if weights is not None:
            kwargs["weights"] = weights

        def call(ids: Ids) -> Any:
            return keras.layers.Layer.__call__(self, ids, **kwargs)

        recording, add_loss = find_recording(self), self.add_loss
        if isinstance(ids, keras.KerasTensor):
            pooled, penalty = call(ids), None
        elif recording is None:
            ids = self.translate(ids)
            pooled, penalty = call(ids), self.penalty([ids])
            refuse_replicas(penalty)
        else:
            _, _, pooled, penalty = recording.look_up(call, ids, weights)
            add_loss = recording.losses.append
        if penalty is not None:
            add_loss(penalty)
        if self.pooled_regularizer is not None:  # not in `call`: it needs a gradient
            for vectors in tf.nest.flatten(pooled):
                num_rows = tf.cast(tf.shape(vectors)[0], tf.float32)
                penalty = self.pooled_regularizer(vectors)
                add_loss(tf.math.divide_no_nan(penalty, num_rows))
        return pooled

    def lookup(
        self,
        ids: Ids,
        weights: Any = None,
        columns: Sequence[int] | None = None,
        read: Callable[[tf.Variable, tf.Tensor], tf.Tensor] | None = None,
    ) -> Any:
        """Look rows up and pool them, ignoring ids out of range.

        Exported models run this method.

        Args:
            ids: Ids of the features at `columns`, in any form that `standardize_ids`
                accepts.
            weights: Factors with the shape of the ids, or `None`.
            columns: Positions of features in ascending order; default: all.
            read: Function `(variable, rows)` that returns the rows `(...,)` of one of
                `lookup_variables` as float32 `(..., D)`. Use it for tables in another
                format, such as quantized ones.

        Raises:
            NotImplementedError: If `columns` or `read` is set and the layer does not
                support it.
        """
        if columns is not None or read is not None:
            raise NotImplementedError(
                f"{type(self).__name__} must define `lookup` before it can be exported."
            )
        return self.call(ids, weights=weights)

    def translate(
        self, ids: Ids, claims_rows: bool = False, starts_step: bool = False
    ) -> Ids:
        """Return ids with rows in the place of ids of growing tables.

        Each call of the layer, `penalty` and `apply_lookups` get the result. Without
        growing tables, it is `ids`.

        Args:
            ids: The ids of a lookup.
            claims_rows: Whether new ids claim rows.
            starts_step: Whether this is the first lookup of a training step.
        """
        return ids

    def lookup_rows(self, ids: Ids, weights: Any = None) -> Any:
        """Look rows up and pool them, like `lookup`, for the result of `translate`."""
        return self.lookup(ids, weights)

    @property
    def losses(self) -> list[tf.Tensor]:
        """The losses that calls of the layer have added, of this replica."""
        return [*super().losses, *recorded_losses(self)]

    def penalty(self, lookups: Sequence[Ids]) -> tf.Tensor | None:
        """Return the penalty on the distinct rows that some lookups read together.

        Each call of the layer adds it to the losses of the layer.

        Args:
            lookups: The ids of each lookup.

        Returns:
            Float scalar tensor for the global batch, equal in all replicas; `None` if
            no trainable table has a regularizer.
        """
        return None

    @property
    def lookup_variables(self) -> list[tf.Variable]:
        """The `tf.Variable`s that hold rows, which no training step reads directly."""
        return [variable.value for variable in self.variables]

    def row_places(self) -> list[RowPlace]:
        """Return where `lookup_variables` hold each row of each table, once.

        `tf_dlrm.callbacks.PublishDeltas` needs it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `row_places`.")

    @property
    def id_variables(self) -> list[tf.Variable]:
        """The other `tf.Variable`s that `lookup` reads: the ids of growing tables."""
        return []

    def settle(self) -> None:
        """Make `lookup_variables` hold the rows themselves.

        While an optimizer such as `SparseSGD(l2=...)` trains, they may hold something
        from which lookups compute the rows. The methods and properties of the layer
        call this first. In a function that is being traced, it does nothing.
        """

    def owns(self, variable: keras.Variable) -> bool:
        """Return whether a Keras variable belongs to this layer."""
        return any(variable is own for own in self.variables)

    def use_xla(self, enabled: bool) -> None:
        """Choose whether XLA may compile lookups and updates from now on."""

    # Training

    @abc.abstractmethod
    def build_optimizer(
        self, optimizer: SparseOptimizer | dict[str, SparseOptimizer]
    ) -> None:
        """Create the state of an optimizer and discard that of an earlier one.

        Args:
            optimizer: A `tf_dlrm.optimizers` object for all tables, or a dict of table
                names to such objects, which must name every trainable table.

        Raises:
            ValueError: If a dict names an unknown table or omits one.
        """

    @abc.abstractmethod
    def apply_gradients(
        self,
        gradients: Any,
        ids: Ids,
        weights: Any = None,
        learning_rate: tf.Tensor | None = None,
        applies: tf.Tensor | None = None,
    ) -> None:
        """Update the rows that a batch looked up.

        Args:
            gradients: Gradients of the loss with respect to the pooled vectors that the
                layer returned for these ids and weights, in the same structure. Under a
                strategy, pass those of this replica; gradients are summed over
                replicas.
            ids: The ids of the lookup.
            weights: The weights of the lookup, or `None`.
            learning_rate: Float scalar for optimizers that follow the learning rate of
                the model.
            applies: Bool scalar tensor, equal in all replicas. If `False`, nothing
                changes. Default: `True`.
        """

    def apply_lookups(
        self,
        lookups: Sequence[Lookup],
        gradients: Sequence[Any],
        learning_rate: tf.Tensor | None,
        applies: tf.Tensor | None,
        penalty_gradient: tf.Tensor | None = None,
    ) -> None:
        """Update the rows of all lookups of a training step, in one optimizer step.

        Args:
            lookups: The `Lookup`s, at least one.
            gradients: Gradients of the pooled vectors, one structure for each lookup.
            learning_rate: Float scalar for optimizers that follow the learning rate of
                the model, or `None`.
            applies: Bool scalar tensor: if `False`, nothing changes. `None` is `True`.
            penalty_gradient: Derivative of this replica's share of the loss with
                respect to the lookups' `penalty`; `None` without penalties.

        Raises:
            ValueError: If there are several lookups and it cannot join them.
        """
        if len(lookups) > 1:
            raise ValueError(
                f"A step called {type(self).__name__} {len(lookups)} times, but it can "
                "update the rows of only one call. Look up all ids in one call."
            )
        (lookup,), (gradient,) = lookups, gradients
        self.apply_gradients(
            gradient,
            lookup.ids,
            weights=lookup.weights,
            learning_rate=learning_rate,
            applies=applies,
        )

    # State by logical table

    @abc.abstractmethod
    def get_table(self, name: str) -> np.ndarray:
        """Return a copy of a table: float32 `(vocabulary_size, embedding_dim)`.

        Raises:
            ValueError: If there is no such table.
        """

    @abc.abstractmethod
    def set_table(self, name: str, rows: npt.ArrayLike) -> None:
        """Overwrite a table with `(vocabulary_size, embedding_dim)` values.

        Raises:
            ValueError: If there is no such table, or the shape differs.
        """

    @abc.abstractmethod
    def get_state(self, tables: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the optimizer's state by logical table.

        Args:
            tables: Names of tables; default: all. To limit memory, pass one at a time.

        Returns:
            `{"iterations": int, "slots": {table: {slot: (vocabulary_size, width)}}}`,
            without slots before `build_optimizer`.
        """

    @abc.abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Set the optimizer state that `get_state` returned for the same optimizers."""

    def get_rows(self, name: str, rows: npt.ArrayLike) -> np.ndarray:
        """Return a copy of some rows of a table: float32 `(n, embedding_dim)`.

        Args:
            name: Name of the table.
            rows: Row numbers, `(n,)` integers in any order.

        Raises:
            ValueError: If there is no such table or row.
        """
        return self.get_table(name)[np.asarray(rows, np.int64)]

    def initial_rows(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the initial values of a table, block by block, if they are known.

        Args:
            name: Name of the table.

        Returns:
            Pairs of a first row and float32 `(n, embedding_dim)`, which cover the table
            in order; none if the values cannot be computed again.
        """
        return iter(())

    def slot_bytes(self, tables: Sequence[str] | None = None) -> int:
        """Return the size of the optimizer state in bytes.

        Args:
            tables: Names of tables; default: all.
        """
        state = self.get_state() if tables is None else self.get_state(tables)
        slots = state.get("slots", {}).values()
        return sum(values.nbytes for table in slots for values in table.values())

    def get_weights(self) -> list[np.ndarray]:
        """Return copies of all tables, in the order of `tables`."""
        if not self.tables:
            return list(super().get_weights())
        return [self.get_table(table.name) for table in self.tables]

    @property
    def num_arrays(self) -> int:
        """Number of the arrays that `get_weights` returns."""
        return len(self.tables) or len(self.weights)

    def set_weights(self, weights: Sequence[npt.ArrayLike]) -> None:
        """Overwrite all tables.

        Args:
            weights: One array `(vocabulary_size, embedding_dim)` for each table.

        Raises:
            ValueError: If the number of arrays or a shape differs. No table is changed.
        """
        if not self.tables:
            super().set_weights(weights)
            return
        arrays, num_tables = [np.asarray(array) for array in weights], len(self.tables)
        if len(arrays) != num_tables:
            raise ValueError(f"There are {num_tables} tables. Received: {len(arrays)}")
        for table, rows in zip(self.tables, arrays):
            shape = table.vocabulary_size, table.embedding_dim
            if rows.shape != shape:
                raise ValueError(
                    f"'{table.name}' has shape {shape}. Received values of shape "
                    f"{rows.shape}"
                )
        for table, rows in zip(self.tables, arrays):
            self.set_table(table.name, rows)

    def count_params(self) -> int:
        """Return the number of parameters in all tables."""
        if not self.tables:
            return int(super().count_params())
        return sum(table.num_parameters for table in self.tables)

    def skipping_mismatches(self, skips: bool) -> AbstractContextManager[None]:
        """Return a context in which loading a file skips tables that do not match it.

        Args:
            skips: Whether to skip such tables instead of raising an error.
        """
        return nullcontext()

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        config: dict[str, Any] = super().get_config()
        if self.pooled_regularizer is not None:
            regularizer = keras.regularizers.serialize(self.pooled_regularizer)
            config["activity_regularizer"] = regularizer
        return config
