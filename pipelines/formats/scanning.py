"""The loop over text or Parquet files: read rows block by block, on all cores."""

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines.files import BlockReader, stamp
from pipelines.formats import quotes
from pipelines.formats.layout import Layout, Rows, Wanted
from pipelines.formats.line_rules import trim
from pipelines.formats.tables import BatchReader, find_layout, is_parquet, read_batch
from pipelines.formats.text import read_block
from pipelines.ordered_pool import map_in_order
from pipelines.quarantine import Quarantine
from pipelines.runtime import UserError
from pipelines.schema import Schema

BLOCK_BYTES = 8 << 20
_HEADER_BYTES = 1 << 16


class Block(NamedTuple):
    """The rows of a part of a file.

    Attributes:
        file: Position of the file.
        first_line: Position of the first line in the file, from 0.
        end_offset: Position in the file where the block ends, as in `Chunk`.
        rows: The rows.
        made: The result of `make` for them.
    """

    file: int
    first_line: int
    end_offset: int
    rows: Rows
    made: Any


class Chunk(NamedTuple):
    """Complete rows of a file, not yet parsed; of size 0 at the end of the file.

    Attributes:
        content: Lines of text, or rows of a table.
        size: Distance to the next chunk: bytes of (decompressed) text or rows of a
            table.
        num_rows: Number of lines or rows.
    """

    content: bytes | pa.RecordBatch | None
    size: int
    num_rows: int


class LineSource(NamedTuple):
    """The content of a block, to make lines of.

    Attributes:
        layout: Layout of its file.
        is_table: Whether it is a Parquet file.
        content: Lines of text, or rows of a table.
    """

    layout: Layout
    is_table: bool
    content: bytes | pa.RecordBatch


class ChunkReader:
    """Read text or Parquet files chunk by chunk, from any position.

    A chunk is a function of the file and its position, so several threads can share a
    reader. Reading chunks in order costs one sequential read.

    Args:
        schema: The columns.
        wanted: The columns to read in addition to the features.
        block_bytes: Size of a chunk of text, in bytes.
    """

    def __init__(
        self,
        schema: Schema,
        wanted: Wanted = Wanted(),  # noqa: B008
        block_bytes: int = BLOCK_BYTES,
    ):
        self.schema, self.wanted = schema, wanted
        is_whole = None
        if schema.text.quoted:
            is_whole = functools.partial(quotes.is_closed, text_format=schema.text)
        self._lines, self._tables = BlockReader(block_bytes, is_whole), BatchReader()
        self._is_table: dict[str, bool] = {}
        self._layouts: dict[str, Layout] = {}
        self._headers: dict[str, tuple[list[str] | None, int]] = {}
        self._lock = threading.Lock()

    def is_table(self, path: str) -> bool:
        """Return True if a file is a Parquet file."""
        if path not in self._is_table:
            self._is_table[path] = is_parquet(path)
        return self._is_table[path]

    def layout(self, path: str, with_label: bool = False) -> Layout:
        """Find the columns of a file, and cache the result.

        Args:
            path: The file.
            with_label: Whether to include the label's column, if the file has it, even
                if it is not required.

        Raises:
            ValueError: If the file lacks a column or is damaged.
        """
        with self._lock:
            if path not in self._layouts:
                if self.is_table(path):
                    layout = find_layout(path, self.schema, self.wanted)
                else:
                    names, _ = self._header(path)
                    layout = Layout.of_text(self.schema, path, names, self.wanted)
                self._layouts[path] = layout
            layout = self._layouts[path]
            return layout.with_label() if with_label else layout

    def _header(self, path):
        """Return the column names of a text file, and the size of its header."""
        if path not in self._headers:
            if not self.schema.text.header:
                self._headers[path] = None, 0
            else:
                block = BlockReader(_HEADER_BYTES).read(path, 0)
                self._headers[path] = read_header(block, self.schema)
        return self._headers[path]

    def read(self, path: str, place: int) -> Chunk:
        """Read the chunk at position 0, or at the end of another chunk.

        Raises:
            ValueError: If the file is damaged or cannot hold rows.
        """
        layout = self.layout(path)
        if self.is_table(path):
            batch = self._tables.read(path, layout, place)
            num_rows = 0 if batch is None else len(batch)
            return Chunk(batch, num_rows, num_rows)
        block = self._lines.read(path, place)
        size = len(block)
        if not place and size:
            block = block[self._header(path)[1] :]
            if not block:  # the block was only the header
                block = self._lines.read(path, size)
                size += len(block)
                if not block:
                    return Chunk(b"", 0, 0)
        return Chunk(block, size, quotes.count_lines(block, self.schema.text))

    def take_apart(self, path: str, content: bytes | pa.RecordBatch) -> Rows:
        """Return the rows of a chunk of a file."""
        return take_apart(content, self.layout(path), self.wanted)

    def stored_bytes(self, path: str) -> int:
        """Return the stored bytes of a text file up to the end of the last chunk."""
        return self._lines.stored_bytes(path)


