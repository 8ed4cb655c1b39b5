"""Exact counts of the categorical values of Criteo logs, in one streaming pass."""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.criteo.format import NUM_COLUMNS, NUM_SPARSE, reason, trim
from pipelines.files import BlockReader
from pipelines.quarantine import Quarantine

BLOCK_BYTES = 8 << 20
# Accepts nearly every good line and no bad one; `reason` decides about the others.
# Arrow matches binary data byte by byte, so invalid UTF-8 is nothing special.
_CLEAN = r"\A[01](?:\t(?:-?[0-9]{1,15})?){13}(?:\t[^\t\r]*){26}\r?\z"
_MIN_MERGE_ROWS = 1 << 16


class ValueCounts(NamedTuple):
    """Counts of all values in some files.

    Attributes:
        tables: One `pyarrow.Table` a feature, with the columns `value`
            (large_binary, each once, none empty) and `count` (int64).
        num_rows: Number of rows counted.
        num_bad_rows: Number of bad rows, which are not counted.
    """

    tables: list[pa.Table]
    num_rows: int
    num_bad_rows: int


def count_values(
    paths: Sequence[str],
    quarantine: Quarantine,
    progress: Callable[[int], None] | None = None,
) -> ValueCounts:
    """Counts the categorical values of the good rows.

    Memory grows with the number of distinct values, not with the number of rows.

    Args:
        paths: Files of labelled rows.
        quarantine: Where bad rows go.
        progress: Called with the number of lines read so far, every few megabytes.

    Returns:
        The counts. A multi-hot field counts each of its values.

    Raises:
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    counters = [_Counter() for _ in range(NUM_SPARSE)]
    num_lines = num_bad = 0
    jobs = []
    reader = BlockReader(BLOCK_BYTES)
    with ThreadPoolExecutor(min(NUM_SPARSE, os.cpu_count() or 1)) as executor:
        for path in paths:
            first_line = num_lines
            for block in reader.blocks(path):
                lines = _split(pa.array([block.removesuffix(b"\n")]), b"\n")
                good, bad = _sort_out(lines, has_return=b"\r" in block)
                first = num_lines - first_line
                bad = [(first + position, line, why) for position, line, why in bad]
                quarantine.record(path, first, len(lines), bad)
                num_lines += len(lines)
                num_bad += len(bad)
                fields = _split(good, b"\t")
                has_comma = b"," in block
                _wait(jobs)  # The next block is split while this one is counted.
                jobs = [
                    executor.submit(counter.add_column, fields, i, has_comma)
                    for i, counter in enumerate(counters)
                ]
                if progress is not None:
                    progress(num_lines)
        _wait(jobs)
        tables = list(executor.map(_Counter.finish, counters))
    quarantine.check()
    return ValueCounts(tables, num_lines - num_bad, num_bad)


def most_frequent(table: pa.Table, min_count: int, max_size: int | None) -> pa.Table:
    """Returns the rows of a table of counts that get an id, in the order of ids.

    Args:
        table: Columns `value` and `count`, as in `ValueCounts`.
        min_count: Smallest count to keep.
        max_size: Largest number of ids, including id 0, which is no row here.
    """
    table = table.filter(pc.greater_equal(table["count"], min_count))
    table = table.sort_by([("count", "descending"), ("value", "ascending")])
    return table if max_size is None else table.slice(0, max_size - 1)


def _wait(jobs: Iterable[Future]) -> None:
    """Waits for all jobs and raises the first error."""
    for job in jobs:
        job.result()


class _Counter:
    """Counts of one feature: blocks are merged when they outgrow what is merged,
    so every value is merged a logarithmic number of times."""

    def __init__(self):
        self._merged = []
        self._pending = []
        self._num_merged = 0
        self._num_pending = 0

    def add_column(self, fields: pa.Array, feature: int, has_comma: bool):
        column = NUM_COLUMNS - NUM_SPARSE + feature
        values = fields.take(pa.array(np.arange(column, len(fields), NUM_COLUMNS)))
        if has_comma:
            values = _split(values, b",")
        counted = values.value_counts()
        self._pending.append(
            pa.table({"value": counted.field(0), "count": counted.field(1)})
        )
        self._num_pending += len(counted)
        if self._num_pending > max(_MIN_MERGE_ROWS, self._num_merged):
            self._merge()

    def finish(self) -> pa.Table:
        self._merge()
        table = self._merged[0]
        return table.filter(pc.greater(pc.binary_length(table["value"]), 0))

    def _merge(self):
        table = pa.concat_tables([*self._merged, *self._pending, _NO_COUNTS])
        groups = table.group_by("value", use_threads=False)
        table = groups.aggregate([("count", "sum")]).select(["value", "count_sum"])
        table = table.rename_columns(["value", "count"]).combine_chunks()
        self._merged, self._pending = [table], []
        self._num_merged, self._num_pending = len(table), 0


_NO_COUNTS = pa.table(
    {"value": pa.array([], pa.large_binary()), "count": pa.array([], pa.int64())}
)


def _split(texts: pa.Array, separator: bytes) -> pa.Array:
    return pc.split_pattern(texts.cast(pa.large_binary()), separator).flatten()


def _sort_out(
    lines: pa.Array, has_return: bool
) -> tuple[pa.Array, list[tuple[int, bytes, str]]]:
    """Returns the good lines, trimmed, and (position, line, reason) of the bad."""
    clean = pc.match_substring_regex(lines, _CLEAN)
    bad, trimmed = [], []
    if not pc.all(clean).as_py():
        positions = np.flatnonzero(~clean.to_numpy(zero_copy_only=False))
        for position in positions.tolist():
            line = lines[position].as_py()
            why = reason(line)
            if why is None:
                trimmed.append(trim(line))
            else:
                bad.append((position, line, why))
        lines = lines.filter(clean)
    if has_return:
        lines = pc.replace_substring_regex(lines, r"\r\z", "")
    if trimmed:
        lines = pa.concat_arrays([lines, pa.array(trimmed, pa.large_binary())])
    return lines, bad
