"""The one adapter to TensorFlow's registry of gradients. Checked against 2.21.0.

In a graph `tf.custom_gradient` registers its gradient under a fresh name, for as long
as the process lives, and with the gradient the graph and whatever that captured: the
tables of a model that was traced once would never be freed.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops


def custom_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Do as `tf.custom_gradient`, with a gradient that is freed with its graph.

    Args:
        function: Takes tensors; returns a tensor, or several, and the gradient
            function. It uses no variable but those whose handles it is given.
    """
    decorated = tf.custom_gradient(function)

    @functools.wraps(function)
    def call(*arguments):
        with freed_with_graph():
            return decorated(*arguments)

    return call


@contextlib.contextmanager
def freed_with_graph() -> Iterator[None]:
    """Free what `tf.custom_gradient` registers inside along with the current graph.

    Keras' optimizers use it too, for sums over replicas.
    """
    if tf.executing_eagerly():
        yield
        return
    graph = tf.compat.v1.get_default_graph()
    known = len(graph.get_operations())
    yield
    for operation in graph.get_operations()[known:]:
        if operation.type != "IdentityN":
            continue
        try:
            name = operation.get_attr("_gradient_op_type").decode()
        except ValueError:  # an ordinary one
            continue
        _give_to_graph(name, graph)


def _give_to_graph(name: str, graph: tf.Graph) -> None:
    """The graph keeps the gradient of this name; the registry only refers to it."""
    entry = registered().get(name)
    if entry is None or isinstance(entry["type"], _Reference):
        return
    graph.add_to_collection("tf_dlrm_gradients", entry["type"])
    entry["type"] = _Reference(entry["type"])
    weakref.finalize(graph, registered().pop, name, None).atexit = False


class _Reference:
    """A gradient function while somebody else holds it."""

    def __init__(self, gradient: Callable[..., Any]) -> None:
        self._gradient: Callable[[], Any] = weakref.ref(gradient)

    def __call__(self, operation: tf.Operation, *upstream: tf.Tensor) -> Any:
        return self._gradient()(operation, *upstream)


def registered() -> dict:
    """Return the registry: name to `{"type": gradient function, ...}`."""
    return ops.gradient_registry._registry
