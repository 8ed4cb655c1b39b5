"""Reader of `torch.save` files that needs no torch and runs none of their code.

The zip format, which torch has used since 1.6, contains a pickle and one raw file for
each storage. A pickle names functions to call. This module implements the few functions
that create tensors and plain containers, and refuses all other names. Storages are
memory-mapped, so a tensor takes memory only when it is read.
"""

import collections
import io
import math
import os
import pickle
import reprlib
import struct
import zipfile
from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
import tensorflow as tf

from tf_dlrm.runtime.errors import UserError

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": tf.bfloat16.as_numpy_dtype,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# Other objects in training checkpoints (losses as NumPy scalars, devices), which are
# replaced by placeholders.
_SKIPPED = {
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "_codecs.encode",
    "torch.device",
    "torch.Size",
}
_MOST_IN_A_TUPLE, _DEEPEST_TUPLE = 100_000, 50
_LOCAL_HEADER = struct.Struct("<26x2H")  # header of a zip entry: two field lengths


def read_torch_file(path: str | os.PathLike) -> Any:
    """Read a file that `torch.save` wrote.

    Args:
        path: A file in torch's zip format.

    Returns:
        The saved object. Tensors are read-only NumPy arrays that are memory-mapped from
        the file. Objects that are not needed (NumPy scalars, devices) are placeholders.

    Raises:
        ValueError: If the file has another format, is damaged, or contains anything
            but tensors and plain containers. No code from the file is run.
    """
    path = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Unpickler.of(path, archive).load()
    except FileNotFoundError:
        raise
    except _Refused as error:
        raise UserError(f"{path} cannot be imported: {error}") from None
    except zipfile.BadZipFile as error:
        raise UserError(_not_a_zip(path)) from error
    except Exception as error:  # a hostile pickle can raise anything
        raise UserError(
            f"{path} is damaged or not a file of torch.save: {_describe(error)}"
        ) from None  # the error may contain objects that cannot be printed


