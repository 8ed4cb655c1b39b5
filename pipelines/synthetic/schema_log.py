"""`SchemaLog`: a generated log with the columns of any schema, planted with clicks.

# n rows, V values
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.formats.lines import join_cells
from pipelines.runtime import UserError
from pipelines.schema import Parquet, Schema
from pipelines.schema.checks import Column
from pipelines.synthetic.blocks import BLOCK_ROWS, block_ranges
from pipelines.synthetic.checks import check_click_rate, check_integer
from pipelines.synthetic.distributions import rank_probabilities, sample_ranks
from pipelines.synthetic.source import Source
from pipelines.synthetic.truth import HEAD, bias_for, sigmoid, stream

_EFFECTS, _LATENTS, _BLOCKS, _PILOT = range(4)  # streams of random numbers
_MISSING_NUMBERS, _MISSING_VALUES = 0.1, 0.05  # shares of cells
_MAX_BAG, _NUM_GROUPS, _NUM_PAIRS = 5, 1000, 4
_START = 1_767_225_600  # 2026-01-01T00:00:00Z
_NUMBER_EFFECT, _VALUE_EFFECT, _PAIR_EFFECT = 0.6, 1.0, 0.8  # deviations in logits


class SchemaBlock(NamedTuple):
    """Consecutive rows of a generated log.

    Attributes:
        labels: int8 `(n,)`, 0 or 1.
        probabilities: float64 `(n,)`, the true click probabilities.
        cells: The columns of the schema, null where a cell is missing.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    cells: pa.Table


