"""Replay of recorded requests with TensorFlow's C library, as a server runs models.

Run `python c_library.py SAVED_MODEL [LIBRARY_FOLDER]` in a separate process; it prints
one line of JSON. This file imports neither TensorFlow nor this package.
"""

import base64
import ctypes
import importlib.util
import json
import os
import pathlib
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Signature = tuple[dict[str, str], dict[str, str]]  # inputs, outputs
RECORDED = "assets.extra/tf_dlrm_requests.json"
_DTYPES = {"float32": 1, "uint8": 4, "int64": 9, "string": 7}
_STRING_BYTES = 24  # size of a TF_TString


class Request(NamedTuple):
    """A request to a signature, and the model's answer.

    Attributes:
        signature: Name of the signature.
        inputs: NumPy arrays by name; strings have dtype object.
        probabilities: The model's answer, float32 `(B, 1)`.
        margins: Further difference from the answer that is allowed, `(B, 1)`, where a
            correction of probabilities magnifies rounding errors; `None`: 0.
    """

    signature: str
    inputs: dict[str, np.ndarray]
    probabilities: np.ndarray
    margins: np.ndarray | None = None

    def compare(self, answer: np.ndarray) -> tuple[float, float]:
        """Return the largest difference of an answer, without and with margins."""
        difference = np.abs(answer - self.probabilities)
        excess = difference - (0.0 if self.margins is None else self.margins)
        return float(difference.max(initial=0.0)), float(excess.max(initial=0.0))


def read_recorded(folder: str | os.PathLike[str]) -> list[Request]:
    """Read the requests and answers that are recorded in an export.

    Args:
        folder: Directory of the exported version.

    Raises:
        ValueError: If the export has no recorded requests, or they are damaged.
    """
    path = pathlib.Path(folder) / RECORDED
    if not path.is_file():
        raise ValueError(f"{folder} has no recorded requests ({RECORDED}).")
    try:
        return [
            Request(
                entry["signature"],
                {name: _from_json(value) for name, value in entry["inputs"].items()},
                _from_json(entry["outputs"]["probabilities"]),
                _from_json(entry["margins"]) if "margins" in entry else None,
            )
            for entry in json.loads(path.read_text(encoding="utf-8"))
        ]
    except (KeyError, TypeError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}") from None


def _from_json(content: dict[str, Any]) -> np.ndarray:
    values, shape = content["values"], content["shape"]
    if content["dtype"] == "string":
        values = [base64.b64decode(value) for value in values]
        return np.array(values, object).reshape(shape)
    return np.array(values, content["dtype"]).reshape(shape)


