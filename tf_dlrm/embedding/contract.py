"""`EmbeddingLayer`: all that a model asks of the layer that holds its tables.

A training step does not differentiate tables: it records which rows the layer looked up
and what came of them, differentiates with respect to these pooled vectors, and hands
their gradients back to the layer, which updates the rows.
"""

import abc
import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tf_dlrm.embedding.recording import Lookup, find_recording
from tf_dlrm.features import EmbeddingTable
from tf_dlrm.optimizers.base import SparseOptimizer
from tf_dlrm.runtime.types import Ids


class EmbeddingLayer(keras.layers.Layer, abc.ABC):
    """Base class of layers that hold embedding tables: the embedding contract.

    `tf_dlrm.DLRM` looks rows up by calling the layer and hands the gradients to
    `apply_lookups`, which calls `apply_gradients` for the only lookup of a step; it
    knows nothing of where the tables lie or how they are trained.
    A subclass defines `call(ids, weights=None)` and the abstract methods. The others
    are for exports, checkpoints and callbacks, and do right for any layer.

    Args:
        activity_regularizer: Keras regularizer of the pooled vectors, added to the loss
            as its mean over the rows of the batch: a penalty on what was looked up.
        **kwargs: Arguments of `keras.layers.Layer`.

    Attributes:
        tables: The `EmbeddingTable`s, in the order of the features; a layer that leaves
            them empty is trusted to fit the model's spec.
        devices: Names of the devices it was made for; `None` for any.
    """

    tables: Sequence[EmbeddingTable] = ()
    devices: tuple[str, ...] | None = None

    def __init__(self, *, activity_regularizer: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.pooled_regularizer = keras.regularizers.get(activity_regularizer)

    # Lookup

    def __call__(self, ids: Ids, weights: Any = None, **kwargs: Any) -> Any:
        """Look up and pool, as `call` does; a training step records the lookup.

        Args:
            ids: Ids of all features, in a form of the batch contract.
            weights: Factors shaped as the ids, or `None`.
            **kwargs: Arguments of `keras.layers.Layer.__call__`.

        Returns:
            float32 `(batch, F, embedding_dim)`, or a list of F `(batch, width)`.
        """
        if weights is not None:
            kwargs["weights"] = weights

        def call() -> Any:
            return keras.layers.Layer.__call__(self, ids, **kwargs)

        recording = find_recording(self)
        pooled = call() if recording is None else recording.look_up(call, ids, weights)
        if self.pooled_regularizer is not None:  # outside of `call`: differentiated
            for vectors in tf.nest.flatten(pooled):
                num_rows = tf.cast(tf.shape(vectors)[0], tf.float32)
                penalty = self.pooled_regularizer(vectors)
                self.add_loss(tf.math.divide_no_nan(penalty, num_rows))
        return pooled

    def lookup(
        self,
        ids: Ids,
        weights: Any = None,
        columns: Sequence[int] | None = None,
        read: Callable[[tf.Variable, tf.Tensor], tf.Tensor] | None = None,
    ) -> Any:
        """Look up and pool without the range check: an id out of range is no id.

        Exported models run this.

        Args:
            ids: Ids of the features at `columns`, in a form of the batch contract.
            weights: Factors shaped as the ids, or `None`.
            columns: Numbers of features in ascending order; `None` for all.
            read: Function of one of `lookup_variables` and rows `(...,)` that returns
                them as float32 `(..., D)`, for tables that are stored otherwise.

        Raises:
            NotImplementedError: If the layer cannot look up some features alone, or
                read tables that are stored otherwise.
        """
        if columns is not None or read is not None:
            raise NotImplementedError(
                f"{type(self).__name__} must define `lookup` to be exported."
            )
        return self.call(ids, weights=weights)

    @property
    def lookup_variables(self) -> list[tf.Variable]:
        """The plain variables that hold rows, each once.

        A training step that reads one directly is refused.
        """
        return [variable.value for variable in self.variables]

    def owns(self, variable: keras.Variable) -> bool:
        """Return whether a Keras variable is one of this layer's."""
        return any(variable is own for own in self.variables)

    def use_xla(self, enabled: bool) -> None:
        """Choose whether XLA may compile lookups and updates from now on."""

    # Training

    @abc.abstractmethod
    def build_optimizer(
        self, optimizer: SparseOptimizer | dict[str, SparseOptimizer]
    ) -> None:
        """Create the state that training needs; an earlier optimizer's is dropped.

        Args:
            optimizer: A `tf_dlrm.optimizers` object for all tables, or a dict of table
                name to such an object, which must name every table that is trained.

        Raises:
            ValueError: If a dict names an unknown table or leaves one out.
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
            gradients: Gradient of the loss with respect to what calling this layer
                with the same ids and weights returned, in the same structure. Under a
                strategy those of this replica; the replicas' are summed.
            ids: The ids of the call.
            weights: The weights of the call, or `None`.
            learning_rate: For optimizers that follow the model's, float scalar.
            applies: Bool scalar tensor, the same in all replicas: with `False` nothing
                is changed. `None` is `True`.
        """

    def apply_lookups(
        self,
        lookups: Sequence[Lookup],
        gradients: Sequence[Any],
        learning_rate: tf.Tensor | None,
        applies: tf.Tensor | None,
    ) -> None:
        """Update the rows of all lookups of a step, in one step of the optimizer.

        Args:
            lookups: The `Lookup`s, at least one.
            gradients: Gradients of the pooled vectors of each.
            learning_rate: For optimizers that follow the model's, float scalar.
            applies: Bool scalar tensor: with `False` nothing is changed; or `None`.

        Raises:
            ValueError: If there are several, which a layer must know how to join.
        """
        if len(lookups) > 1:
            raise ValueError(
                f"A step called {type(self).__name__} {len(lookups)} times. It can "
                "update the rows of one call only: look all ids up at once."
            )
        (lookup,), (gradient,) = lookups, gradients
        self.apply_gradients(
            gradient,
            lookup.ids,
            weights=lookup.weights,
            learning_rate=learning_rate,
            applies=applies,
        )

    # State by logical table: neither fusion nor placement of tables shows.

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
            ValueError: If there is no such table or the shape differs.
        """

    @abc.abstractmethod
    def get_state(self, tables: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the optimizer's state by logical table.

        Args:
            tables: Names; `None` for all. One at a time bounds the memory.

        Returns:
            `{"iterations": int, "slots": {table: {slot: (vocabulary_size, width)}}}`,
            with no slots before `build_optimizer`.
        """

    @abc.abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Set what `get_state` returned, of the same optimizers."""

    def get_rows(self, name: str, rows: npt.ArrayLike) -> np.ndarray:
        """Return a copy of some rows of a table: float32 `(n, embedding_dim)`.

        Args:
            name: The table.
            rows: `(n,)` integers, in any order.

        Raises:
            ValueError: If there is no such table or row.
        """
        return self.get_table(name)[np.asarray(rows, np.int64)]

    def slot_bytes(self) -> int:
        """Return the bytes of the optimizer's state of all tables."""
        slots = self.get_state().get("slots", {}).values()
        return sum(values.nbytes for table in slots for values in table.values())

    def get_weights(self) -> list[np.ndarray]:
        """Return a copy of all tables, in their order."""
        if not self.tables:
            return list(super().get_weights())
        return [self.get_table(table.name) for table in self.tables]

    def set_weights(self, weights: Sequence[npt.ArrayLike]) -> None:
        """Overwrite all tables.

        Args:
            weights: One array `(vocabulary_size, embedding_dim)` for each table.

        Raises:
            ValueError: If there are not as many, or a shape differs; nothing is
                written then.
        """
        if not self.tables:
            super().set_weights(weights)
            return
        arrays = [np.asarray(each) for each in weights]
        if len(arrays) != len(self.tables):
            raise ValueError(
                f"There are {len(self.tables)} tables. Received: {len(arrays)} arrays"
            )
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
        """Return the number of values in all tables."""
        if not self.tables:
            return int(super().count_params())
        shapes = [(t.vocabulary_size, t.embedding_dim) for t in self.tables]
        return sum(map(math.prod, shapes))

    def skipping_mismatches(
        self, skips: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Return a context in which files that do not fit load as far as they do."""
        return contextlib.nullcontext()

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        config: dict[str, Any] = super().get_config()
        if self.pooled_regularizer is not None:
            regularizer = keras.regularizers.serialize(self.pooled_regularizer)
            config["activity_regularizer"] = regularizer
        return config
