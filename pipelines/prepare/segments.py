"""The working store of `prepare`: the rows of blocks, with their original values.

A segment is a file of some blocks and a JSON file that describes it, written after it.
A segment without its JSON file is ignored, so a resumed run uses only complete ones.

# n rows
"""

import json
import math
import pathlib
import shutil
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.formats.encoding import transform_feature
from pipelines.formats.fields import Values
from pipelines.formats.layout import Rows
from pipelines.runtime import UserError, disk
from pipelines.schema import Schema
from pipelines.vocabulary.learning import count_numbers
from pipelines.whole_files import write_text

BLOCKS_PER_SEGMENT = 16


class Place(NamedTuple):
    """The origin of a block, and its position in a segment.

    Attributes:
        file: Position of its file among the inputs.
        first_line: Position of its first line in the file, from 0.
        end_offset: Position of its end in the file, in bytes (Parquet: in rows).
        num_lines: Number of lines, including bad ones.
        num_rows: Number of valid rows.
        start: Position of its first byte in the segment's file.
        size: Number of its bytes in the segment's file.
        checksum: CRC-32 of these bytes.
    """

    file: int
    first_line: int
    end_offset: int
    num_lines: int
    num_rows: int
    start: int
    size: int
    checksum: int


class Content(NamedTuple):
    """The rows of a block.

    Attributes:
        rows: The rows; their dense features hold only numbers to learn from.
        dense: float32 `(n, num_dense)`, transformed, except features that are learned.
        counted: For each dense feature its distinct numbers, as `count_numbers` returns
            them, and their counts.
    """

    rows: Rows
    dense: np.ndarray
    counted: list[tuple[np.ndarray, np.ndarray]]


def pack_rows(schema: Schema, rows: Rows) -> bytes:
    """Return the rows of a block as bytes, counted and transformed."""
    counted = []
    dense = np.zeros((len(rows.labels), len(schema.dense)), np.float32)
    kept = []
    for position, feature in enumerate(schema.dense):
        numbers = rows.numbers[position]
        values, counts = count_numbers(numbers)
        counted.append((values.keys, counts))
        if not feature.is_learned:
            dense[:, position] = transform_feature(feature, numbers, {})
        kept.append(numbers if feature.is_learned else None)
    rows = rows._replace(numbers=kept)
    return pack(Content(rows, dense, counted))


def pack(content: Content) -> bytes:
    """Return a block as bytes: JSON, with types and shapes of arrays, then arrays."""
    values = [each and _narrow(each) for each in content.rows.values]
    arrays: list[np.ndarray] = []
    rows = content.rows._replace(values=values, bad=[])
    header = json.dumps(_describe(content._replace(rows=rows), arrays)).encode()
    size = len(header).to_bytes(8, "little")
    return b"".join([size, header, *(array.tobytes() for array in arrays)])


def _narrow(values: Values) -> Values:
    """Return values whose codes and lengths take fewer bytes."""
    codes = values.codes.astype(_code_type(len(values.keys) + len(values.texts)))
    lengths = values.lengths
    lengths = None if lengths is None else lengths.astype(np.int32)
    return values._replace(codes=codes, lengths=lengths)


def _describe(value: Any, arrays: list[np.ndarray]) -> Any:
    """Return a value as JSON, and append its arrays to `arrays`, in order."""
    if isinstance(value, np.ndarray):
        arrays.append(value)
        return {"array": [value.dtype.str, value.shape]}
    if isinstance(value, pa.Array):
        return {"texts": _describe(_open_texts(value), arrays)}
    if isinstance(value, Mapping):
        return {"items": _describe(list(value.items()), arrays)}
    if isinstance(value, list | tuple):
        return [_describe(each, arrays) for each in value]
    return value


