"""Recording of the lookups that a training step makes, outside of its tape."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

from tf_dlrm.runtime import gradients, replicas
from tf_dlrm.runtime.errors import UserError
from tf_dlrm.runtime.types import Ids

if TYPE_CHECKING:
    from tf_dlrm.embedding.contract import EmbeddingLayer

_thread = threading.local()  # each replica is traced in its own thread


class Lookup(NamedTuple):
    """One call of an embedding layer.

    Attributes:
        ids: The ids; rows in the place of ids of growing tables.
        weights: Weights of the ids, or `None`.
        pooled: The vectors that the layer returned.
        penalty: The penalty on the rows that no earlier lookup of the step has read, a
            scalar tensor; `None` without regularizers.
    """

    ids: Ids
    weights: Any
    pooled: Any
    penalty: tf.Tensor | None = None


class Recording:
    """The lookups that a step makes in a layer, recorded outside of its tape.

    Args:
        layer: The `EmbeddingLayer`.
        tape: The step's `tf.GradientTape`, which watches the pooled vectors and
            penalties; `None` if the step needs no gradients.
        made: The lookup, if it was made before the step. The only call of the layer
            then returns its results.
        penalizes: Whether to compute penalties on rows.
        trains: Whether ids may claim rows of growing tables.

    Attributes:
        lookups: The `Lookup`s so far.
        losses: The losses that they add. Keras would keep those of all replicas, which
            are traced in turns, in one list.
    """

    def __init__(
        self,
        layer: "EmbeddingLayer",
        tape: tf.GradientTape | None = None,
        made: Lookup | None = None,
        penalizes: bool = True,
        trains: bool = False,
    ) -> None:
        self.layer, self._penalizes, self._trains = layer, penalizes, trains
        self.lookups: list[Lookup] = []
        self.losses: list[tf.Tensor] = []
        self._tape, self._made, self._graph = tape, made, _current_graph()
        self._penalty: tf.Tensor | None = None  # on the rows of all lookups so far

    def look_up(self, call: Callable[[Ids], Any], ids: Ids, weights: Any) -> Lookup:
        """Call `call(rows)`, which calls the layer, and record the lookup.

        The rows are the ids, or the rows that ids of growing tables read.

        Raises:
            ValueError: If the lookup is in a nested graph, or is a second one although
                the first was made before the step.
        """
        if self._made is not None:
            if self.lookups:
                raise ValueError(
                    "With `jit_compile=True`, the step makes its only lookup before "
                    "the compiled part. To look up more rows, use jit_compile='auto'."
                )
            pooled, penalty = self._made.pooled, self._made.penalty
        elif self._tape is None:
            ids = self._translate(ids)
            pooled, penalty = call(ids), self._penalty_on_new_rows(ids)
        else:
            if _current_graph() is not self._graph:
                raise ValueError(
                    "A training step cannot record a lookup inside a tf.function, "
                    "tf.cond or tf.while_loop in `call`. Call the embedding layer "
                    "outside of it."
                )
            with self._tape.stop_recording():
                ids = self._translate(ids)
                pooled, penalty = call(ids), self._penalty_on_new_rows(ids)
            pooled = self._reach_weights(pooled, ids, weights)
        if self._tape is not None:
            self._tape.watch([pooled, [] if penalty is None else penalty])
        self.lookups.append(Lookup(ids, weights, pooled, penalty))
        return self.lookups[-1]

    def _translate(self, ids):
        is_first = not self.lookups
        return self.layer.translate(ids, self._trains, is_first and self._trains)

    def _penalty_on_new_rows(self, ids):
        if not self._penalizes:
            return None
        before = self._penalty
        self._penalty = self.layer.penalty([*(own.ids for own in self.lookups), ids])
        return self._penalty if before is None else self._penalty - before

    def _reach_weights(self, pooled, ids, weights):
        """Return `pooled` with a gradient for weights that a model computes."""
        if weights is None:
            return pooled
        ragged = isinstance(weights, tf.RaggedTensor)
        values = weights.flat_values if ragged else tf.convert_to_tensor(weights)

        @gradients.custom_gradient
        def pass_through(values):
            def gradient(*upstream):
                with tf.GradientTape() as tape:
                    tape.watch(values)
                    own = weights.with_flat_values(values) if ragged else values
                    again = self.layer.lookup_rows(ids, own)
                upstream = tf.nest.pack_sequence_as(again, upstream)
                return tape.gradient(again, values, upstream)

            return tf.nest.map_structure(tf.identity, pooled), gradient

        return pass_through(values)


def _current_graph():
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def find_recording(layer: "EmbeddingLayer") -> Recording | None:
    """Return the active recording of this thread's lookups in `layer`, or `None`."""
    for recording in reversed(getattr(_thread, "recordings", ())):
        if recording.layer is layer:
            return recording
    return None


def recorded_losses(layer: "EmbeddingLayer") -> list[tf.Tensor]:
    """Return the losses that the lookups of this thread's recording have added."""
    recording = find_recording(layer)
    return [] if recording is None else recording.losses


@contextlib.contextmanager
def recorded(
    layer: "EmbeddingLayer",
    tape: tf.GradientTape | None = None,
    made: Lookup | None = None,
    penalizes: bool = True,
    trains: bool = False,
) -> Iterator[Recording]:
    """Record the lookups in `layer` that this thread makes in the context.

    Args:
        layer: As in `Recording`.
        tape: As in `Recording`.
        made: As in `Recording`.
        penalizes: As in `Recording`.
        trains: As in `Recording`.
    """
    recordings = _thread.__dict__.setdefault("recordings", [])
    recordings.append(Recording(layer, tape, made, penalizes, trains))
    try:
        yield recordings[-1]
    finally:
        recordings.pop()


def refuse_replicas(penalty: tf.Tensor | None) -> None:
    """Refuse a penalty that Keras would add to the losses of all replicas at once."""
    is_replica = not tf.distribute.in_cross_replica_context() and replicas.count() > 1
    if penalty is not None and is_replica:
        raise UserError(
            "With several replicas, tables with a `regularizer` can only be looked up "
            "by `fit`, `evaluate` and `predict` of a DLRM, not in a step of your own."
        )