@dataclasses.dataclass(frozen=True)
class SchemaLog(Source[SchemaBlock]):
    """An endless click log with the columns of a schema and known click probabilities.

    The labels are drawn from effects of the numbers and of the most frequent values,
    and from dot products of latent vectors of pairs of categories. Bags have one to
    five values, values are Zipf distributed, a tenth of the numbers and a twentieth
    of the categories are missing if the schema has a mark for missing cells.

    A row depends on the arguments and on its number only, so any range of rows can
    be generated alone.

    Args:
        schema: The columns.
        seed: Seed of the truth and of the rows.
        click_rate: Mean click probability.
        num_values: Number of values of each category.

    Raises:
        ValueError: If an argument is out of range, or the separators of the schema
            leave no characters for values.

    Example:

    >>> import os, tempfile
    >>> import pipelines
    >>> from pipelines.synthetic import SchemaLog
    >>> schema = pipelines.Schema("click", dense="price", sparse=["country", "item"])
    >>> path = os.path.join(tempfile.mkdtemp(), "clicks.csv")
    >>> report = SchemaLog(schema).write(path, num_rows=1000)
    >>> with open(path) as file:
    ...     file.readline()
    'click,price,country,item\\n'
    """

    schema: Schema
    seed: int = 0
    click_rate: float = 0.25
    num_values: int = 1000

    def __post_init__(self) -> None:
        check_integer("seed", self.seed, 0)
        check_integer("num_values", self.num_values, 2)
        check_click_rate(self.click_rate)
        _ = self._value_format

    @functools.cached_property
    def columns(self) -> tuple[Column, ...]:
        """The columns of a file in order; some of them may be unknown to the schema."""
        text = self.schema.text
        if text.columns:
            return tuple(text.columns)
        positions = [c for c in self.schema.columns if isinstance(c, int)]
        names = [c for c in self.schema.columns if not isinstance(c, int)]
        size = max([len(names) + len(positions), *(p + 1 for p in positions)])
        free = iter(names)
        return tuple(
            place if place in positions else next(free, f"unused_{place}")
            for place in range(size)
        )

    def _blocks(self, start, stop):
        for index, first, end in block_ranges(start, stop, BLOCK_ROWS):
            labels, probabilities, cells = self._block(index)
            rows = slice(first, end)
            yield SchemaBlock(
                labels[rows], probabilities[rows], cells.slice(first, end - first)
            )

    def _block(self, index):
        logits, cells, rng = self._draw(stream(self.seed, _BLOCKS, index))
        probabilities = sigmoid(logits + self._bias)
        labels = (rng.random(BLOCK_ROWS) < probabilities).astype(np.int8)
        row_numbers = index * BLOCK_ROWS + np.arange(BLOCK_ROWS)
        self._add_other_columns(cells, labels, row_numbers, rng)
        ordered = {str(column): cells[column] for column in self.columns}
        return SchemaBlock(labels, probabilities, pa.table(ordered))

    @functools.cached_property
    def _bias(self):
        logits, _, _ = self._draw(stream(self.seed, _PILOT))
        return bias_for(self.click_rate, logits)

    def _draw(self, rng):
        """Draw the cells of the features of a block, and the logits without bias."""
        logits, cells = np.zeros(BLOCK_ROWS), {}
        kinds = self._kinds
        numbers = [column for column, kind in kinds.items() if kind == "number"]
        scale = _NUMBER_EFFECT / np.sqrt(max(len(numbers), 1))
        for place, column in enumerate(numbers):
            cells[column], standard = self._draw_numbers(column, rng)
            slope = stream(self.seed, _EFFECTS, place).choice((-1.0, 1.0))
            logits += scale * slope * standard
        categories = [column for column, kind in kinds.items() if kind != "number"]
        ranks_by_column = {}
        scale = _VALUE_EFFECT / np.sqrt(max(len(categories), 1))
        for place, column in enumerate(categories):
            effects = self._effects[len(numbers) + place] * scale
            if kinds[column] == "bag":
                cells[column], value = self._draw_bags(column, rng, effects)
            else:
                ranks, missing = self._draw_ranks(rng)
                cells[column] = self._texts(ranks, missing, column)
                value = np.where(missing, 0.0, effects[np.minimum(ranks, HEAD)])
                ranks_by_column[column] = np.where(missing, HEAD, ranks)
            logits += value
        logits += self._pair_logits(list(ranks_by_column.values()))
        return logits, cells, rng

    def _pair_logits(self, ranks):
        pairs = list(zip(ranks[::2], ranks[1::2]))[:_NUM_PAIRS]
        logits = np.zeros(BLOCK_ROWS)
        for number, pair in enumerate(pairs):
            left, right = (
                self._latents[2 * number + side][np.minimum(column, HEAD)]
                for side, column in enumerate(pair)
            )
            logits += (left * right).sum(1) * _PAIR_EFFECT / np.sqrt(2 * len(pairs))
        return logits

    @functools.cached_property
    def _effects(self):
        """Effects of values for each column; those of rare values are 0."""
        return self._centered(_EFFECTS, len(self._kinds), ())

    @functools.cached_property
    def _latents(self):
        return self._centered(_LATENTS, 2 * _NUM_PAIRS, (2,))

    def _centered(self, kind, count, shape):
        size = min(HEAD, self.num_values)
        p = rank_probabilities(self.num_values, size)
        arrays = []
        for number in range(count):
            rng = stream(self.seed, kind, 1000 + number)
            array = np.zeros((HEAD + 1, *shape))
            values = rng.standard_normal((size, *shape))
            array[:size] = values - np.tensordot(p, values, 1) / p.sum()
            arrays.append(array)
        return arrays

    # Cells

    @functools.cached_property
    def _kinds(self) -> dict[Column, str]:
        """The kind of each feature's column: "number", "category" or "bag"."""
        kinds: dict[Column, str] = {}
        for dense in self.schema.dense:
            kinds[dense.column] = "number"
        for feature in self.schema.sparse:
            if feature.buckets is not None:
                kinds.setdefault(feature.column, "number")
        for feature in self.schema.sparse:
            if feature.buckets is None:
                is_number = kinds.get(feature.column) in ("number", "category")
                is_bag = feature.is_bag and not is_number
                kinds[feature.column] = "bag" if is_bag else "category"
        return kinds

    @functools.cached_property
    def _number_columns(self):
        columns = {dense.column for dense in self.schema.dense}
        return columns | {f.column for f in self.schema.sparse if f.buckets}

    @functools.cached_property
    def _value_format(self):
        """A format of values that contains no separator, delimiter or missing mark."""
        special = {self.schema.text.delimiter, *self.schema.text.missing}
        for feature in self.schema.sparse:
            special |= {feature.separator or "", feature.weight_separator or ""}
        special.discard("")
        for value_format in ("v{}", "{}", "x{}", "k{}"):
            texts = [value_format.format(n) for n in (0, 1, 2, 345, 6789)]
            if not any(mark in text for mark in special for text in texts):
                return value_format
        raise UserError(
            "No generated value is free of the schema's delimiter, separators and "
            f"marks of missing cells. Received: {sorted(special)}"
        )

    def _missing(self, rng, share):
        draws = rng.random(BLOCK_ROWS)
        has_mark = bool(self.schema.format.missing) or self._is_parquet
        return draws < (share if has_mark else 0.0)

    @property
    def _is_parquet(self):
        return isinstance(self.schema.format, Parquet)

    def _draw_numbers(self, column, rng):
        logs = rng.normal(1.5, 1.2, BLOCK_ROWS)
        missing = self._missing(rng, _MISSING_NUMBERS)
        integer = any(d.integer for d in self.schema.dense if d.column == column)
        values = np.floor(np.exp(logs)) if integer else np.round(np.exp(logs), 3)
        standard = np.where(missing, 0.0, (np.log1p(values) - 1.8) / 0.9)
        values = values.astype(np.int64) if integer else values
        return pa.array(values, mask=missing), standard

    def _draw_ranks(self, rng):
        ranks = sample_ranks(rng, BLOCK_ROWS, (self.num_values,))[:, 0]
        return ranks, self._missing(rng, _MISSING_VALUES)

    def _texts(self, ranks, missing, column):
        value_format = "{}" if column in self._number_columns else self._value_format
        values = [value_format.format(rank) for rank in range(self.num_values)]
        return pa.array(values, pa.string()).take(pa.array(ranks, mask=missing))

    def _draw_bags(self, column, rng, effects):
        feature = next(f for f in self.schema.sparse if f.column == column)
        missing = self._missing(rng, _MISSING_VALUES)
        most = min(feature.max_values or _MAX_BAG, _MAX_BAG)
        counts = np.where(missing, 0, rng.integers(1, most + 1, BLOCK_ROWS))
        total = int(counts.sum())
        ranks = sample_ranks(rng, total, (self.num_values,))[:, 0]
        texts = self._texts(ranks, np.zeros(total, bool), column)
        weights = np.ones(total)
        if feature.weight_separator is not None:
            weights = rng.integers(1, 9, total) / 4
            texts = pc.binary_join_element_wise(
                texts, pa.array([f"{w:g}" for w in weights]), feature.weight_separator
            )
        offsets = np.concatenate([[0], np.cumsum(counts)])
        lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), texts)
        joined = pc.binary_join(lists, feature.separator)
        cells = pc.if_else(pa.array(missing), None, joined)
        rows = np.repeat(np.arange(BLOCK_ROWS), counts)
        value = np.bincount(
            rows, weights * effects[np.minimum(ranks, HEAD)], BLOCK_ROWS
        )
        return cells, value / np.maximum(np.bincount(rows, weights, BLOCK_ROWS), 1e-9)

    def _add_other_columns(self, cells, labels, row_numbers, rng):
        schema, label = self.schema, self.schema.label
        if label.threshold is not None:
            values = np.where(labels == 1, label.threshold, label.threshold - 1)
            cells[label.column] = pa.array(values)
        elif label.soft or ("1" in label.positive and "0" in (label.negative or "0")):
            cells[label.column] = pa.array(labels)
        else:
            others = label.negative or [t for t in "0n" if t not in label.positive]
            pair = pa.array([others[0], label.positive[0]])
            cells[label.column] = pair.take(pa.array(labels))
        if schema.weight is not None:
            weights = pa.array(rng.choice((0.5, 1.0, 2.0), len(labels)))
            cells.setdefault(schema.weight, weights)
        if schema.time is not None:
            cells.setdefault(schema.time, pa.array(_START + row_numbers))
        if schema.group is not None:
            groups = rng.integers(0, _NUM_GROUPS, len(labels))
            texts = pa.array([f"u{n}" for n in range(_NUM_GROUPS)])
            cells.setdefault(schema.group, texts.take(pa.array(groups)))
        for column in self.columns:
            if column not in cells:
                cells[column] = pa.array(["0"] * len(labels))

    # Files

    def check_text(self) -> None:
        """Accept any schema: its text can hold all generated rows."""

    def write_binary(self, *args: Any, **options: Any) -> Any:
        """Raise an error: `pipelines.prepare` turns a written log into records.

        Raises:
            ValueError: Always.
        """
        raise UserError(
            "A log with a schema is written in the schema's format. To get records, "
            "write it and prepare it (`pipelines.prepare`)."
        )

    def _probabilities(self, block):
        return block.probabilities

    def _writer(self, file: Any):
        if self._is_parquet:
            return _ParquetWriter(file)
        return _TextWriter(file, self)


class _ParquetWriter:
    """Writes blocks as row groups."""

    def __init__(self, file):
        self._file, self._writer = file, None

    def write(self, block):
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._file, block.cells.schema)
        self._writer.write_table(block.cells)

    def close(self):
        self._writer.close()


class _TextWriter:
    """Writes blocks as lines, after a header if the schema has one."""

    def __init__(self, file, log):
        self._file, self._text = file, log.schema.text
        missing = self._text.missing
        self._mark = "" if "" in missing or not missing else missing[0]
        if self._text.header:
            names = [f"column_{c}" if isinstance(c, int) else c for c in log.columns]
            self._write_lines([pa.array([name], pa.large_string()) for name in names])

    def write(self, block):
        columns = [
            c.combine_chunks().cast(pa.large_string()) for c in block.cells.columns
        ]
        self._write_lines([pc.fill_null(column, self._mark) for column in columns])

    def _write_lines(self, columns):
        columns = [column.cast(pa.large_binary()) for column in columns]
        self._file.write(join_cells(columns, self._text))

    def close(self):
        pass