def unpack(packed: bytes) -> Content:
    """Return the block that `pack` packed; its arrays are views."""
    place = 8 + int.from_bytes(packed[:8], "little")
    header = json.loads(packed[8:place])

    def restore(value):
        nonlocal place
        if isinstance(value, list):
            return [restore(each) for each in value]
        if not isinstance(value, dict):
            return value
        ((kind, about),) = value.items()
        if kind == "array":
            dtype, shape = about
            array = np.frombuffer(packed, dtype, math.prod(shape), place)
            place += array.nbytes
            return array.reshape(shape)
        if kind == "items":
            return dict(restore(about))
        offsets, data = restore(about)
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(data)]
        return pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, buffers)

    rows, dense, counted = restore(header)
    rows = Rows(*rows)
    values = [each and Values(*each) for each in rows.values]
    return Content(rows._replace(values=values), dense, counted)


def _open_texts(texts):
    if not len(texts):
        return np.zeros(1, np.int64), np.zeros(0, np.uint8)
    offsets = np.frombuffer(texts.buffers()[1], np.int64)
    offsets = offsets[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], data


def _code_type(num_distinct):
    for dtype in (np.uint8, np.uint16):
        if num_distinct <= np.iinfo(dtype).max + 1:
            return dtype
    return np.uint32


class Segments:
    """All segments of a run, in order.

    Args:
        folder: Folder of the segments; complete ones in it are kept.
    """

    def __init__(self, folder):
        self._folder = pathlib.Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._described = []
        while (description := self._find(len(self._described))) is not None:
            self._described.append(description)
        self._file, self._places, self._bad = None, [], []

    def _find(self, number):
        path, described = self._paths(number)
        if not described.is_file() or not path.is_file():
            return None
        try:
            description = disk.read_json(described)
        except ValueError:
            return None
        description["places"] = [Place(*place) for place in description["places"]]
        last = description["places"][-1]
        return description if path.stat().st_size == last.start + last.size else None

    def _paths(self, number):
        stem = self._folder / f"segment-{number:06d}"
        return stem.with_suffix(".bin"), stem.with_suffix(".json")

    @property
    def places(self) -> list[Place]:
        """All blocks."""
        return [place for d in self._described for place in d["places"]]

    def bad_lines(self) -> dict[int, list[tuple[int, bytes, str]]]:
        """Return the bad lines by file: `(position in the file, line, reason)`."""
        found = {}
        for description in self._described:
            for file, position, text, reason in description["bad"]:
                bad = position, text.encode("latin-1"), reason
                found.setdefault(file, []).append(bad)
        return found

    def append(self, file, first_line, end_offset, num_lines, packed, num_rows, bad):
        """Add a block; `bad` lists `(position in the file, line, reason)`."""
        path, _ = self._paths(len(self._described))
        if self._file is None:
            with disk.explaining("rows that were read", path):
                self._file = open(path, "wb")
        place = Place(
            file,
            first_line,
            end_offset,
            num_lines,
            num_rows,
            self._file.tell(),
            len(packed),
            zlib.crc32(packed),
        )
        with disk.explaining("rows that were read", path):
            self._file.write(packed)
        self._places.append(place)
        self._bad += [
            [file, position, line.decode("latin-1"), reason]
            for position, line, reason in bad
        ]
        if len(self._places) == BLOCKS_PER_SEGMENT:
            self.close()

    def close(self) -> None:
        """Complete the segment that is being written."""
        if self._file is None:
            return
        with disk.explaining("rows that were read", self._file.name):
            self._file.close()
        description = {"places": self._places, "bad": self._bad}
        write_text(self._paths(len(self._described))[1], json.dumps(description))
        self._described.append(description)
        self._file, self._places, self._bad = None, [], []

    def read(self) -> Iterator[tuple[Place, bytes]]:
        """Yield all blocks, packed.

        Raises:
            ValueError: If a block is damaged.
        """
        for number, description in enumerate(self._described):
            path, _ = self._paths(number)
            with open(path, "rb") as file:
                for place in description["places"]:
                    packed = file.read(place.size)
                    if zlib.crc32(packed) != place.checksum:
                        raise UserError(
                            f"{path}: damaged. Remove its folder and run the command "
                            "again."
                        )
                    yield place, packed

    def remove(self) -> None:
        """Remove all segments."""
        shutil.rmtree(self._folder, ignore_errors=True)
