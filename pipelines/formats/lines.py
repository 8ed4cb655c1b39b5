"""Turn rows of any file into the lines that a model with its parser takes.

Files without header and quotes already contain such lines. Rows of other files are
rewritten without the label, in the order of the schema's columns and its text format.

# n rows
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.formats import line_rules
from pipelines.formats.field_rules import Block, read_rows
from pipelines.formats.layout import Layout, Wanted
from pipelines.formats.tables import TableBlock
from pipelines.formats.text import Lines, find_bad
from pipelines.schema.checks import Column
from pipelines.schema.columns import Text

_FOR_SCORING = Wanted(label=False)


class ScoredLines(NamedTuple):
    """Lines to score, with the labels and the bad rows of their source.

    Attributes:
        text: Lines with their line ends.
        labels: Texts `(n,)` of the labels of all rows, null for rows without a label.
        is_line: Mask `(n,)` of the rows that have a line in `text`; `None`: all.
        bad: `(position, row, reason)` of each other row.
        kept: Texts `(n,)` of further columns of all rows, null where there is none.
    """

    text: bytes
    labels: pa.Array
    is_line: np.ndarray | None
    bad: Sequence[tuple[int, bytes, str]]
    kept: Sequence[pa.Array] = ()


class LineMaker:
    """Make lines from the rows of one file.

    Args:
        layout: Layout of the file.
        is_table: Whether it is a Parquet file.
        kept: Further columns whose texts to return.
    """

    def __init__(self, layout: Layout, is_table: bool, kept: Sequence[Column] = ()):
        self._layout, self._kept, text = layout, kept, layout.schema.text
        self.is_as_it_is = not (is_table or text.header or text.quoted)
        # For lines that are used unchanged, only these columns are read here.
        few = {layout.schema.label.column, *kept}
        positions = {c: p for c, p in layout.positions.items() if c in few}
        self._few_columns = dataclasses.replace(layout, positions=positions)

    def __call__(self, content: bytes | pa.RecordBatch) -> ScoredLines:
        """Return the lines of some rows."""
        if isinstance(content, bytes):
            layout = self._few_columns if self.is_as_it_is else self._layout
            block = Lines(content, layout)
            num_rows, candidates = block.count, block.is_row
        else:
            block = TableBlock(content, self._layout)
            num_rows, candidates = len(content), np.ones(len(content), bool)
        labels = self._labels(block, num_rows)
        kept = [self._texts(block, column, num_rows) for column in self._kept]
        if self.is_as_it_is:
            return ScoredLines(content, labels, None, [], kept)
        _, good = read_rows(block, self._layout, _FOR_SCORING, candidates)
        bad = block.describe_bad(good, labelled=False)
        is_line = np.ones(num_rows, bool)
        is_line[[position for position, *_ in bad]] = False
        return ScoredLines(self._write(block, good), labels, is_line, bad, kept)

    def find_bad(self, content: bytes) -> list[tuple[int, bytes, str]]:
        """Return the invalid lines of a file whose lines are used unchanged."""
        return find_bad(content, self._layout, _FOR_SCORING)

    def _labels(self, block: Block, num_rows: int):
        column = self._layout.schema.label.column
        if column not in self._layout.positions:
            return pa.nulls(num_rows, pa.large_binary())
        texts = block.cells(column).raw(False)
        if block.lacks_label is not None:
            texts = pc.if_else(pa.array(block.lacks_label), None, texts)
        texts = pc.if_else(pc.equal(texts, b""), None, texts)
        return _spread(texts, block, num_rows)

    def _texts(self, block: Block, column: Column, num_rows: int):
        if column in self._layout.constants:
            constant = self._layout.constants[column]
            return pa.array([constant] * num_rows, pa.large_binary())
        if isinstance(block, TableBlock):
            return block.plain_texts(column)
        return _spread(block.cells(column).raw(False), block, num_rows)

    def _write(self, block: Block, good: np.ndarray) -> bytes:
        layout, schema = self._layout, self._layout.schema
        rules, kept = line_rules.rules(schema), np.flatnonzero(good)
        numbers = number_columns(schema)
        separators = {f.column: f.separator.encode() for f in schema.sparse if f.is_bag}
        missing = b"" if b"" in schema.missing else [*schema.missing, b""][0]
        nothing = pa.array([b""] * len(kept), pa.large_binary())
        cells = []
        for column in rules.columns:
            if column == schema.label.column:
                if not rules.is_exact:  # the label is required
                    label = _valid_label(schema.label)
                    cells.append(pa.array([label] * len(kept), pa.large_binary()))
            elif column in layout.constants:
                constant = layout.constants[column]
                cells.append(pa.array([constant] * len(kept), pa.large_binary()))
            elif column in layout.positions:
                texts = (
                    block.cells(column)
                    .pick(kept)
                    .raw(column in numbers, separators.get(column))
                )
                cells.append(pc.fill_null(texts, missing))
            else:
                cells.append(nothing)
        return join_cells(cells, schema.text)


def join_cells(columns: Sequence[pa.LargeBinaryArray], text: Text) -> bytes:
    """Return the lines of a text format whose cells are those of columns."""
    delimiter = text.delimiter.encode()
    if text.quoted:
        columns = [_quote(column, delimiter) for column in columns]
    mark, end, empty = (
        pa.scalar(part, pa.large_binary()) for part in (delimiter, b"\n", b"")
    )
    lines = pc.binary_join_element_wise(*columns, mark)
    lines = pc.binary_join_element_wise(lines, end, empty)
    return lines.buffers()[2].to_pybytes() if len(lines) else b""


def _spread(texts, block, num_rows):
    """Return the texts of candidates for all rows, null for other rows."""
    lines = block.line_of_candidates
    if lines is None:
        return texts
    places = np.full(num_rows, -1)
    places[lines] = np.arange(len(lines))
    return texts.take(pa.array(places, mask=places < 0))


def number_columns(schema) -> set:
    """Return the columns that are read only as numbers."""
    numbers = {feature.column for feature in schema.dense}
    numbers |= {f.column for f in schema.sparse if f.buckets is not None}
    return numbers - {f.column for f in schema.sparse if f.buckets is None}


def _valid_label(label) -> bytes:
    return b"0" if label.is_number else label.positive[0].encode()


def _quote(column, delimiter):
    """Put quotes around the cells that need them."""
    needs = pc.match_substring_regex(column, b'["\r\n%s]' % re.escape(delimiter))
    if not pc.any(needs).as_py():
        return column
    doubled = pc.replace_substring(column, b'"', b'""')
    quote, nothing = (pa.scalar(text, pa.large_binary()) for text in (b'"', b""))
    quoted = pc.binary_join_element_wise(quote, doubled, quote, nothing)
    return pc.if_else(needs, quoted, column)
