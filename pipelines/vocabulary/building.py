"""One pass over labelled rows that counts and numbers values and learns numbers."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.files import expand_paths
from pipelines.formats.diagnosis import no_rows
from pipelines.formats.encoding import values_of
from pipelines.formats.fields import count_codes
from pipelines.formats.frame_rows import NAME, frames_of, read_frame
from pipelines.formats.layout import Rows, Wanted
from pipelines.formats.scanning import scan
from pipelines.quarantine import Quarantine
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.vocabulary.counting import Counters
from pipelines.vocabulary.hashing import HashNumbering, numbering_of
from pipelines.vocabulary.learning import Learning, count_numbers
from pipelines.vocabulary.numbering import number


class ValueCounts:
    """Counts of the values of all tables, and the numbers that transforms learn.

    Args:
        schema: The columns.
        memory_bytes: Maximum memory for the counts, in bytes.
        folder: Folder for counts that do not fit; `None`: make one when needed.
        others: Names of further counters, which share the memory.

    Attributes:
        counters: The `Counters`; those of the tables come first.
        others: The further counters.
    """

    def __init__(
        self,
        schema: Schema,
        memory_bytes: int = 512 << 20,
        folder: Any = None,
        others: Sequence[str] = (),
    ):
        self._schema = schema
        self._quantiles = [
            position
            for position, feature in enumerate(schema.sparse)
            if feature.is_learned
        ]
        names = [f"table-{number}" for number in range(len(schema.tables))]
        names += [f"numbers-{position}" for position in self._quantiles]
        self.counters = Counters([*names, *others], memory_bytes, folder)
        numbers = self.counters.of[len(schema.tables) : len(names)]
        self.others = self.counters.of[len(names) :]
        self._learning = Learning(
            schema, dict(zip(self._quantiles, numbers, strict=True))
        )

    def count(self, rows: Rows, kept: np.ndarray | None = None) -> Any:
        """Count one block; several threads may do this at the same time.

        Args:
            rows: The rows.
            kept: Mask `(n,)` of the rows to count; default: all.
        """
        schema = self._schema
        values = values_of(rows, schema, {}, but=self._quantiles)
        counted = [
            None if column is None else (column, count_codes(column, kept))
            for column in values
        ]
        pick = (lambda column: column) if kept is None else lambda column: column[kept]
        dense = {
            position: pick(rows.numbers[position])
            for position, feature in enumerate(schema.dense)
            if feature.is_learned
        }
        bucketed = {
            position: count_numbers(pick(rows.bucketed[position]))
            for position in self._quantiles
        }
        return counted, dense, bucketed

    def add(self, counts: Any) -> None:
        """Add the result of `count` for a block, in the order of the blocks."""
        counted, dense, bucketed = counts
        for position, column in enumerate(counted):
            if column is not None:
                self.counters.of[self._schema.table_of[position]].add(*column)
        self._learning.add(dense, bucketed)
        self.counters.limit_memory()

    def count_empty(
        self, rows: Rows, counts: Any, kept: np.ndarray | None = None
    ) -> list[int]:
        """Return the number of missing values of each feature.

        Args:
            rows: The rows.
            counts: The result of `count` for them.
            kept: Mask `(n,)` of the rows to count; default: all.
        """
        num_empty = []
        for position, column in enumerate(counts[0]):
            if column is None:
                gaps = np.isnan(rows.bucketed[position])
                num_empty.append(int((gaps if kept is None else gaps[kept]).sum()))
                continue
            values, number_of = column
            has_empty = len(values.keys) and values.keys[0] == 0
            num_empty.append(int(number_of[0]) if has_empty else 0)
        return num_empty

    @functools.cached_property
    def learned(self) -> dict[str, dict[str, Any]]:
        """Learned numbers of each feature, after the last block."""
        learned = self._learning.finish()
        for position in self._quantiles:
            edges = learned[self._schema.sparse[position].name]["edges"]
            counter = self.counters.of[self._schema.table_of[position]]
            for values, counts in self._learning.bucket_counts(position, edges):
                counter.add(values, counts)
        return learned

    def hashed(self, table: int) -> HashNumbering | None:
        """Return the `HashNumbering` of a table, or `None` if it has a vocabulary."""
        return numbering_of(self._schema, table)

    def min_count(self, table: int, default: int) -> int:
        """Return how many times a value of a table must occur to get an id."""
        name = list(self._schema.tables)[table]
        return self._schema.option(name, "min_count") or default


def build(paths, schema: Schema, min_count, max_size, progress, quarantine) -> Any:
    """Build a `Vocabulary`; the arguments are those of `Vocabulary.build`."""
    from pipelines.vocabulary.vocabularies import Vocabulary

    counts = ValueCounts(schema)
    num_lines = num_good = 0
    frames = frames_of(paths)
    if frames is None:
        quarantine = Quarantine() if quarantine is None else quarantine
        paths = expand_paths(paths)
        blocks = _blocks_of_files(paths, schema, counts, quarantine)
    elif quarantine is not None:
        raise UserError(
            "`quarantine` collects bad rows of files only: in a data frame, a bad cell "
            "is an error. Leave `quarantine` out."
        )
    else:
        blocks = _blocks_of_frames(frames, schema, counts)
    for rows, made in blocks:
        counts.add(made)
        num_lines += rows.num_lines
        num_good += len(rows.labels)
        if progress is not None:
            progress(num_lines)
    if quarantine is not None:
        quarantine.check()
    if not num_good:
        raise UserError(no_rows(paths, schema))
    learned = counts.learned  # must come first: it adds the counts of quantiles
    numberings = [
        counts.hashed(table)
        or number(counter, counts.min_count(table, min_count), max_size)[0]
        for table, counter in enumerate(counts.counters.of[: len(schema.tables)])
    ]
    return Vocabulary.of_numberings(
        numberings,
        min_count=min_count,
        max_size=max_size,
        num_rows=num_good,
        num_bad_rows=num_lines - num_good,
        schema=schema,
        learned=learned,
    )


def _blocks_of_files(paths, schema, counts, quarantine):
    for block in scan(paths, quarantine, schema, make=counts.count):
        yield block.rows, block.made


def _blocks_of_frames(frames, schema, counts):
    for position, frame in enumerate(frames):
        name = NAME if len(frames) == 1 else f"frame {position} (counted from 0)"
        for rows in read_frame(frame, schema, Wanted(), name):
            yield rows, counts.count(rows)