class SavedModel:
    """A SavedModel in a session of the C library.

    Args:
        folder: Directory of the exported version.
        library_folder: Folder of `libtensorflow_cc.so.2`. Default: that of the
            installed TensorFlow.

    Attributes:
        signatures: `{name: (inputs, outputs)}`, where inputs and outputs are dicts
            `{name: name of the tensor}`.

    Raises:
        ValueError: If the library is missing, or cannot load the model.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        library_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self._library = _load_library(library_folder)
        self._status = self._call("NewStatus")
        self._graph = self._call("NewGraph")
        options = self._call("NewSessionOptions")
        meta_graph = self._library.TF_NewBuffer()
        tags = (ctypes.c_char_p * 1)(b"serve")
        self._session = self._library.TF_LoadSessionFromSavedModel(
            options, None, str(folder).encode(), tags, 1, self._graph, meta_graph,
            self._status,
        )  # fmt: skip
        self._check(f"{folder} cannot be loaded")
        buffer = meta_graph.contents
        self.signatures = _read_signatures(ctypes.string_at(buffer.data, buffer.length))

    def run(
        self,
        signature: str,
        inputs: dict[str, np.ndarray],
        output: str = "probabilities",
    ) -> np.ndarray:
        """Run a signature.

        Args:
            signature: Name of the signature.
            inputs: Arrays of dtype float32, int64, uint8 or object, by name.
            output: Name of the output to return, float32 or int64.

        Raises:
            ValueError: If the library refuses the request; with the library's message.
        """
        if signature not in self.signatures:
            raise ValueError(f"There is no signature '{signature}'.")
        takes, gives = self.signatures[signature]
        names = list(inputs)
        places = (_Output * len(names))(*[self._place(takes[name]) for name in names])
        tensors = [self._to_tensor(inputs[name]) for name in names]
        values = (ctypes.c_void_p * len(names))(*tensors)
        fetched = (_Output * 1)(self._place(gives[output]))
        results = (ctypes.c_void_p * 1)()
        self._library.TF_SessionRun(
            self._session, None, places, values, len(names), fetched, results, 1,
            None, 0, None, self._status,
        )  # fmt: skip
        for tensor in tensors:
            self._library.TF_DeleteTensor(tensor)
        self._check(f"{signature} failed")
        return self._from_tensor(results[0])

    def _call(self, name: str) -> Any:
        return getattr(self._library, f"TF_{name}")()

    def _check(self, problem: str) -> None:
        if self._library.TF_GetCode(self._status):
            message = self._library.TF_Message(self._status).decode(errors="replace")
            raise ValueError(f"{problem}: {message}")

    def _place(self, tensor: str) -> "_Output":
        name, _, index = tensor.rpartition(":")
        operation = self._library.TF_GraphOperationByName(self._graph, name.encode())
        if not operation:
            raise ValueError(f"The graph has no operation {name}.")
        return _Output(operation, int(index))

    def _to_tensor(self, array: np.ndarray) -> Any:
        is_text = array.dtype == object
        array = array if is_text else np.asarray(array, order="C")
        dims = (ctypes.c_int64 * array.ndim)(*array.shape)
        num_bytes = array.size * _STRING_BYTES if is_text else array.nbytes
        kind = _DTYPES["string" if is_text else array.dtype.name]
        tensor = self._library.TF_AllocateTensor(kind, dims, array.ndim, num_bytes)
        data = self._library.TF_TensorData(tensor)
        if not is_text:
            ctypes.memmove(data, array.ctypes.data, num_bytes)
            return tensor
        for i, value in enumerate(array.reshape(-1)):
            place = ctypes.c_void_p(data + i * _STRING_BYTES)
            self._library.TF_StringInit(place)
            self._library.TF_StringCopy(place, value, len(value))
        return tensor

    def _from_tensor(self, tensor: Any) -> np.ndarray:
        num_dims = self._library.TF_NumDims(tensor)
        shape = [self._library.TF_Dim(tensor, i) for i in range(num_dims)]
        data = self._library.TF_TensorData(tensor)
        kind = self._library.TF_TensorType(tensor)
        dtype = np.dtype(np.float32 if kind == _DTYPES["float32"] else np.int64)
        num_bytes = int(np.prod(shape)) * dtype.itemsize
        values = np.frombuffer(ctypes.string_at(data, num_bytes), dtype)
        self._library.TF_DeleteTensor(tensor)
        return values.reshape(shape)


class _Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class _Buffer(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("deallocator", ctypes.c_void_p),
    ]


def _load_library(folder: str | os.PathLike[str] | None) -> ctypes.CDLL:
    if folder is None:
        spec = importlib.util.find_spec("tensorflow")  # does not import it
        if spec is None or not spec.submodule_search_locations:
            raise ValueError("TensorFlow is not installed.")
        folder = spec.submodule_search_locations[0]
    folder = pathlib.Path(folder)
    try:
        ctypes.CDLL(str(folder / "libtensorflow_framework.so.2"))
        library = ctypes.CDLL(str(folder / "libtensorflow_cc.so.2"))
    except OSError as error:
        raise ValueError(
            f"TensorFlow's C library cannot be loaded from {folder}: {error}"
        ) from None
    pointer, text, number = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
    types = {  # result, arguments
        "Version": (text, []),
        "NewStatus": (pointer, []),
        "NewGraph": (pointer, []),
        "NewSessionOptions": (pointer, []),
        "NewBuffer": (ctypes.POINTER(_Buffer), []),
        "GetCode": (number, [pointer]),
        "Message": (text, [pointer]),
        "LoadSessionFromSavedModel": (
            pointer,
            [pointer, pointer, text, ctypes.POINTER(text), number, pointer, pointer,
             pointer],
        ),
        "GraphOperationByName": (pointer, [pointer, text]),
        "AllocateTensor": (
            pointer,
            [number, pointer, number, ctypes.c_size_t],
        ),
        "TensorData": (pointer, [pointer]),
        "NumDims": (number, [pointer]),
        "TensorType": (number, [pointer]),
        "Dim": (ctypes.c_int64, [pointer, number]),
        "DeleteTensor": (None, [pointer]),
        "StringInit": (None, [pointer]),
        "StringCopy": (None, [pointer, text, ctypes.c_size_t]),
        "SessionRun": (
            None,
            [pointer, pointer, pointer, pointer, number, pointer, pointer, number,
             pointer, number, pointer, pointer],
        ),
    }  # fmt: skip
    for name, (result, arguments) in types.items():
        function = getattr(library, f"TF_{name}")
        function.restype, function.argtypes = result, arguments
    return library


# The subset of protocol buffers that is needed to read a MetaGraphDef's signatures.


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a message as `(number, value)`, with values int or bytes.

    Fields of fixed size are skipped.
    """
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(message):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
        elif wire == 2:
            length = varint()
            yield number, message[position : position + length]
            position += length
        else:
            position += {1: 8, 5: 4}[wire]


