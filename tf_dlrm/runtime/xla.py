"""Small parts of a step as XLA kernels, beside TensorFlow's own operations.

XLA wins where rows are gathered, summed and scattered: its loops are in place, fused
and several times faster than TensorFlow's kernels on a CPU. It loses on matrix
products, which oneDNN does better. So only these parts are compiled, and the MLPs are
not. `jit_compile=False` in `compile` turns all of it off, as `disabled()` does.

Whoever has one way of computing with XLA and another without asks `enabled()` once per
call and tells the kernels: the answer may change from one moment to the next, since
`compiled_code` stops compiling near the limit of memory mappings.
"""

import bisect
import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tf_dlrm.runtime import accelerators
from tf_dlrm.runtime.compiled_code import CompiledCode

_state = threading.local()


def enabled() -> bool:
    """Return whether kernels are compiled: on CPUs, outside of `disabled()`.

    Accelerators have fast kernels of their own for what is compiled here.
    """
    return is_enabled_on_cpus() and can_compile()


def is_enabled_on_cpus() -> bool:
    """Return whether this thread may use XLA and all devices are CPUs."""
    return not (is_disabled() or accelerators.are_visible())


def is_disabled() -> bool:
    """Return whether this thread is inside of `disabled()`."""
    return bool(getattr(_state, "disabled", 0))


def can_compile() -> bool:
    """Return whether the process can compile kernels now.

    It cannot near the limit of memory mappings. And
    `tf.config.run_functions_eagerly(True)` would run kernels line by line, which lean
    on XLA's scatters.
    """
    return not (tf.config.functions_run_eagerly() or code.is_full)


code = CompiledCode()


@contextlib.contextmanager
def disabled(really: bool | None = True) -> Iterator[None]:
    """Use TensorFlow's operations only in what is made, traced or run inside.

    Args:
        really: With `False` nothing changes; `None` enables XLA inside of a
            `disabled()` around it.
    """
    before = getattr(_state, "disabled", 0)
    _state.disabled = 0 if really is None else before + int(really)
    try:
        yield
    finally:
        _state.disabled = before


def settings() -> contextlib.AbstractContextManager[None]:
    """Return this thread's settings, as a context for another thread to enter."""
    names = ("disabled", "serving")
    captured = [getattr(_state, name, 0) for name in names]

    @contextlib.contextmanager
    def hold():
        before = [getattr(_state, name, 0) for name in names]
        _state.disabled, _state.serving = captured
        try:
            yield
        finally:
            _state.disabled, _state.serving = before

    return hold()


@contextlib.contextmanager
def for_servers() -> Iterator[None]:
    """Trace for servers inside: without XLA and without gradients."""
    _state.serving = getattr(_state, "serving", 0) + 1
    try:
        with disabled():
            yield
    finally:
        _state.serving -= 1


def is_for_servers() -> bool:
    """Return whether a graph is traced inside of `for_servers()`, without gradients."""
    return bool(getattr(_state, "serving", 0))


class Kernel:
    """A function of tensors, compiled by XLA where that is enabled.

    Compiled once for each combination of input shapes: give it shapes rounded up by
    `capacity` where they vary. Make one for each object whose variables it uses; a
    kernel at module level would die with the variables that it saw first.

    Args:
        function: Takes and returns tensors (`None` where one is absent).
        name: Scope of its operations, as profiles show it.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        code.release_dead()  # before there is more of it
        self._function, self._name = function, name

        @functools.wraps(function)  # TensorFlow counts retracing by the function
        def traced(*arguments, **defaults):
            code.add(self)
            return function(*arguments, **defaults)

        self._compiled = tf.function(
            traced, jit_compile=True, autograph=False, reduce_retracing=True
        )

    def __call__(self, *arguments: Any, compiled: bool | None = None) -> Any:
        """Call the function.

        Args:
            *arguments: Its arguments.
            compiled: Whether XLA compiles it; the caller's answer from `enabled()`
                where it has prepared the arguments for one way or the other. `None`
                asks now.
        """
        with tf.name_scope(self._name):
            if enabled() if compiled is None else compiled:
                return self._compiled(*arguments)
            return self._function(*arguments)


def _classes() -> list[int]:
    """8, 16, ..., 64, and from there on eight sizes to each doubling, up to 2^31."""
    sizes = list(range(8, 65, 8))
    while sizes[-1] < 1 << 30:
        step = sizes[-1] // 8
        sizes += [sizes[-1] + step * i for i in range(1, 9)]
    return sizes


_CLASSES = _classes()


def capacity(size: int | tf.Tensor) -> Any:
    """Round a number of rows up to one of few sizes, at most an eighth more.

    Powers of two, and their multiples by up to 15, come out as they are from 8 up.

    Args:
        size: int, or int32 scalar tensor.

    Returns:
        int or int32 scalar tensor.
    """
    if isinstance(size, int):
        return _CLASSES[bisect.bisect_left(_CLASSES, size)]
    static = tf.get_static_value(size)
    if static is not None:
        return capacity(int(static))
    classes = tf.constant(_CLASSES, tf.int32)
    return tf.gather(classes, tf.searchsorted(classes, size[None])[0])


def pad_rows(x: tf.Tensor, value: float = 0) -> tf.Tensor:
    """Pad the first dimension of `x` up to `capacity`, with `value`."""
    num_rows = x.shape[0]
    if num_rows is not None:
        missing = capacity(num_rows) - num_rows
        if not missing:
            return x
    else:
        num_rows = tf.shape(x)[0]
        missing = capacity(num_rows) - num_rows
    paddings = [[0, missing]] + [[0, 0]] * (x.shape.rank - 1)
    return tf.pad(x, paddings, constant_values=tf.cast(value, x.dtype))
