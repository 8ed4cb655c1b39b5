"""XLA kernels for small parts of a step.

XLA is best at gathering, summing and scattering rows: on a CPU its loops are in place,
fused and several times faster than TensorFlow's kernels. It is worse at matrix
products, for which oneDNN is faster. Therefore only these small parts are compiled, not
the MLPs. `compile(jit_compile=False)` or `disabled()` turns all of this off.

Code that computes in different ways with and without XLA must call `enabled()` once per
call and pass the answer to its kernels. The answer may change at any time, because
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

    Accelerators have fast kernels of their own for these parts.
    """
    return is_enabled_on_cpus() and can_compile()


def is_enabled_on_cpus() -> bool:
    """Return whether this thread may use XLA and all devices are CPUs."""
    return not (is_disabled() or accelerators.are_visible())


def is_disabled() -> bool:
    """Return whether this thread is in a context of `disabled()`."""
    return bool(getattr(_state, "disabled", 0))


def can_compile() -> bool:
    """Return whether the process can compile kernels now.

    It cannot near the limit of memory mappings, nor with
    `tf.config.run_functions_eagerly(True)`: kernels would then run eagerly, but they
    depend on XLA's scatters.
    """
    return not (tf.config.functions_run_eagerly() or code.is_full)


code = CompiledCode()


@contextlib.contextmanager
def disabled(really: bool | None = True) -> Iterator[None]:
    """Return a context in which XLA is not used.

    It applies to objects that are created and functions that are traced or run in it.

    Args:
        really: If `False`, the context changes nothing. If `None`, it enables XLA in
            spite of an outer `disabled()`.
    """
    before = getattr(_state, "disabled", 0)
    _state.disabled = 0 if really is None else before + int(really)
    try:
        yield
    finally:
        _state.disabled = before


def settings() -> contextlib.AbstractContextManager[None]:
    """Return a context that applies this thread's settings to another thread."""
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
    """Return a context that traces graphs for servers, without XLA and gradients."""
    _state.serving = getattr(_state, "serving", 0) + 1
    try:
        with disabled():
            yield
    finally:
        _state.serving -= 1


def is_for_servers() -> bool:
    """Return whether this thread is in a context of `for_servers()`."""
    return bool(getattr(_state, "serving", 0))


class Kernel:
    """A function of tensors that XLA compiles if it is enabled.

    It is compiled for each combination of input shapes, so round varying shapes up with
    `capacity`. Create a kernel for each object whose variables it uses: a kernel at
    module level would stop working when the first variables it has used are deleted.

    Args:
        function: Function that takes and returns tensors (or `None`).
        name: Name scope of its operations, which profiles show.
    """

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        code.release_dead()  # before more code is compiled
        self._function, self._name = function, name

        @functools.wraps(function)  # TensorFlow counts retracing per function
        def traced(*arguments, **defaults):
            code.add(self)
            return function(*arguments, **defaults)

        self._compiled = tf.function(
            traced, jit_compile=True, autograph=False, reduce_retracing=True
        )

    def __call__(self, *arguments: Any, compiled: bool | None = None) -> Any:
        """Call the function.

        Args:
            *arguments: Arguments of the function.
            compiled: Whether to compile the function: the result of `enabled()` for
                which the caller prepared the arguments. Default: `enabled()` now.
        """
        with tf.name_scope(self._name):
            if enabled() if compiled is None else compiled:
                return self._compiled(*arguments)
            return self._function(*arguments)


def _classes() -> list[int]:
    """Return the sizes 8, 16, ..., 64, and then eight sizes per doubling up to 2^31."""
    sizes = list(range(8, 65, 8))
    while sizes[-1] < 1 << 30:
        step = sizes[-1] // 8
        sizes += [sizes[-1] + step * i for i in range(1, 9)]
    return sizes


SIZE_CLASSES = _classes()


def capacity(size: int | tf.Tensor) -> Any:
    """Round a number of rows up to one of a few sizes, by at most an eighth.

    From 8 on, powers of two and their multiples by up to 15 remain unchanged.

    Args:
        size: Number of rows, int or int32 scalar tensor.

    Returns:
        The rounded size, int or int32 scalar tensor.
    """
    if isinstance(size, int):
        return SIZE_CLASSES[bisect.bisect_left(SIZE_CLASSES, size)]
    static = tf.get_static_value(size)
    if static is not None:
        return capacity(int(static))
    classes = tf.constant(SIZE_CLASSES, tf.int32)
    return tf.gather(classes, tf.searchsorted(classes, size[None])[0])


def pad_rows(x: tf.Tensor, value: float = 0) -> tf.Tensor:
    """Pad the first dimension of `x` with `value`, up to its `capacity`."""
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
