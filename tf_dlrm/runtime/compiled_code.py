"""The memory of XLA's compiled code: how much a process has, and giving it back.

TensorFlow keeps whatever XLA compiled until the process ends: a dozen memory mappings
for each shape of a kernel. Linux allows a process 65,530 of them (`vm.max_map_count`)
and one that reaches the limit crashes, as one would that trains hundreds of models. So
the code of models that no longer exist is given back before more is compiled, and near
the limit nothing more is compiled.

TensorFlow has no call for that. It holds the code of a device in one of the device's
resources, which `release` destroys by name and type, as one destroys a variable. What
is still in use is compiled again at its next call. Checked against TensorFlow 2.21.
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
    """A count of the kernels that this process compiled, and those that are dead.

    Attributes:
        is_full: Whether the process is so near its limit of memory mappings that
            nothing more may be compiled.
    """

    is_full = False
    _kernels_per_check = 64  # some 1,700 mappings, and a check takes up to 50 ms
    _dead_kernels = 64  # as many; fewer are not worth compiling others again

    def __init__(self) -> None:
        self._num_compiled = self._num_dead = self._num_unchecked = 0
        self._is_crowded = False

    def add(self, owner: object) -> None:
        """Count a kernel that is about to be compiled, and dies with `owner`."""
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
            gc.collect()  # models are full of cycles
        self.is_full = used > 0.85 * allowed
        if self.is_full:
            warnings.warn(
                f"This process has {used:,} of the {allowed:,} memory mappings that "
                "Linux allows it (vm.max_map_count), most of them of code that XLA "
                "compiled. What is traced from now on runs without XLA: the same "
                "results, more slowly. Delete models that you no longer need, start "
                "a new process, or raise the limit.",
                RuntimeWarning,
                stacklevel=2,
            )

    def release_dead(self) -> None:
        """Give the code of dead kernels back, once there is enough of it.

        Nothing is done while a graph is traced or run, by this thread or another.
        """
        num_live = self._num_compiled - self._num_dead
        enough = 1 if self._is_crowded else max(self._dead_kernels, num_live)
        if self._num_dead >= enough and _is_idle() and release():
            self._num_compiled, self._num_dead = num_live, 0
            self._check()


def memory_mappings() -> tuple[int, float]:
    """Return how many memory mappings this process has, and how many it may have."""
    try:
        allowed = int(Path("/proc/sys/vm/max_map_count").read_text())
        with open("/proc/self/maps", "rb") as mappings:
            return sum(1 for _ in mappings), allowed
    except OSError:  # not Linux
        return 0, float("inf")


def _is_idle() -> bool:
    """Return whether no graph is traced or run, as far as Python's stacks show."""
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
    """Free all code that XLA compiled for the CPUs of this process.

    Functions that are called again are compiled again. No such code may be running, in
    any thread.

    Returns:
        Whether there was any.
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
        name_of_device = tf.constant(0).device
        tensor.resource_handle_val.add(
            device=name_of_device,
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
    """TensorFlow's 64-bit hash, which also numbers the types of resources.

    `to_hash_bucket` gives it modulo a number of buckets: two of them tell it.
    """
    first, second = (1 << 63) - 1, (1 << 63) - 25
    by_first, by_second = (
        int(tf.strings.to_hash_bucket(text, buckets)) for buckets in (first, second)
    )
    candidates = (by_first + i * first for i in range(3))
    return next(h for h in candidates if h < 1 << 64 and h % second == by_second)
