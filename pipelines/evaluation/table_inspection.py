"""Inspect the embedding tables of a model, block by block.

# n rows of a block, W width, S sampled rows
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.evaluation.table_report import Advice, TableReport, least_saving
from pipelines.progress import bar
from pipelines.runtime import UserError
from pipelines.vocabulary import Vocabulary
from pipelines.vocabulary.hashing import HashNumbering

SAMPLE_ROWS = 2000
_BLOCK_VALUES = 1 << 20
_MOST_SAMPLED = 20_000  # whose products take 1.6 GB
_UNCHANGED = 1e-6  # share of the initial range
_NEAR = 0.01  # distance of near duplicates, as a share of the norm
_RARE = 20
_MIN_COUNTS = (2, 5, 10, 20, 50, 100)
_MANY = 0.25  # share of the rows of a table


def inspect_tables(
    model: Any,
    vocabulary: Any = None,
    sample_rows: int = SAMPLE_ROWS,
    seed: int = 0,
) -> list[TableReport]:
    """Return the size and health of each table, and how to make it smaller.

    Tables are read block by block; memory grows by 4 bytes for each row of the largest
    table. Singular values come from the product `(width, width)` of a table with
    itself.

    Args:
        model: A `DLRM`.
        vocabulary: The vocabulary of the model, whose counts say which rows are rare.
        sample_rows: Largest number of rows of a table to compare with each other.
        seed: Seed of the sample.

    Returns:
        A `TableReport` for each table, in the order of the model.

    Raises:
        ValueError: If `sample_rows` is out of range.

    Example:

    >>> import tf_dlrm
    >>> from pipelines.evaluation import inspect_tables
    >>> spec = tf_dlrm.FeatureSpec.criteo([100] * 26, embedding_dim=8)
    >>> model = tf_dlrm.DLRM(spec, bottom_mlp_dims=(32, 8), top_mlp_dims=(32, 1))
    >>> report = inspect_tables(model)[0]  # doctest: +ELLIPSIS
    Reading tables: 2,600 rows, ...
    >>> report.row_bytes, report.dead_rows, report.dead_by
    (3200, 100, 'initial values')
    """
    check(sample_rows)
    tables, layer = model.spec.tables, model.embedding
    slots = [layer.slot_bytes([table.name]) for table in tables]
    total = sum(4 * table.num_parameters for table in tables) + sum(slots)
    num_rows = sum(table.vocabulary_size for table in tables)
    reports, done = [], 0
    with bar("Reading tables", num_rows) as update:
        for table, slot_bytes in zip(tables, slots, strict=True):
            facts = _Facts(table, sample_rows, np.random.default_rng(seed))
            for block, initial in _blocks(layer, table):
                facts.add(block, initial)
                done += len(block)
                update(done)
            counts = _counts_of(vocabulary, table.name)
            report = facts.report(slot_bytes, counts)
            advice = _advise(report, counts, vocabulary)
            worth = [a for a in advice if a.saved_bytes >= least_saving(total)]
            worth.sort(key=lambda each: -each.saved_bytes)
            reports.append(dataclasses.replace(report, advice=tuple(worth)))
    return reports


def check(sample_rows: int) -> None:
    """Check the arguments of `inspect_tables`."""
    if not 2 <= sample_rows <= _MOST_SAMPLED:
        raise UserError(
            f"`sample_rows` must be from 2 to {_MOST_SAMPLED:,}. Received: "
            f"{sample_rows}"
        )


def _blocks(layer, table) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Yield blocks of rows, each with its initial values or `None`."""
    is_known = False
    if table.trainable:
        for first, initial in layer.initial_rows(table.name):
            is_known = True
            rows = np.arange(first, first + len(initial))
            yield layer.get_rows(table.name, rows), initial
    if is_known:
        return
    step = max(1, _BLOCK_VALUES // table.embedding_dim)
    if table.growing is not None:
        # Rows without an id are dead. (Shared rows have none, and are not.)
        is_empty = layer.get_ids(table.name) < 0
        is_empty[table.growing.num_slots(table.vocabulary_size) :] = False
        for first in range(0, table.vocabulary_size, step):
            rows = np.arange(first, min(first + step, table.vocabulary_size))
            block = layer.get_rows(table.name, rows)
            yield block, np.where(is_empty[rows, None], block, np.inf)
        return
    for first in range(0, table.vocabulary_size, step):
        rows = np.arange(first, min(first + step, table.vocabulary_size))
        yield layer.get_rows(table.name, rows), None


def _counts_of(vocabulary, table):
    """Return the count of each row's value but the first row's; `None`: unknown."""
    if type(vocabulary) is not Vocabulary or table not in vocabulary.schema.tables:
        return None
    place = list(vocabulary.schema.tables).index(table)
    numbering = vocabulary.numberings[place]
    if isinstance(numbering, HashNumbering):
        return None
    counts = np.asarray(numbering.load().counts)
    return counts if counts.any() else None


class _Facts:
    """Facts on a table, gathered block by block."""

    def __init__(self, table, sample_rows, random):
        self._table, self._sample_rows, self._random = table, sample_rows, random
        width = table.embedding_dim
        self._products = np.zeros((width, width))
        self._norms: list[np.ndarray] = []
        self._sample = np.zeros((0, width), np.float32)
        self._keys = np.zeros(0)
        self._dead: int | None = 0

    def add(self, block: np.ndarray, initial: np.ndarray | None) -> None:
        """Add rows `(n, W)`, with their initial values if these are known."""
        if initial is None:
            self._dead = None
        else:
            limit = _UNCHANGED * self._table.vocabulary_size**-0.5
            is_live = (np.abs(block - initial) > limit).any(axis=1)
            self._dead += len(block) - int(is_live.sum())
            block = block[is_live]
        exact = block.astype(np.float64)
        self._products += exact.T @ exact
        self._norms.append(np.sqrt((exact * exact).sum(1)).astype(np.float32))
        # The rows with the lowest random keys of all blocks are the sample.
        keys = np.append(self._keys, self._random.random(len(block)))
        sample = np.concatenate([self._sample, block])
        lowest = np.sort(np.argsort(keys)[: self._sample_rows])
        self._keys, self._sample = keys[lowest], sample[lowest]

    def report(self, slot_bytes: int, counts: np.ndarray | None) -> TableReport:
        """Return the report, without advice."""
        table = self._table
        dead, dead_by = self._dead, "initial values"
        if dead is None:
            dead = None if counts is None else int((counts == 0).sum())
            dead_by = None if counts is None else "counts"
        norms = np.concatenate(self._norms)
        quantiles = stable_rank = abundance = energy = None
        if len(norms):
            quantiles = np.quantile(norms, (0.05, 0.5, 0.95), overwrite_input=True)
            quantiles = tuple(float(norm) for norm in quantiles)
            squares = np.maximum(np.linalg.eigvalsh(self._products)[::-1], 0.0)
            if squares[0] > 0:
                stable_rank = float(squares.sum() / squares[0])
                abundance = float(np.sqrt(squares).sum() / np.sqrt(squares[0]))
                energy = tuple((np.cumsum(squares) / squares.sum()).tolist())
        return TableReport(
            name=table.name,
            num_rows=table.vocabulary_size,
            width=table.embedding_dim,
            row_bytes=4 * table.num_parameters,
            slot_bytes=slot_bytes,
            dead_rows=dead,
            dead_by=dead_by,
            rare_rows=None if counts is None else int((counts < _RARE).sum()),
            norms=quantiles,
            stable_rank=stable_rank,
            information_abundance=abundance,
            energy=energy,
            sampled_rows=len(self._sample),
            near_duplicates=_near_duplicates(self._sample),
        )


def _near_duplicates(rows: np.ndarray) -> int:
    """Return how many of the rows `(S, W)` are within 1% of an earlier row."""
    rows = rows.astype(np.float64)
    squares = (rows * rows).sum(1)
    distances = squares[:, None] + squares - 2 * rows @ rows.T
    largest = np.maximum(squares[:, None], squares)
    # Rounding is far below the limit: 1e-4 of the squares, in float64.
    is_near = distances <= (_NEAR**2) * largest
    return int(np.tril(is_near, -1).any(axis=1).sum())


def _advise(report, counts, vocabulary) -> Iterator[Advice]:
    """Yield ways of making a table smaller."""
    row_bytes = (report.row_bytes + report.slot_bytes) / report.num_rows
    if counts is not None:
        schema = vocabulary.schema
        current = schema.option(report.name, "min_count") or vocabulary.min_count
        for min_count in _MIN_COUNTS:
            num_rare = int((counts < min_count).sum())
            if min_count > current and num_rare >= _MANY * report.num_rows:
                text = (
                    f"{num_rare:,} values occur fewer than {min_count} times: "
                    f"`min_count` {min_count}"
                )
                yield Advice(text, round(num_rare * row_bytes))
                break
    elif report.dead_rows and report.dead_rows >= _MANY * report.num_rows:
        text = (
            f"{report.dead_rows:,} rows were never trained: a smaller vocabulary, or "
            "fewer `hash_buckets` or `rows` of a growing table"
        )
        yield Advice(text, round(report.dead_rows * row_bytes))
    num_live = report.num_rows - (report.dead_rows or 0)
    if report.stable_rank is not None and num_live >= 10 * report.width:
        width = 1 << max(0, int(np.ceil(np.log2(report.stable_rank))))
        if 2 * width <= report.width:
            text = (
                f"width {report.width}, but stable rank {report.stable_rank:.1f} (the "
                f"first {width} directions hold {report.energy[width - 1]:.0%} of the "
                f"squared norm): `embedding_dim` {width} for this table"
            )
            share = 1 - width / report.width
            yield Advice(text, round(share * (report.row_bytes + report.slot_bytes)))
    if report.sampled_rows:
        share = report.near_duplicates / report.sampled_rows
        if share >= _MANY:
            text = (
                f"{report.near_duplicates:,} of {report.sampled_rows:,} sampled rows "
                "have a near duplicate: a larger `min_count` or fewer `hash_buckets`"
            )
            yield Advice(text, round(share * num_live * row_bytes))
