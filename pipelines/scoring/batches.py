"""Files of lines -> batches: the same lines in a batch wherever reading begins.

The last bits of a probability depend on the rows that it is computed with. So a batch
is a function of the file and its first line, and a resumed run gives
the bytes that it would have given without.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipelines.files import BlockReader, count_lines, stamp
from pipelines.formats.scanning import changed
from pipelines.formats.tables import batches, count_rows, is_parquet, to_lines
from pipelines.runtime import UserError, remote_files

_BLOCK_BYTES = 4 << 20
# Lines of megabytes are rows too: a batch ends with the line that takes it past this.
_MAX_BATCH_BYTES = 16 << 20


class Position(NamedTuple):
    """The place where a batch ends.

    Attributes:
        file: Number of the file.
        offset: Bytes of the (decompressed) text up to there.
        line: Lines of the file up to there.
    """

    file: int = 0
    offset: int = 0
    line: int = 0


class Batch(NamedTuple):
    """Some lines of a file.

    Attributes:
        path: The file.
        first_line: Position of the first line in the file, from 0.
        num_lines: Number of lines.
        text: The lines with their line ends; the last of a file may have none.
        end: Where the batch ends.
        stored_bytes: Bytes read of all files so far, as they are stored.
    """

    path: str
    first_line: int
    num_lines: int
    text: bytes
    end: Position
    stored_bytes: int


def read_batches(
    paths: Sequence[str],
    stamps: Sequence[Sequence[int]],
    batch_size: int,
    start: Position = Position(),  # noqa: B008
) -> Iterator[Batch]:
    r"""Yield the lines of files in their order.

    Args:
        paths: The files: text, plain or compressed, or Parquet, whose rows are written
            as lines.
        stamps: What `files.stamp` said of each.
        batch_size: Lines in a batch; the last of a file may have fewer.
        start: Where to begin: 0, or the end of a batch.

    Raises:
        ValueError: If a file is damaged, or changes while it is read.

    Example:

    >>> import os, tempfile
    >>> from pipelines import files
    >>> from pipelines.scoring import batches
    >>> path = os.path.join(tempfile.mkdtemp(), "lines")
    >>> with open(path, "wb") as file:
    ...     _ = file.write(b"one\ntwo\nthree")
    >>> [b.text for b in batches.read_batches([path], [files.stamp(path)], 2)]
    [b'one\ntwo\n', b'three']
    """
    reader = BlockReader(_BLOCK_BYTES)
    stored_before = sum(size for size, *_ in stamps[: start.file])
    for file in range(start.file, len(paths)):
        path, position = paths[file], start
        if file != start.file:
            position = Position(file)
        blocks = _blocks(reader, path, position)
        for text, num_lines, stored in _cut(blocks, batch_size):
            first_line = position.line
            position = Position(
                file, position.offset + len(text), first_line + num_lines
            )
            stored = stored_before + round(stored)
            yield Batch(path, first_line, num_lines, text, position, stored)
        if list(stamp(path)) != list(stamps[file]):
            raise UserError(changed(path))
        stored_before += stamps[file][0]


def _blocks(reader, path, start):
    """Yield lines of a file, and how many of its stored bytes lie before their end."""
    if is_parquet(path):
        row, total, size = start.line, count_rows(path), remote_files.size_of(path)
        for rows in batches(path, labelled=False, first_row=row):
            row += len(rows)
            yield to_lines(rows), size * row / total
        return
    offset = start.offset
    while block := reader.read(path, offset):
        offset += len(block)
        yield block, reader.stored_bytes(path)


def _cut(blocks, batch_size):
    """Yield `(text, number of lines, stored bytes)` of batches."""
    rest, stored = b"", 0
    for block, stored_after in blocks:
        text = rest + block
        content = np.frombuffer(text, np.uint8)
        ends = np.flatnonzero(content == ord("\n")) + 1
        start = line = 0
        while True:
            full = np.searchsorted(ends, start + _MAX_BATCH_BYTES) + 1
            next_line = min(line + batch_size, int(full))
            if next_line > len(ends):
                break
            end = int(ends[next_line - 1])
            share = (end - len(rest)) / max(len(block), 1)
            yield (
                text[start:end],
                next_line - line,
                stored + (stored_after - stored) * max(share, 0),
            )
            start, line = end, next_line
        rest, stored = text[start:], stored_after
    if rest:
        yield rest, count_lines(rest), stored
