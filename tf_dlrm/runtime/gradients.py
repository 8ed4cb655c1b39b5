"""The only adapter to TensorFlow's gradient registry, checked against 2.21.0.

In a graph, `tf.custom_gradient` registers its gradient under a new name until the
process ends. The gradient keeps the graph alive, with everything that it captured, so
the tables of a model would never be freed once a function was traced.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from tensorflow.python.framework import ops


def custom_gradient(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate like `tf.custom_gradient`, but free the gradient with its graph.

    Args:
        function: Function that takes tensors, and returns one or more tensors and the
            gradient function. It may only use variables through handles that are
            arguments.
    """
    decorated = tf.custom_gradient(function)

    @functools.wraps(function)
    def call(*arguments):
        with freed_with_graph():
            return decorated(*arguments)

    return call


@contextlib.contextmanager
def freed_with_graph() -> Iterator[None]:
    """Free gradients that `tf.custom_gradient` registers in the context with the graph.

    Keras' optimizers register gradients too, for sums over replicas.
    """
    if tf.executing_eagerly():
        yield
        return
    graph = tf.compat.v1.get_default_graph()
    num_before = len(graph.get_operations())
    yield
    for operation in graph.get_operations()[num_before:]:
        if operation.type != "IdentityN":
            continue
        try:
            name = operation.get_attr("_gradient_op_type").decode()
        except ValueError:  # an ordinary operation
            continue
        _give_to_graph(name, graph)


def _give_to_graph(name: str, graph: tf.Graph) -> None:
    """Move a gradient from the registry, which keeps a weak reference, to the graph."""
    entry = registered().get(name)
    if entry is None or isinstance(entry["type"], _Reference):
        return
    graph.add_to_collection("tf_dlrm_gradients", entry["type"])
    entry["type"] = _Reference(entry["type"])
    weakref.finalize(graph, registered().pop, name, None).atexit = False


class _Reference:
    """A weak reference to a gradient function."""

    def __init__(self, gradient: Callable[..., Any]) -> None:
        self._gradient: Callable[[], Any] = weakref.ref(gradient)

    def __call__(self, operation: tf.Operation, *upstream: tf.Tensor) -> Any:
        return self._gradient()(operation, *upstream)


def registered() -> dict:
    """Return the registry, a dict of names to `{"type": gradient function, ...}`."""
    return ops.gradient_registry._registry