def _map(message: bytes, number: int) -> dict[str, bytes]:
    """Return a field of type map<string, message> as a dict of serialized messages."""
    entries = [dict(_fields(value)) for n, value in _fields(message) if n == number]
    return {entry[1].decode(): entry.get(2, b"") for entry in entries}


def _read_signatures(meta_graph: bytes) -> dict[str, Signature]:
    signatures = {}
    for name, signature in _map(meta_graph, 5).items():
        parts = [
            {key: dict(_fields(v)).get(1, b"").decode() for key, v in _map(signature, n)
             .items()}
            for n in (1, 2)
        ]  # fmt: skip
        if parts[1]:
            signatures[name] = parts[0], parts[1]
    return signatures


def verify(
    folder: str | os.PathLike[str],
    library_folder: str | os.PathLike[str] | None = None,
    tolerance: float = 1e-6,
) -> dict[str, Any]:
    """Run the recorded requests of an export and compare the answers.

    Args:
        folder: Directory of the exported version.
        library_folder: Folder of `libtensorflow_cc.so.2`. Default: that of the
            installed TensorFlow.
        tolerance: Largest allowed difference of a probability, beyond its margin.

    Returns:
        `library` (its version), `seconds_to_load`, and `largest_difference` of a
        probability by signature.

    Raises:
        ValueError: If a request fails, an answer differs by more than `tolerance`, or a
            signature has no recorded request.
    """
    requests = read_recorded(folder)
    start = time.perf_counter()
    model = SavedModel(folder, library_folder)
    seconds = time.perf_counter() - start
    predicting = {
        n for n, (_, out) in model.signatures.items() if "probabilities" in out
    }
    without = predicting - {request.signature for request in requests}
    if without:
        raise ValueError(f"No request is recorded for {', '.join(sorted(without))}.")
    differences = {}
    for request in requests:
        answer = model.run(request.signature, request.inputs)
        if answer.shape != request.probabilities.shape:
            raise ValueError(
                f"{request.signature} returns shape {answer.shape}, not "
                f"{request.probabilities.shape}."
            )
        difference, excess = request.compare(answer)
        if not excess <= tolerance:
            raise ValueError(
                f"{request.signature} differs from the recorded answers by "
                f"{difference:.2g} (allowed: {tolerance:.2g})."
            )
        differences[request.signature] = difference
    return {
        "library": model._library.TF_Version().decode(),
        "seconds_to_load": round(seconds, 3),
        "largest_difference": differences,
    }


def main(arguments: Sequence[str]) -> int:
    """Verify the export in the directory `arguments[0]`; return an exit code."""
    try:
        report = verify(arguments[0], arguments[1] if arguments[1:] else None)
    except ValueError as error:
        report = {"failed": str(error)}
    print(json.dumps(report), flush=True)
    return 1 if "failed" in report else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
