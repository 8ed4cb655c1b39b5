"""Recording of the lookups that a training step makes, outside of its tape."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import tensorflow as tf

from tf_dlrm.runtime import gradients
from tf_dlrm.runtime.types import Ids

if TYPE_CHECKING:
    from tf_dlrm.embedding.contract import EmbeddingLayer

_thread = threading.local()  # each replica is traced in its own thread


class Lookup(NamedTuple):
    """One call of an embedding layer.

    Attributes:
        ids: The ids.
        weights: Weights of the ids, or `None`.
        pooled: The vectors that the layer returned.
    """

    ids: Ids
    weights: Any
    pooled: Any


class Recording:
    """The lookups that a step makes in a layer, recorded outside of its tape.

    Args:
        layer: The `EmbeddingLayer`.
        tape: The step's `tf.GradientTape`, which watches the pooled vectors.
        pooled: The pooled vectors, if the lookup was made before the step. The only
            call of the layer then returns them.

    Attributes:
        lookups: The `Lookup`s so far.
    """

    def __init__(
        self, layer: "EmbeddingLayer", tape: tf.GradientTape, pooled: Any = None
    ) -> None:
        self.layer = layer
        self.lookups: list[Lookup] = []
        self._tape, self._pooled, self._graph = tape, pooled, _current_graph()

    def look_up(self, call: Callable[[], Any], ids: Ids, weights: Any) -> Any:
        """Call `call()`, which calls the layer, and record the lookup.

        Raises:
            ValueError: If the lookup is in a nested graph, or is a second one although
                the first was made before the step.
        """
        if self._pooled is None:
            if _current_graph() is not self._graph:
                raise ValueError(
                    "A training step cannot record a lookup inside a tf.function, "
                    "tf.cond or tf.while_loop in `call`. Call the embedding layer "
                    "outside of it."
                )
            with self._tape.stop_recording():
                pooled = call()
            pooled = self._reach_weights(pooled, ids, weights)
        elif self.lookups:
            raise ValueError(
                "With `jit_compile=True`, the step makes its only lookup before the "
                "compiled part. To look up more rows, use jit_compile='auto'."
            )
        else:
            pooled = self._pooled
        self._tape.watch(pooled)
        self.lookups.append(Lookup(ids, weights, pooled))
        return pooled

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
                    again = self.layer.lookup(ids, own)
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


@contextlib.contextmanager
def recorded(
    layer: "EmbeddingLayer", tape: tf.GradientTape, pooled: Any = None
) -> Iterator[Recording]:
    """Record the lookups in `layer` that this thread makes in the context."""
    recordings = _thread.__dict__.setdefault("recordings", [])
    recordings.append(Recording(layer, tape, pooled))
    try:
        yield recordings[-1]
    finally:
        recordings.pop()
