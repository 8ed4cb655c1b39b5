"""Read files of rows in batches that do not depend on where reading starts.

The last bits of a probability depend on the other rows in its batch. A batch is
therefore a function of the file and its first line only, so that a resumed run writes
the same bytes as an uninterrupted one.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from pipelines.files import stamp
from pipelines.formats import quotes
from pipelines.formats.layout import Wanted
from pipelines.formats.scanning import ChunkReader, changed
from pipelines.formats.tables import batches, count_rows
from pipelines.runtime import UserError, remote_files
from pipelines.schema import Schema

_BLOCK_BYTES = 4 << 20
# Limit for long lines: a batch ends with the line that exceeds this number of bytes.
_MAX_BATCH_BYTES = 16 << 20


class Position(NamedTuple):
    """The position where a batch ends.

    Attributes:
        file: Number of the file.
        offset: Number of bytes of the (decompressed) text before it.
        line: Number of lines of the file before it.
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
        content: The lines with their line ends (the last line of a file may have none),
            or the rows of a table.
        end: Position where the batch ends.
        stored_bytes: Number of stored bytes read from all files so far.
    """

    path: str
    first_line: int
    num_lines: int
    content: bytes | pa.RecordBatch
    end: Position
    stored_bytes: int


def read_batches(
    reader: ChunkReader,
    paths: Sequence[str],
    stamps: Sequence[Sequence[int]],
    batch_size: int,
    start: Position = Position(),  # noqa: B008
) -> Iterator[Batch]:
    r"""Yield the rows of files in order.

    Args:
        reader: The result of `make_reader`.
        paths: The files: text, plain or compressed, or Parquet.
        stamps: The `files.stamp` of each file.
        batch_size: Rows in a batch; the last batch of a file may have fewer.
        start: Position to start from: the beginning, or the end of a batch.

    Raises:
        ValueError: If a file is damaged, or changes while it is read.

    Example:

    >>> import os, tempfile
    >>> from pipelines import Schema, files
    >>> from pipelines.scoring import batches
    >>> path = os.path.join(tempfile.mkdtemp(), "lines")
    >>> with open(path, "wb") as file:
    ...     _ = file.write(b"one\ntwo\nthree")
    >>> reader = batches.make_reader(Schema.criteo())
    >>> found = batches.read_batches(reader, [path], [files.stamp(path)], 2)
    >>> [batch.content for batch in found]
    [b'one\ntwo\n', b'three']
    """
    stored_before = sum(size for size, *_ in stamps[: start.file])
    for file in range(start.file, len(paths)):
        path, position = paths[file], start
        if file != start.file:
            position = Position(file)
        if reader.is_table(path):
            pieces = _cut_table(reader, path, position, batch_size)
        else:
            pieces = _cut_text(reader, path, position, batch_size)
        for content, num_rows, offset, stored in pieces:
            first_line = position.line
            position = Position(file, offset, first_line + num_rows)
            stored = stored_before + round(stored)
            yield Batch(path, first_line, num_rows, content, position, stored)
        if list(stamp(path)) != list(stamps[file]):
            raise UserError(changed(path))
        stored_before += stamps[file][0]


def find_part(
    reader: ChunkReader,
    paths: Sequence[str],
    stamps: Sequence[Sequence[int]],
    batch_size: int,
    part: tuple[int, int],
) -> tuple[Position, Position]:
    """Return the positions where one of several equal parts of the batches lies.

    Text is read once to find where its batches end; of Parquet, the rows are known.

    Args:
        reader: The result of `make_reader`.
        paths: The files.
        stamps: The `files.stamp` of each file.
        batch_size: Rows in a batch.
        part: Number of the part, from 1, and number of parts.

    Returns:
        The position where the part begins, and the one where it ends.
    """
    ends = [Position()]
    for file, path in enumerate(paths):
        if reader.is_table(path):
            total = count_rows(path)
            rows = range(batch_size, total + batch_size, batch_size)
            ends += [Position(file, 0, min(row, total)) for row in rows]
            continue
        batches_of_file = read_batches(reader, [path], [stamps[file]], batch_size)
        ends += [batch.end._replace(file=file) for batch in batches_of_file]
    number, num_parts = part
    num_batches = len(ends) - 1
    first, last = (num_batches * n // num_parts for n in (number - 1, number))
    return ends[first], ends[last]


def make_reader(schema: Schema, keep: Sequence[str] = ()) -> ChunkReader:
    """Return a reader for files of a schema, with or without labels.

    Args:
        schema: The columns.
        keep: Further columns to read.
    """
    return ChunkReader(schema, Wanted(label=False, kept=tuple(keep)), _BLOCK_BYTES)


def _cut_table(reader, path, start, batch_size):
    """Yield `batch_size` rows of a table at a time, with their number and offset."""
    layout, total = reader.layout(path, with_label=True), count_rows(path)
    size, rest, row = remote_files.size_of(path), [], start.line
    for rows in batches(path, layout, first_row=row):
        rest.append(rows)
        while sum(map(len, rest)) >= batch_size:
            table = pa.Table.from_batches(rest)
            (batch,) = table.slice(0, batch_size).combine_chunks().to_batches()
            rest = table.slice(batch_size).to_batches()
            row += batch_size
            yield batch, batch_size, 0, size * row / total
    if rest:
        (batch,) = pa.Table.from_batches(rest).combine_chunks().to_batches()
        yield batch, len(batch), 0, size


def _cut_text(reader, path, start, batch_size):
    """Yield `batch_size` lines at a time, with their number and end offset."""
    text_format = reader.schema.text
    rest, stored, offset = b"", 0, start.offset
    place = offset
    while (chunk := reader.read(path, place)).size:
        place += chunk.size
        if not offset:
            offset = chunk.size - len(chunk.content)  # length of the header
        stored_after = reader.stored_bytes(path)
        text = rest + chunk.content
        ends = quotes.line_ends(text, text_format)
        if not text.endswith(b"\n"):
            ends = ends[:-1]  # the last line of the file may have no line end
        start_byte = line = 0
        while True:
            full = np.searchsorted(ends, start_byte + _MAX_BATCH_BYTES) + 1
            next_line = min(line + batch_size, int(full))
            if next_line > len(ends):
                break
            end = int(ends[next_line - 1])
            share = (end - len(rest)) / max(len(chunk.content), 1)
            offset += end - start_byte
            yield (
                text[start_byte:end],
                next_line - line,
                offset,
                stored + (stored_after - stored) * max(share, 0),
            )
            start_byte, line = end, next_line
        rest, stored = text[start_byte:], stored_after
    if rest:
        num_lines = quotes.count_lines(rest, text_format)
        yield rest, num_lines, offset + len(rest), stored