def take_apart(content: bytes | pa.RecordBatch, layout: Layout, wanted: Wanted) -> Rows:
    """Return the rows of a chunk of a file with this layout."""
    read = read_block if isinstance(content, bytes) else read_batch
    return read(content, layout, wanted)


def read_header(block: bytes, schema: Schema) -> tuple[list[str], int]:
    """Read the names of columns.

    Args:
        block: The first lines of a file.
        schema: The schema, for its text format.

    Returns:
        The names, and the number of bytes of the header with its line end.
    """
    structure = quotes.find(block, schema.text)
    (last,) = structure.is_end.nonzero()[0][:1] if len(block) else (-1,)
    names, start = [], structure.text.first
    for end in structure.ends[: last + 1].tolist():
        names.append(structure.text.raw[start:end])
        start = end + 1
    if names:
        names[0] = trim(names[0])
        names[-1] = names[-1].removesuffix(b"\r")
    texts = [name.decode("utf-8", "surrogateescape") for name in names]
    if structure.starts is not None and len(texts):
        return texts, int(structure.starts[1])
    return texts, start - structure.text.first if len(texts) else 0


def changed(path: str) -> str:
    """Return the message for a file that changes during reading."""
    return f"{path}: changed while it was read. Run again when nothing writes to it."


def scan(
    paths: Sequence[str],
    quarantine: Quarantine,
    schema: Schema,
    wanted: Wanted = Wanted(),  # noqa: B008
    start: tuple[int, int, int] = (0, 0, 0),
    make: Callable[[Rows], Any] = lambda rows: None,
    make_lines: Callable[[Rows, LineSource], Any] | None = None,
) -> Iterator[Block]:
    """Yield the rows of files in order; blocks are decoded in parallel.

    Args:
        paths: The files.
        quarantine: Collects bad rows.
        schema: The columns.
        wanted: The columns to read in addition to the features.
        start: File, position and line to start at: the end of a block of an earlier
            scan.
        make: Function of the rows that returns `Block.made`; called in parallel.
        make_lines: The same, of the rows and their content; default: `make`.

    Raises:
        ValueError: If a file is damaged, lacks a column, or changes while it is read.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    reader = ChunkReader(schema, wanted, BLOCK_BYTES)
    quarantine.schema = schema

    def work(file, line, offset, content):
        path = paths[file]
        rows = reader.take_apart(path, content)
        if make_lines is None:
            return Block(file, line, offset, rows, make(rows))
        source = LineSource(reader.layout(path), reader.is_table(path), content)
        return Block(file, line, offset, rows, make_lines(rows, source))

    for block in map_in_order(work, _blocks(paths, reader, start), "scan"):
        line, rows = block.first_line, block.rows
        bad = [(line + position, text, why) for position, text, why in rows.bad]
        quarantine.record(paths[block.file], line, rows.num_lines, bad)
        yield block


def _blocks(paths, reader, start):
    first_file, place, line = start
    for file in range(first_file, len(paths)):
        before = stamp(paths[file])
        while (chunk := reader.read(paths[file], place)).size:
            place += chunk.size
            yield file, line, place, chunk.content
            line += chunk.num_rows
        if stamp(paths[file]) != before:
            raise UserError(changed(paths[file]))
        place = line = 0
