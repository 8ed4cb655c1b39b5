"""The working store of `prepare`: rows of blocks, with values as they were found.

A segment is a file of some blocks and a JSON file beside it, written after it, that
says what is in it. What has no such file is not there: so a run that was cut finds
whole segments only.

# n rows, V values, K keys, T texts
"""

import json
import pathlib
import shutil
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.formats.fields import Values
from pipelines.formats.line_rules import NUM_DENSE, NUM_SPARSE
from pipelines.runtime import UserError, disk
from pipelines.whole_files import write_text

BLOCKS_PER_SEGMENT = 16
_PER_FEATURE = 6  # numbers in the header of a block


class Place(NamedTuple):
    """The origin of a block, and its place.

    Attributes:
        file: Position of its file among the inputs.
        first_line: Position of its first line in the file, from 0.
        end_offset: Bytes of the file (rows, of Parquet) up to its end.
        num_lines: Lines, bad ones included.
        num_rows: Good rows.
        start: First byte in the segment's file.
        size: Bytes in the segment's file.
        checksum: CRC-32 of these.
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
        labels: uint8 `(n,)`.
        dense: float32 `(n, 13)`, transformed.
        values: 26 `Values`.
        integers: 13 pairs of int64 distinct integers and how often each comes.
    """

    labels: np.ndarray
    dense: np.ndarray
    values: list[Values]
    integers: list[tuple[np.ndarray, np.ndarray]]


def pack(content: Content) -> bytes:
    """A block as bytes: a header of sizes, then all arrays."""
    header = [len(content.labels)]
    arrays = [content.labels, content.dense]
    for keys, counts in content.integers:
        header.append(len(keys))
        arrays += [keys, counts]
    for values in content.values:
        offsets, data = _open_texts(values.texts)
        num_distinct = len(values.keys) + len(values.texts)
        codes = values.codes.astype(_code_type(num_distinct))
        lengths = values.lengths
        header += [
            len(codes), lengths is not None, len(values.keys), len(values.texts),
            len(data), codes.itemsize,
        ]  # fmt: skip
        arrays += [codes, values.keys, offsets, data]
        if lengths is not None:
            arrays.append(lengths.astype(np.int32))
    header = np.array(header, np.int64)
    return b"".join(array.tobytes() for array in (header, *arrays))


def unpack(packed: bytes) -> Content:
    """The inverse of `pack`; the arrays are views."""
    size = 1 + NUM_DENSE + _PER_FEATURE * NUM_SPARSE
    header = np.frombuffer(packed, np.int64, size).tolist()
    position = size * 8

    def take(dtype, count):
        nonlocal position
        array = np.frombuffer(packed, dtype, count, position)
        position += array.nbytes
        return array

    num_rows = header[0]
    labels = take(np.uint8, num_rows)
    dense = take(np.float32, num_rows * NUM_DENSE).reshape(-1, NUM_DENSE)
    integers = []
    for num in header[1 : 1 + NUM_DENSE]:
        integers.append((take(np.int64, num), take(np.int64, num)))
    values = []
    for feature in range(NUM_SPARSE):
        begin = 1 + NUM_DENSE + _PER_FEATURE * feature
        num_codes, has_lengths, num_keys, num_texts, num_bytes, width = header[
            begin : begin + _PER_FEATURE
        ]
        codes = take(f"<u{width}", num_codes)
        keys = take(np.uint64, num_keys)
        offsets, data = take(np.int64, num_texts + 1), take(np.uint8, num_bytes)
        texts = pa.Array.from_buffers(
            pa.large_binary(),
            num_texts,
            [None, pa.py_buffer(offsets), pa.py_buffer(data)],
        )
        lengths = take(np.int32, num_rows) if has_lengths else None
        values.append(Values(codes, lengths, keys, texts))
    return Content(labels, dense, values, integers)


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
        folder: Their folder; those that are there and whole are kept.
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
        """By file, `(position in the file, line, reason)` of the bad lines."""
        found = {}
        for description in self._described:
            for file, position, text, reason in description["bad"]:
                bad = position, text.encode("latin-1"), reason
                found.setdefault(file, []).append(bad)
        return found

    def append(self, file, first_line, end_offset, num_lines, packed, num_rows, bad):
        """Add a block; `bad` are `(position in the file, line, reason)`."""
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
        """Completes the segment that is being written."""
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
            ValueError: If a block was damaged.
        """
        for number, description in enumerate(self._described):
            path, _ = self._paths(number)
            with open(path, "rb") as file:
                for place in description["places"]:
                    packed = file.read(place.size)
                    if zlib.crc32(packed) != place.checksum:
                        raise UserError(
                            f"{path}: damaged. Remove the folder and start again."
                        )
                    yield place, packed

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)


def count_integers(numbers: np.ndarray, missing: np.ndarray):
    """Distinct integers of a column, without missing ones, and how often each comes.

    Integers beyond the range of int64 count as its ends.
    """
    present = numbers[~missing] if missing.any() else numbers
    limit = 2.0**63
    exact = np.clip(present, -limit, limit - 1024).astype(np.int64)
    counted = pa.array(exact).value_counts()
    return counted.field(0).to_numpy(), counted.field(1).to_numpy()
