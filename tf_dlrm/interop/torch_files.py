"""Files of `torch.save`, read without torch and without running what is in them.

The zip form, torch's since 1.6, is a pickle beside one raw file for each storage. A
pickle names the functions that it wants called. The few names that stand for tensors
and plain containers are answered here by our own code; every other name is refused.
Storages are memory maps: a tensor costs memory when it is read, and only then.
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
# In training checkpoints beside the weights (losses as NumPy scalars, devices): named
# and counted as read, never made.
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
_LOCAL_HEADER = struct.Struct("<26x2H")  # of a zip entry: the lengths of two fields


def read_torch_file(path: str | os.PathLike) -> Any:
    """Read a file of `torch.save`.

    Args:
        path: A file in torch's zip form.

    Returns:
        The saved object. Tensors are read-only NumPy arrays that map the file;
        objects of no use here (NumPy scalars, devices) are placeholders.

    Raises:
        ValueError: If it is not such a file, is damaged, or names anything but
            tensors and plain containers. Nothing that it names was run.
    """
    path = os.fspath(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return _Unpickler.of(path, archive).load()
    except FileNotFoundError:
        raise
    except _Refused as error:
        raise UserError(f"{path} is not read: {error}") from None
    except zipfile.BadZipFile as error:
        raise UserError(_not_a_zip(path)) from error
    except Exception as error:  # a hostile pickle can raise anything
        raise UserError(
            f"{path} is damaged, or no file of torch.save: {_describe(error)}"
        ) from None  # it may hold what cannot be printed


class _Short(reprlib.Repr):
    """Text of whatever a file holds, of bounded length and in bounded time.

    A few bytes can stand for a structure of gigabytes, or one that is 100,000 deep.
    """

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 2, 100, 100

    def repr_instance(self, x: Any, level: int) -> str:
        return f"<{type(x).__name__}>"

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 1 << 128 else "<int of many digits>"


def short(value: Any) -> str:
    """Return a `repr` of bounded length, for values that may be anything."""
    return _Short().repr(value)


def _describe(error: BaseException) -> str:
    text = error.args[0] if error.args and isinstance(error.args[0], str) else ""
    return f"{type(error).__name__}: {text[:200]}".removesuffix(": ")


def _not_a_zip(path: str) -> str:
    with open(path, "rb") as file:
        if file.read(4) == b"PK\x03\x04":
            return f"{path} is damaged: a zip file without its end. Copy it again."
    return (
        f"{path} is not in the zip form of torch.save. A file of torch before 1.6 is "
        "brought into it with torch: torch.save(torch.load(old, map_location='cpu', "
        "weights_only=True), new)"
    )


class _Refused(Exception):
    """The file asks for something that is refused."""


class _StorageType(NamedTuple):
    dtype: Any


class _Storage(NamedTuple):
    """A whole storage. No name in a file stands for this: only the reader makes it."""

    values: np.ndarray


class _Skipped:
    """Stands for an object that is not made, and for what would make it."""

    __slots__ = ()

    def __call__(self, *args):
        return self

    def __setstate__(self, state):
        pass

    def __repr__(self):
        return "<not a tensor>"


class _Rebuild:
    """Answers torch's function that makes a tensor of a storage."""

    __slots__ = ()

    def __call__(self, storage, offset, size, stride, *_):
        is_whole = isinstance(size, tuple | list) and isinstance(stride, tuple | list)
        counts = (offset, *size, *stride) if is_whole else ()
        is_whole &= all(type(count) is int and count >= 0 for count in counts)
        if not is_whole or len(size) != len(stride):
            sizes = f"size {short(size)} and stride {short(stride)}"
            raise _Refused(f"a tensor of {sizes}")
        if not isinstance(storage, _Storage):
            raise _Refused("a tensor that is made of something other than a storage")
        (values,) = storage
        if 0 in size:
            return np.zeros(size, values.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride))
        # More values than the storage has would come of a stride of 0, which stands
        # for any number of them.
        if last >= len(values) or math.prod(size) > len(values):
            raise _Refused(
                f"a tensor of size {short(size)}, stride {short(stride)} and offset "
                f"{short(offset)} reaches beyond its storage of {len(values)} values"
            )
        strides = [step * values.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(
            values[offset:], size, strides, writeable=False
        )


class _RebuildParameter:
    """Answers torch's function that makes a parameter of a tensor."""

    __slots__ = ()

    def __call__(self, data, *_):
        return data


class _Unpickler(pickle._Unpickler):
    """Answers the names that a file of tensors needs, and no other.

    In Python, not in C, to look at each tuple as it is made: hashing and printing take
    a shared one as often as it is used, and a deep one on the stack of C.
    """

    dispatch = dict(pickle._Unpickler.dispatch)
    stack: list[Any]  # the base's
    _path: str
    _archive: zipfile.ZipFile
    _folder: str
    _storages: dict[str, _Storage]
    _tuples: dict[int, tuple[Any, int, int]]  # by id: itself, its size, its depth

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
            raise _Refused("it was written on a machine of the other byte order")
        _check_stored(archive.getinfo(pickles[0]))
        unpickler = cls(io.BytesIO(archive.read(pickles[0])))
        unpickler._path, unpickler._archive = path, archive
        unpickler._folder, unpickler._storages = folder, {}
        unpickler._tuples = {}
        return unpickler

    def _check_tuple(self) -> None:
        made = self.stack[-1]
        parts = [self._tuples[id(x)] for x in made if id(x) in self._tuples]
        size = len(made) + sum(size for _, size, _ in parts)
        depth = 1 + max((depth for *_, depth in parts), default=0)
        if size > _MOST_IN_A_TUPLE or depth > _DEEPEST_TUPLE:
            raise _Refused("it holds a tuple of tuples that is too large")
        self._tuples[id(made)] = made, size, depth

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
            f"it asks for {full_name[:200]}, and only tensors and plain containers are "
            "read. Save the state_dict by itself: torch.save(model.state_dict(), path)"
        )

    def persistent_load(self, pid: Any) -> "_Storage":
        kind, storage_type, key, _, num_values = pid
        known = isinstance(key, str) and isinstance(storage_type, _StorageType)
        if not known or not isinstance(kind, str) or kind != "storage":
            raise _Refused(f"it holds something other than storages: {short(kind)}")
        if type(num_values) is not int:
            raise _Refused(f"a storage of {short(num_values)} values")
        if key not in self._storages:
            values = self._map(storage_type.dtype, key, num_values)
            self._storages[key] = _Storage(values)
        storage = self._storages[key]
        if storage.values.dtype != storage_type.dtype:
            raise _Refused(f"storage {short(key)} is used with two dtypes")
        return storage

    def _map(self, dtype: Any, key: str, num_values: int) -> np.ndarray:
        """A storage as a memory map of its bytes in the zip file."""
        entry = self._archive.getinfo(f"{self._folder}/data/{key}")
        _check_stored(entry)
        if not 0 <= num_values * np.dtype(dtype).itemsize <= entry.file_size:
            raise _Refused(
                f"storage {short(key)} should hold {short(num_values)} values of "
                f"{np.dtype(dtype)} and has {entry.file_size} bytes"
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
    """Give an object attributes: `state_dict`s have some, nothing else needs any."""
    if not isinstance(self.stack[-2], collections.OrderedDict | _Skipped):
        raise _Refused(f"it gives attributes to {short(self.stack[-2])}")
    pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]


_Unpickler.dispatch[pickle.BUILD[0]] = _build
for _code in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3):
    _Unpickler.dispatch[_code[0]] = _checking(_Unpickler.dispatch[_code[0]])


def _check_stored(entry: zipfile.ZipInfo) -> None:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise _Refused(f"{entry.filename} is compressed, which torch.save never does")
