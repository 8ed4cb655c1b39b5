"""Read the numbering of a table from a vocabulary file, many lines at a time."""

import numpy as np
import pyarrow as pa

from pipelines.formats.fields import Text, is_one_of, read_integers, take_binary
from pipelines.runtime import UserError
from pipelines.vocabulary.numbering import Numbering

_CHUNK_BYTES = 32 << 20
_LINE_BYTES, _LONG_LINE = 32, 1 << 16  # bytes of most lines, room for a long line


def read_numbering(
    lines: memoryview, place: int, table: str, num_values: int
) -> tuple[Numbering, int]:
    """Read the values of a table from lines of table name, count and value.

    Args:
        lines: The lines of all tables.
        place: Position of the first line of this table.
        table: Name of the table.
        num_values: Number of values of the table.

    Returns:
        The numbering, and the position of the next table.

    Raises:
        ValueError: If a line belongs to another table.
    """
    values, counts, left = [], [], num_values
    size = min(_CHUNK_BYTES, _LONG_LINE + _LINE_BYTES * num_values)
    while left:
        chunk = bytes(lines[place : place + size])
        text = Text(chunk[: chunk.rfind(b"\n") + 1])
        content = text.bytes[text.first : text.end]
        ends = np.flatnonzero(content == ord("\n"))[:left] + text.first
        if not len(ends) and place + size < len(lines):
            size *= 2
            continue
        if not len(ends):
            raise UserError(f"The values of {table} are missing.")
        starts = np.concatenate([[text.first], ends[:-1] + 1])
        tabs = np.flatnonzero(content == ord("\t")) + text.first
        first = np.searchsorted(tabs, starts)
        name_ends = tabs[np.minimum(first, len(tabs) - 1)]
        count_ends = tabs[np.minimum(first + 1, len(tabs) - 1)]
        of_table = is_one_of(text, starts, name_ends - starts, [table.encode()])
        if not (of_table & (count_ends > name_ends) & (count_ends < ends)).all():
            raise UserError(f"The values of {table} contain values of another table.")
        numbers, _ = read_integers(text, name_ends + 1, count_ends - name_ends - 1)
        counts.append(numbers.astype(np.int64))
        values.append(take_binary(text, count_ends + 1, ends - count_ends - 1))
        left -= len(ends)
        place += int(ends[-1]) + 1 - text.first
    empty = pa.array([], pa.large_binary())
    all_counts = np.concatenate([np.zeros(0, np.int64), *counts])
    return Numbering.of_values(pa.concat_arrays([empty, *values]), all_counts), place
