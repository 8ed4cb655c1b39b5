"""`EmbeddingLayer`: all that a model asks of the layer that holds its tables.

A training step does not differentiate tables: it notes which rows the layer looked up
and what came of them, differentiates with respect to these pooled vectors, and hands
their gradients back to the layer, which updates the rows.
"""

import abc
import contextlib
import threading
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from tf_dlrm.runtime import gradients

_thread = threading.local()  # replicas are traced in threads of their own


class EmbeddingLayer(keras.layers.Layer, abc.ABC):
    """Base class of layers that hold embedding tables: the embedding contract.

    `tf_dlrm.DLRM` looks rows up by calling the layer, and updates them by
    `apply_gradients`; it knows nothing of where the tables lie or how they are trained.
    A subclass defines `call(ids, weights=None)` and the methods below.

    Args:
        activity_regularizer: Keras regularizer of the pooled vectors, added to the loss
            as its mean over the rows of the batch: a penalty on what was looked up.
        **kwargs: As of `keras.layers.Layer`.
    """

    def __init__(self, *, activity_regularizer=None, **kwargs):
        super().__init__(**kwargs)
        self.pooled_regularizer = keras.regularizers.get(activity_regularizer)

    def __call__(self, ids, weights=None, **kwargs):
        """As `keras.layers.Layer`; a training step takes notice of the lookup."""
        if weights is not None:
            kwargs["weights"] = weights

        def call():
            return keras.layers.Layer.__call__(self, ids, **kwargs)

        for recording in reversed(getattr(_thread, "recordings", ())):
            if recording.layer is self:
                pooled = recording.look_up(call, ids, weights)
                break
        else:
            pooled = call()
        if self.pooled_regularizer is not None:  # outside of `call`: differentiated
            for vectors in tf.nest.flatten(pooled):
                num_rows = tf.cast(tf.shape(vectors)[0], tf.float32)
                penalty = self.pooled_regularizer(vectors)
                self.add_loss(tf.math.divide_no_nan(penalty, num_rows))
        return pooled

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments as JSON-safe values."""
        config = super().get_config()
        if self.pooled_regularizer is not None:
            regularizer = keras.regularizers.serialize(self.pooled_regularizer)
            config["activity_regularizer"] = regularizer
        return config

    @abc.abstractmethod
    def build_optimizer(self, optimizer) -> None:
        """Create the state that training needs; an earlier optimizer's is dropped.

        Args:
            optimizer: A `tf_dlrm.optimizers` object for all tables, or a dict of table
                name to such an object, which must name every table.
        """

    @abc.abstractmethod
    def apply_gradients(
        self, gradients, ids, weights=None, learning_rate=None, applies=None
    ) -> None:
        """Update the rows that a batch looked up.

        Args:
            gradients: Gradient of the loss with respect to what calling this layer
                with the same ids and weights returned, in the same structure. Under a
                strategy those of this replica; the replicas' are summed.
            ids: As in the call.
            weights: As in the call.
            learning_rate: For optimizers that follow the model's, float scalar.
            applies: Bool scalar tensor, the same in all replicas: with `False` nothing
                is changed. `None` is `True`.
        """

    @abc.abstractmethod
    def get_table(self, name: str):
        """Return a copy of a table: float32 `(vocabulary_size, embedding_dim)`."""

    @abc.abstractmethod
    def set_table(self, name: str, rows) -> None:
        """Overwrite a table with `(vocabulary_size, embedding_dim)` values."""

    @abc.abstractmethod
    def get_state(self, tables=None) -> dict[str, Any]:
        """Return the optimizer's state by logical table."""

    @abc.abstractmethod
    def set_state(self, state: dict[str, Any]) -> None:
        """Set what `get_state` returned."""

    @property
    def lookup_variables(self) -> list[tf.Variable]:
        """The variables that hold rows: a step that reads one directly is refused."""
        return [variable.value for variable in self.variables]

    def skipping_mismatches(self, skips: bool):
        """Context in which files that do not fit are loaded as far as they do."""
        return contextlib.nullcontext()

    def apply_lookups(self, lookups, gradients, learning_rate, applies) -> None:
        """Update the rows of all lookups of a step, in one step of the optimizer.

        Args:
            lookups: The `Lookup`s, at least one.
            gradients: Of the pooled vectors of each.
            learning_rate: As of `apply_gradients`.
            applies: As of `apply_gradients`.

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


class Lookup(NamedTuple):
    """One call of an embedding layer.

    Attributes:
        ids: The ids.
        weights: Their weights, or `None`.
        pooled: What the layer returned.
    """

    ids: Any
    weights: Any
    pooled: Any


class Recording:
    """The lookups that a step makes in a layer, outside of its tape.

    Args:
        layer: The `EmbeddingLayer`.
        tape: The step's `tf.GradientTape`, which watches the pooled vectors.
        given: What the only call returns, if the lookup was made before.
    """

    def __init__(self, layer: EmbeddingLayer, tape: tf.GradientTape, given=None):
        self.layer, self.lookups = layer, []
        self._tape, self._given, self._graph = tape, given, _current_graph()

    def look_up(self, call, ids, weights):
        """Call the layer, by `call()`, and take notice of it."""
        if self._given is None:
            if _current_graph() is not self._graph:
                raise ValueError(
                    "A training step cannot follow a lookup into a tf.function, "
                    "tf.cond or tf.while_loop of `call`. Call the embedding layer "
                    "outside of it."
                )
            with self._tape.stop_recording():
                pooled = call()
            pooled = self._reach_weights(pooled, ids, weights)
        elif self.lookups:
            raise ValueError(
                "With `jit_compile=True` the lookup is made before the compiled part "
                "of the step. To look up more rows in it, use jit_compile='auto'."
            )
        else:
            pooled = self._given
        self._tape.watch(pooled)
        self.lookups.append(Lookup(ids, weights, pooled))
        return pooled

    def _reach_weights(self, pooled, ids, weights):
        """The pooled vectors, with a gradient to weights that a model computes."""
        if weights is None or not hasattr(self.layer, "lookup"):
            return pooled
        ragged = isinstance(weights, tf.RaggedTensor)
        values = weights.flat_values if ragged else tf.convert_to_tensor(weights)

        @gradients.custom_gradient
        def pass_through(values):
            def gradient(*upstream):
                with tf.GradientTape() as tape:
                    tape.watch(values)
                    own = weights.with_flat_values(values) if ragged else values
                    again = self.layer.lookup(ids, own)
                upstream = tf.nest.pack_sequence_as(again, upstream)
                return tape.gradient(again, values, upstream)

            return tf.nest.map_structure(tf.identity, pooled), gradient

        return pass_through(values)


def _current_graph():
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def is_recorded(layer: EmbeddingLayer) -> bool:
    """Whether a step records the lookups in `layer` that this thread makes."""
    return any(each.layer is layer for each in getattr(_thread, "recordings", ()))


@contextlib.contextmanager
def recorded(layer: EmbeddingLayer, tape: tf.GradientTape, given=None):
    """Record the lookups in `layer` that this thread makes inside."""
    recordings = _thread.__dict__.setdefault("recordings", [])
    recordings.append(Recording(layer, tape, given))
    try:
        yield recordings[-1]
    finally:
        recordings.pop()
