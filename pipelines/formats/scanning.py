"""Files of Criteo rows, text or Parquet -> columns, block by block, on all cores."""

import collections
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa

from pipelines.files import BlockReader, count_lines, stamp
from pipelines.formats.tables import BatchReader, is_parquet, read_batch
from pipelines.formats.text import Rows, read_block
from pipelines.quarantine import Quarantine
from pipelines.runtime import UserError

BLOCK_BYTES = 8 << 20


class Block(NamedTuple):
    """Rows of a part of a file.

    Attributes:
        file: Position of the file.
        first_line: Position of the first line in the file, from 0.
        end_offset: Place in the file where the block ends; see `Chunk`.
        rows: The rows.
        made: What `make` made of them.
    """

    file: int
    first_line: int
    end_offset: int
    rows: Rows
    made: Any


class Chunk(NamedTuple):
    """Whole rows of a file, not yet taken apart; of size 0 at the end of the file.

    Attributes:
        content: Lines of text, or rows of a table.
        size: How far the next chunk is: bytes of text (decompressed), rows of a table.
        num_rows: Number of lines or rows.
    """

    content: bytes | pa.RecordBatch | None
    size: int
    num_rows: int


class ChunkReader:
    """Read text and Parquet files alike, chunk by chunk, from any place.

    A chunk is a function of the file and the place where it begins, so that several
    threads can share a reader; chunks that are read in order cost one sequential read.

    Args:
        labelled: Whether rows must have a label.
        block_bytes: Size of a chunk of text.
    """

    def __init__(self, labelled: bool = True, block_bytes: int = BLOCK_BYTES):
        self._lines, self._tables = BlockReader(block_bytes), BatchReader(labelled)
        self._is_table = {}

    def is_table(self, path: str) -> bool:
        """Return whether a file is a Parquet file."""
        if path not in self._is_table:
            self._is_table[path] = is_parquet(path)
        return self._is_table[path]

    def read(self, path: str, place: int) -> Chunk:
        """Read the chunk that begins at 0, or where another one ended.

        Raises:
            ValueError: If the file is damaged or cannot hold rows.
        """
        if self.is_table(path):
            batch = self._tables.read(path, place)
            num_rows = 0 if batch is None else len(batch)
            return Chunk(batch, num_rows, num_rows)
        block = self._lines.read(path, place)
        return Chunk(block, len(block), count_lines(block))


def take_apart(content: bytes | pa.RecordBatch, labelled: bool = True) -> Rows:
    """The rows of a chunk."""
    read = read_block if isinstance(content, bytes) else read_batch
    return read(content, labelled)


def changed(path: str) -> str:
    """The message for a file that something writes to."""
    return f"{path}: changed while it was read. Start again when nothing writes to it."


def scan(
    paths: Sequence[str],
    quarantine: Quarantine,
    labelled: bool = True,
    start: tuple[int, int, int] = (0, 0, 0),
    make: Callable[[Rows], Any] = lambda rows: None,
) -> Iterator[Block]:
    """Yield the rows of files in their order; blocks are decoded side by side.

    Args:
        paths: The files.
        quarantine: Where bad rows go.
        labelled: Whether lines have a label.
        start: File, place and line to begin at: the end of a block of an earlier
            scan.
        make: Function of the rows that is called beside others, for `Block.made`.

    Raises:
        ValueError: If a file is damaged, or changes while it is read.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    num_workers = os.cpu_count() or 1
    waiting = collections.deque()
    with ThreadPoolExecutor(num_workers, "criteo-scan") as executor:
        try:
            for file, line, offset, block in _blocks(paths, labelled, start):
                job = executor.submit(_read, block, labelled, make)
                waiting.append((file, line, offset, job))
                if len(waiting) > num_workers:
                    yield _finish(paths, quarantine, *waiting.popleft())
            while waiting:
                yield _finish(paths, quarantine, *waiting.popleft())
        finally:
            for *_, job in waiting:
                job.cancel()


def _read(content, labelled, make):
    rows = take_apart(content, labelled)
    return rows, make(rows)


def _blocks(paths, labelled, start):
    reader = ChunkReader(labelled, BLOCK_BYTES)
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


def _finish(paths, quarantine, file, line, offset, job):
    rows, made = job.result()
    bad = [(line + position, text, why) for position, text, why in rows.bad]
    quarantine.record(paths[file], line, rows.num_lines, bad)
    return Block(file, line, offset, rows, made)
