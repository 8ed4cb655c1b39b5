"""The memory of code that XLA compiled: measuring and releasing it.

TensorFlow keeps everything that XLA compiled until the process ends, which takes a
dozen memory mappings for each shape of a kernel. Linux allows a process 65,530 of them
(`vm.max_map_count`); a process that trains hundreds of models would reach the limit and
crash. Therefore, the code of models that no longer exist is released before more code
is compiled, and near the limit nothing more is compiled.

TensorFlow has no function for this. It stores the code of a device in one of the
device's resources, which `release` destroys by name and type, like a variable. Code
that is still in use is compiled again at its next call. Checked against TensorFlow
2.21.
"""

import gc
import sys
import threading
import types
import warnings
import weakref
from pathlib import Path

import tensorflow as tf

_CONTAINER, _NAME = "localhost", "xla_device_compiler"
# The C++ type of the resource, as the compiler spells it in symbols.
_TYPE = "N10tensorflow14DeviceCompilerIN3xla15LocalExecutableENS1_11LocalClientEEE"
_LIBRARIES = ("tensorflow", "keras", "tf_keras", "tf_dlrm")


class CompiledCode:
    """Numbers of kernels that this process has compiled, and of those that are unused.

    Attributes:
        is_full: Whether the process is so close to its limit of memory mappings that
            nothing more may be compiled.
    """

    is_full = False
    _kernels_per_check = 64  # about 1,700 mappings; a check takes up to 50 ms
    _dead_kernels = 64  # fewer are not worth compiling other kernels again

    def __init__(self) -> None:
        self._num_compiled = self._num_dead = self._num_unchecked = 0
        self._is_crowded = False

    def add(self, owner: object) -> None:
        """Count a kernel that will be compiled and is unused once `owner` dies."""
        self._num_compiled += 1
        weakref.finalize(owner, self._count_dead).atexit = False
        self._num_unchecked += 1
        if self._num_unchecked >= self._kernels_per_check and not self.is_full:
            self._check()

    def _count_dead(self) -> None:
        self._num_dead += 1

    def _check(self) -> None:
        self._num_unchecked = 0
        used, allowed = memory_mappings()
        self._is_crowded = used > 0.5 * allowed
        if self._is_crowded:
            gc.collect()  # models contain many reference cycles
        self.is_full = used > 0.85 * allowed
        if self.is_full:
            warnings.warn(
                f"This process uses {used:,} of the {allowed:,} memory mappings that "
                "Linux allows (vm.max_map_count), most of them for code that XLA "
                "compiled. Functions that are traced from now on run without XLA: "
                "results are the same, but slower. Delete models that you no longer "
                "need, start a new process, or raise the limit.",
                RuntimeWarning,
                stacklevel=2,
            )

    def release_dead(self) -> None:
        """Release the code of unused kernels, once there are enough of them.

        Nothing happens while any thread traces or runs a graph.
        """
        num_live = self._num_compiled - self._num_dead
        enough = 1 if self._is_crowded else max(self._dead_kernels, num_live)
        if self._num_dead >= enough and _is_idle() and release():
            self._num_compiled, self._num_dead = num_live, 0
            self._check()


def memory_mappings() -> tuple[int, float]:
    """Return the number of memory mappings of this process, and its limit."""
    try:
        allowed = int(Path("/proc/sys/vm/max_map_count").read_text())
        with open("/proc/self/maps", "rb") as mappings:
            return sum(1 for _ in mappings), allowed
    except OSError:  # not Linux
        return 0, float("inf")


def _is_idle() -> bool:
    """Return whether no thread traces or runs a graph, judging by Python's stacks."""
    if not tf.executing_eagerly():
        return False
    if not tf.config.experimental.get_synchronous_execution():
        return False
    own = threading.get_ident()
    return not any(
        _is_inside(frame, ("tensorflow",) if thread == own else _LIBRARIES)
        for thread, frame in sys._current_frames().items()
    )


def _is_inside(frame: types.FrameType | None, packages: tuple[str, ...]) -> bool:
    while frame is not None:
        if frame.f_globals.get("__name__", "").partition(".")[0] in packages:
            return True
        frame = frame.f_back
    return False


def release() -> bool:
    """Release all code that XLA compiled for the CPUs of this process.

    Functions are compiled again at their next call. No thread may run such code
    meanwhile.

    Returns:
        Whether there was any code to release.
    """
    released = [
        _destroy_resource(device.name) for device in tf.config.list_logical_devices()
    ]
    return any(released)


def _destroy_resource(device: str) -> bool:
    graph = tf.compat.v1.GraphDef()
    handle = graph.node.add(name="handle", op="Const")
    handle.attr["dtype"].type = tf.resource.as_datatype_enum
    tensor = handle.attr["value"].tensor
    tensor.dtype = tf.resource.as_datatype_enum
    with tf.device(device):
        full_name = tf.constant(0).device
        tensor.resource_handle_val.add(
            device=full_name,
            container=_CONTAINER,
            name=_NAME,
            hash_code=_hash64(_TYPE),
            maybe_type_name=_TYPE,
        )
        destroy = graph.node.add(name="destroy", op="DestroyResourceOp")
        destroy.input.append("handle")
        destroy.attr["ignore_lookup_error"].b = False
        try:
            tf.function(
                lambda: tf.graph_util.import_graph_def(graph, name=""), autograph=False
            )()
        except tf.errors.NotFoundError:  # nothing was compiled for this device
            return False
    return True


def _hash64(text: str) -> int:
    """Return TensorFlow's 64-bit hash, which also identifies the types of resources.

    `to_hash_bucket` returns the hash modulo a number of buckets; its values for two
    numbers determine the hash.
    """
    first, second = (1 << 63) - 1, (1 << 63) - 25
    by_first, by_second = (
        int(tf.strings.to_hash_bucket(text, buckets)) for buckets in (first, second)
    )
    candidates = (by_first + i * first for i in range(3))
    return next(h for h in candidates if h < 1 << 64 and h % second == by_second)