class _Short(reprlib.Repr):
    """`repr` of any object with bounded length and time.

    A few bytes of a pickle can create a structure of gigabytes or of depth 100,000.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 100, 100

    def repr_instance(self, x: Any, level: int) -> str:
        return f"<{type(x).__name__}>"

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 1 << 128 else "<int of many digits>"


def short(value: Any) -> str:
    """Return a `repr` of bounded length of any object."""
    return _Short().repr(value)


def _describe(error: BaseException) -> str:
    text = error.args[0] if error.args and isinstance(error.args[0], str) else ""
    return f"{type(error).__name__}: {text[:200]}".removesuffix(": ")


def _not_a_zip(path: str) -> str:
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return f"{path} is a truncated zip file. Copy it again."
    return (
        f"{path} is not in the zip format of torch.save. To convert a file of torch "
        "before 1.6, run torch.save(torch.load(old, map_location='cpu', "
        "weights_only=True), new)"
    )


class _Refused(Exception):
    """The file contains something that is refused."""


class _StorageType(NamedTuple):
    dtype: Any


class _Storage(NamedTuple):
    """A whole storage, which only the reader can create: files cannot name it."""

    values: np.ndarray


class _Skipped:
    """Placeholder for an object that is not created, and for its constructor."""

    __slots__ = ()

    def __call__(self, *args):
        return self

    def __setstate__(self, state):
        pass

    def __repr__(self):
        return "<not a tensor>"


class _Rebuild:
    """Replacement for torch's function that creates a tensor from a storage."""

    __slots__ = ()

    def __call__(self, storage, offset, size, stride, *_):
        is_valid = isinstance(size, tuple | list) and isinstance(stride, tuple | list)
        counts = (offset, *size, *stride) if is_valid else ()
        is_valid &= all(type(count) is int and count >= 0 for count in counts)
        if not is_valid or len(size) != len(stride):
            sizes = f"size {short(size)} and stride {short(stride)}"
            raise _Refused(f"it has a tensor with {sizes}")
        if not isinstance(storage, _Storage):
            raise _Refused("it has a tensor without a storage")
        (values,) = storage
        if 0 in size:
            return np.zeros(size, values.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        # With a stride of 0, a tensor could have more values than its storage.
        if last >= len(values) or math.prod(size) > len(values):
            raise _Refused(
                f"a tensor of size {short(size)}, stride {short(stride)} and offset "
                f"{short(offset)} exceeds its storage of {len(values)} values"
            )
        strides = [step * values.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(
            values[offset:], size, strides, writeable=False
        )


class _RebuildParameter:
    """Replacement for torch's function that creates a parameter from a tensor."""

    __slots__ = ()

    def __call__(self, data, *_):
        return data


class _Unpickler(pickle._Unpickler):
    """Unpickler that knows only the names that a file of tensors needs.

    It is based on the Python implementation, not on the one in C, to check each tuple
    when it is created: hashing or printing visits a shared tuple every time it is used,
    and a deeply nested one overflows the C stack.
    """

    dispatch = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # of the base class
    _path: str
    _archive: zipfile.ZipFile
    _folder: str
    _storages: dict[str, _Storage]
    _tuples: dict[int, tuple[Any, int, int]]  # tuple, size and depth by id

    @classmethod
    def of(cls, path: str, archive: zipfile.ZipFile) -> Self:
        pickles = [n for n in archive.namelist() if n.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise _Refused("it is a zip file without the data.pkl of torch.save")
        folder = pickles[0].split("/")[0]
        order = f"{folder}/byteorder"
        if order in archive.namelist():
            _check_stored(archive.getinfo(order))
        if order in archive.namelist() and archive.read(order) != b"little":
            raise _Refused("it was written on a machine with another byte order")
        _check_stored(archive.getinfo(pickles[0]))
        unpickler = cls(io.BytesIO(archive.read(pickles[0])))
        unpickler._path, unpickler._archive = path, archive
        unpickler._folder, unpickler._storages = folder, {}
        unpickler._tuples = {}
        return unpickler

    def _check_tuple(self) -> None:
        new_tuple = self.stack[-1]
        parts = [self._tuples[id(x)] for x in new_tuple if id(x) in self._tuples]
        size = len(new_tuple) + sum(size for _, size, _ in parts)
        depth = 1 + max((depth for *_, depth in parts), default=0)
        if size > _MOST_IN_A_TUPLE or depth > _DEEPEST_TUPLE:
            raise _Refused("it contains nested tuples that are too large")
        self._tuples[id(new_tuple)] = new_tuple, size, depth

    def find_class(self, module: str, name: str) -> Any:
        full_name = f"{module}.{name}"
        if full_name == "collections.OrderedDict":
            return collections.OrderedDict
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if full_name == "torch._utils._rebuild_tensor_v2":
            return _Rebuild()
        if full_name == "torch._utils._rebuild_parameter":
            return _RebuildParameter()
        if full_name in _SKIPPED:
            return _Skipped()
        raise _Refused(
            f"it contains {full_name[:200]}, but only tensors and plain containers are "
            "allowed. Save only the state_dict: torch.save(model.state_dict(), path)"
        )

    def persistent_load(self, pid: Any) -> "_Storage":
        kind, storage_type, key, _, num_values = pid
        is_known = isinstance(key, str) and isinstance(storage_type, _StorageType)
        if not is_known or not isinstance(kind, str) or kind != "storage":
            raise _Refused(f"it contains an unknown kind of storage: {short(kind)}")
        if type(num_values) is not int:
            raise _Refused(f"it has a storage of {short(num_values)} values")
        if key not in self._storages:
            values = self._map(storage_type.dtype, key, num_values)
            self._storages[key] = _Storage(values)
        storage = self._storages[key]
        if storage.values.dtype != storage_type.dtype:
            raise _Refused(f"storage {short(key)} is used with two dtypes")
        return storage

    def _map(self, dtype: Any, key: str, num_values: int) -> np.ndarray:
        """Return a storage as a memory map of its bytes in the zip file."""
        entry = self._archive.getinfo(f"{self._folder}/data/{key}")
        _check_stored(entry)
        if not 0 <= num_values * np.dtype(dtype).itemsize <= entry.file_size:
            raise _Refused(
                f"storage {short(key)} should have {short(num_values)} values of "
                f"{np.dtype(dtype)}, but has {entry.file_size} bytes"
            )
        if num_values == 0:
            return np.zeros(0, dtype)
        with open(self._path, "rb") as file:
            file.seek(entry.header_offset)
            lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        first = entry.header_offset + _LOCAL_HEADER.size + sum(lengths)
        return np.memmap(self._path, dtype, "r", first, (num_values,))


def _checking(load: Callable[[Any], None]) -> Callable[[Any], None]:
    def load_and_check(self: Any) -> None:
        load(self)
        self._check_tuple()

    return load_and_check


def _build(self: Any) -> None:
    """Set attributes of an object, which only a `state_dict` needs."""
    if not isinstance(self.stack[-2], collections.OrderedDict | _Skipped):
        raise _Refused(f"it sets attributes of {short(self.stack[-2])}")
    pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]


_Unpickler.dispatch[pickle.BUILD[0]] = _build
for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _Unpickler.dispatch[_code[0]] = _checking(_Unpickler.dispatch[_code[0]])


def _check_stored(entry: zipfile.ZipInfo) -> None:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise _Refused(f"{entry.filename} is compressed, which torch.save never does")
