"""The files of a base and its deltas: names, checksums, and what they contain.

Every JSON file ends with the SHA-256 of its own content, which is also its identity: a
delta names its parent by it, so deltas form a chain that cannot be reordered or mixed.
"""

import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from tf_dlrm.embedding.row_places import RowPlace
from tf_dlrm.runtime.errors import UserError

FORMAT = 1
BASE, MANIFEST, HEAD = "base.json", "manifest.json", "HEAD.json"
TABLES_FILE, DENSE_FILE = "tables.npz", "dense.npz"


class DeltaError(UserError):
    """A delta, base or `HEAD.json` that is refused. The model is unchanged.

    Args:
        kind: `"missing"`, `"repeated"`, `"reordered"`, `"truncated"`, `"damaged"`,
            `"foreign"` or `"future format"`.
        message: What is wrong, and what was expected.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


class Position(NamedTuple):
    """A state of a published model: a base, and the last delta that was applied to it.

    Attributes:
        base: Version of the base.
        sequence: Sequence number of the delta; 0 for the base itself.
    """

    base: int
    sequence: int

    def __str__(self) -> str:
        return f"{self.base}.{self.sequence}"


def digest(content: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def seal(content: Mapping[str, Any]) -> tuple[bytes, str]:
    """Return a JSON file with its own checksum, and the checksum."""
    content = json.loads(json.dumps({"format": FORMAT, **content}))  # as it is read
    checksum = digest(json.dumps(content, sort_keys=True).encode())
    text = json.dumps({**content, "sha256": checksum}, indent=1) + "\n"
    return text.encode(), checksum


def unseal(text: bytes, path: str) -> dict[str, Any]:
    """Return the content of a file that `seal` wrote.

    Args:
        text: The file.
        path: Name of the file for messages.

    Raises:
        DeltaError: If the file is damaged, or has the format of a later release.
    """
    try:
        content = json.loads(text)
        checksum = content.pop("sha256")
        own = digest(json.dumps(content, sort_keys=True).encode())
        file_format = content["format"]
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        problem = f"{path} is damaged or truncated: it is not a complete JSON file."
        raise DeltaError("damaged", problem) from None
    if file_format != FORMAT:
        raise DeltaError(
            "future format",
            f"{path} has format {file_format!r}, and this release reads format "
            f"{FORMAT}. Install the release of tf_dlrm that wrote it.",
        )
    if checksum != own:
        raise DeltaError("damaged", f"{path} does not match its checksum.")
    content["sha256"] = checksum
    return dict(content)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The places at which an export stores its weights.

    Attributes:
        table_dtype: Storage format of the tables.
        tables: Name, number of rows and stored columns of each table, in order.
        places: A `RowPlace` for each block of rows, whose columns are stored columns:
            for int8 and int4, the bytes of a block, with scale and offset.
        num_table_variables: The number of variables that hold rows. They are weights
            0, 1, ... of the export; all others are dense.
        dense: Shape and dtype of each dense weight, in order.
    """

    table_dtype: str
    tables: tuple[tuple[str, int, int], ...]
    places: tuple[RowPlace, ...]
    num_table_variables: int
    dense: tuple[tuple[tuple[int, ...], str], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the layout as JSON-safe values."""
        return json.loads(json.dumps(dataclasses.asdict(self)))  # type: ignore[no-any-return]

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Layout":
        """Return the layout that `to_json` described."""
        return cls(
            content["table_dtype"],
            tuple((name, rows, columns) for name, rows, columns in content["tables"]),
            tuple(RowPlace(*place) for place in content["places"]),
            content["num_table_variables"],
            tuple((tuple(shape), dtype) for shape, dtype in content["dense"]),
        )

    @property
    def row_dtype(self) -> str:
        """NumPy's name of the dtype of stored rows."""
        return "uint8" if self.table_dtype in ("int8", "int4") else self.table_dtype

    def places_of(self, table: str) -> list[RowPlace]:
        """Return the places of a table."""
        return [place for place in self.places if place.table == table]


class TableRows(NamedTuple):
    """The rows of one table that a delta replaces.

    Attributes:
        ids: Row numbers, int64 `(n,)`, ascending.
        rows: Their stored values, `(n, stored columns)`.
        deleted: Ids that the table gave up, int64 `(m,)`, ascending. A table with a
            fixed vocabulary gives none up.
    """

    ids: np.ndarray
    rows: np.ndarray
    deleted: np.ndarray


def pack_tables(tables: Mapping[str, TableRows], names: list[str]) -> bytes:
    """Return the file of a delta that contains rows.

    Args:
        tables: The rows by table.
        names: The tables in the order of the base.
    """
    arrays = {}
    for i, name in enumerate(names):
        own = tables[name]
        largest = int(own.ids[-1]) if own.ids.size else 0
        arrays[f"ids_{i}"] = own.ids.astype(np.min_scalar_type(largest))
        arrays[f"rows_{i}"] = _plain(own.rows)
        if own.deleted.size:
            arrays[f"deleted_{i}"] = own.deleted
    return _to_npz(arrays)


def pack_dense(arrays: list[np.ndarray]) -> bytes:
    """Return the file of a delta that contains all other weights."""
    return _to_npz({f"dense_{j}": _plain(array) for j, array in enumerate(arrays)})


def unpack_tables(content: bytes, layout: Layout, path: str) -> dict[str, TableRows]:
    """Return the rows of a delta after checking them against the base.

    Args:
        content: The file.
        layout: The layout of the base.
        path: Name of the file for messages.

    Raises:
        DeltaError: If ids are not ascending or not in the table, or rows have another
            shape or dtype.
    """
    arrays, tables = _from_npz(content, path), {}
    for i, (name, num_rows, columns) in enumerate(layout.tables):
        try:
            ids, rows = arrays[f"ids_{i}"], arrays[f"rows_{i}"]
        except KeyError:
            problem = f"{path} has no rows of table '{name}'."
            raise DeltaError("damaged", problem) from None
        deleted = arrays.get(f"deleted_{i}", np.zeros(0, np.int64))
        fits = ids.ndim == 1 and ids.dtype.kind in "ui"
        fits = fits and rows.shape == (len(ids), columns)
        fits = fits and rows.dtype == _plain(np.zeros(0, _type(layout.row_dtype))).dtype
        ids = ids.astype(np.int64)
        if fits and ids.size:
            fits = bool(ids[0] >= 0 and ids[-1] < num_rows and (np.diff(ids) > 0).all())
        if not fits:
            raise DeltaError(
                "damaged",
                f"{path}: table '{name}' must have ascending rows below {num_rows:,}, "
                f"with {columns} columns of {layout.row_dtype}.",
            )
        if deleted.size:
            raise DeltaError(
                "foreign",
                f"{path} deletes ids of table '{name}', whose vocabulary is fixed.",
            )
        tables[name] = TableRows(ids, rows.view(_type(layout.row_dtype)), deleted)
    return tables


def unpack_dense(content: bytes, layout: Layout, path: str) -> list[np.ndarray]:
    """Return the dense weights of a delta after checking them against the base.

    Args:
        content: The file.
        layout: The layout of the base.
        path: Name of the file for messages.

    Raises:
        DeltaError: If number, shape or dtype of the weights differ.
    """
    arrays = _from_npz(content, path)
    dense = []
    for j, (shape, dtype) in enumerate(layout.dense):
        array = arrays.get(f"dense_{j}")
        plain = _plain(np.zeros(0, _type(dtype))).dtype
        if array is None or array.shape != shape or array.dtype != plain:
            problem = f"{path}: dense weight {j} must be {dtype} of shape {shape}."
            raise DeltaError("damaged", problem)
        dense.append(array.view(_type(dtype)))
    if len(arrays) != len(layout.dense):
        problem = f"{path} has {len(arrays)} dense weights, not {len(layout.dense)}."
        raise DeltaError("damaged", problem)
    return dense


def _type(name: str) -> np.dtype[Any]:
    if name == "bfloat16":
        import ml_dtypes

        own: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return own
    return np.dtype(name)


def _plain(array: np.ndarray) -> np.ndarray:
    """Return an array whose dtype NumPy's files know; bfloat16 as its bits."""
    array = np.ascontiguousarray(array)
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def _to_npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _from_npz(content: bytes, path: str) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return dict(file)
    except Exception as error:  # of zipfile, zlib or NumPy
        raise DeltaError("damaged", f"{path} cannot be read: {error}") from None
