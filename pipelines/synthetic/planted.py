"""Click logs with a planted truth: the best score that any model can reach is known."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import numbers
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipelines.synthetic import columns, tsv
from pipelines.synthetic.score import Score
from pipelines.synthetic.truth import PAIRS, Truth, sigmoid, stream

BLOCK_ROWS = 1 << 14  # changing it changes every generated row
_BLOCKS = 100  # its stream of random numbers; the truth's are below


class PlantedBlock(NamedTuple):
    """Consecutive rows of a planted log.

    Attributes:
        labels: int8 `(rows,)`, 0 or 1.
        integers: int64 `(rows, 13)`, 0 where missing.
        integers_missing: bool `(rows, 13)`.
        categories: int32 `(rows, 26)`, rank of the value in its column by frequency,
            0 the most frequent, -1 where missing.
        probabilities: float64 `(rows,)`, the true click probabilities.
    """

    labels: np.ndarray
    integers: np.ndarray
    integers_missing: np.ndarray
    categories: np.ndarray
    probabilities: np.ndarray


@dataclasses.dataclass(frozen=True)
class PlantedReport:
    """What a written log holds, and what a perfect model scores on it.

    Attributes:
        path: the log.
        num_rows: rows in it.
        first_row: number of its first row in the endless log of the seed.
        seed: of the generator.
        click_rate: share of rows with label 1.
        best_auc: area under the ROC curve of the true probabilities against the
            labels of the file; None where all labels are equal.
        best_log_loss: mean of -log(true probability of the label), in nats.
        expected_log_loss: mean entropy of the true probabilities, in nats, which
            `best_log_loss` scatters around.
    """

    path: str
    num_rows: int
    first_row: int
    seed: int
    click_rate: float
    best_auc: float | None
    best_log_loss: float
    expected_log_loss: float

    def to_json(self) -> str:
        """The report as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)


@dataclasses.dataclass(frozen=True)
class Planted:
    """Endless click log in Criteo's format whose click probabilities are known.

    Labels are drawn from probabilities that a DLRM can express: effects of the
    integers and of the ids, and dot products of latent vectors of some pairs of
    features. So a training run can be judged in absolute terms: how far is it from
    the best possible score, and did it learn the interactions? At the defaults the
    best AUC is about 0.80. A logistic regression on 300,000 rows stays 0.06 below,
    and a DLRM as in the paper, after one pass over a million rows, 0.003.

    The truth is decided by the arguments, and a row by the arguments and its number:
    any range of rows can be generated alone. Train on one range and test on another
    of the same seed; another seed is another truth.

    Args:
        seed: not negative. Defaults to 0.
        click_rate: mean click probability, in (0, 1). Defaults to 0.25.
        vocabulary_sizes: number of values of C1..C26, each in [1, 2**27). Defaults to
            those of the Criteo Kaggle set, cut at a million.
        main_effect: standard deviation, in logits, of what integers and ids add
            each by itself. Defaults to 1.15.
        pair_effect: standard deviation, in logits, of what pairs of ids add beyond
            that. Defaults to 0.8.

    Raises:
        ValueError: an argument is out of range.

    Example:

    >>> import pathlib, tempfile
    >>> from pipelines.synthetic import Planted
    >>> planted = Planted(seed=0)
    >>> directory = pathlib.Path(tempfile.mkdtemp())
    >>> train = planted.write(directory / "train.tsv", num_rows=2000)
    >>> test = planted.write(directory / "test.tsv", num_rows=500, first_row=2000)
    >>> test.first_row, len((directory / "test.tsv").read_text().splitlines())
    (2000, 500)
    >>> 0.75 < test.best_auc < 0.87
    True
    """

    seed: int = 0
    click_rate: float = 0.25
    vocabulary_sizes: tuple[int, ...] = columns.VOCABULARY_SIZES
    main_effect: float = 1.15
    pair_effect: float = 0.8

    def __post_init__(self):
        _check_integer("seed", self.seed, 0)
        if not 0.0 < self.click_rate < 1.0:
            raise ValueError(
                "`click_rate` must lie between 0 and 1, both excluded. "
                f"Received: click_rate={self.click_rate}."
            )
        sizes = tuple(self.vocabulary_sizes)
        if len(sizes) != columns.NUM_CATEGORIES:
            raise ValueError(
                f"`vocabulary_sizes` must have {columns.NUM_CATEGORIES} entries, one "
                f"for each of C1..C26. Received: {len(sizes)} entries, {sizes}."
            )
        for number, size in enumerate(sizes, start=1):
            _check_integer(f"vocabulary_sizes[{number - 1}]", size, 1)
            if size >= 1 << tsv.RANK_BITS:
                raise ValueError(
                    f"`vocabulary_sizes` must be below 2**{tsv.RANK_BITS}. "
                    f"Received: {size} for C{number}."
                )
        object.__setattr__(self, "vocabulary_sizes", tuple(map(int, sizes)))
        for name in ("main_effect", "pair_effect"):
            value = getattr(self, name)
            if not 0.0 <= value <= 10.0:
                raise ValueError(
                    f"`{name}` must be a standard deviation in [0, 10]. "
                    f"Received: {name}={value}."
                )

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Names of the features that interact, such as `("C1", "C14")`."""
        return tuple((f"C{a}", f"C{b}") for a, b in PAIRS)

    @functools.cached_property
    def _truth(self) -> Truth:
        return Truth(
            self.seed,
            self.click_rate,
            self.vocabulary_sizes,
            self.main_effect,
            self.pair_effect,
        )

    def probabilities(self, integers: np.ndarray, categories: np.ndarray) -> np.ndarray:
        """True click probabilities of any rows.

        Args:
            integers: `(rows, 13)`, 0 where missing. Negative values count as 0.
            categories: `(rows, 26)` ranks, -1 where missing.

        Returns:
            float64 `(rows,)`.

        Raises:
            ValueError: a shape or a rank is wrong.
        """
        integers, categories = np.asarray(integers), np.asarray(categories)
        if integers.shape != (len(integers), columns.NUM_INTEGERS):
            raise ValueError(
                f"`integers` must have shape (rows, {columns.NUM_INTEGERS}). "
                f"Received: shape {integers.shape}."
            )
        if categories.shape != (len(integers), columns.NUM_CATEGORIES):
            raise ValueError(
                f"`categories` must have shape (rows, {columns.NUM_CATEGORIES}), with "
                f"the {len(integers)} rows of `integers`. "
                f"Received: shape {categories.shape}."
            )
        if categories.min(initial=0) < -1:
            raise ValueError(
                "`categories` must be ranks from 0, or -1 where missing. "
                f"Received: a rank of {categories.min()}."
            )
        return sigmoid(self._truth.logits(integers, categories))

    def blocks(self, num_rows: int, first_row: int = 0) -> Iterator[PlantedBlock]:
        """Generates rows `first_row` to `first_row + num_rows`.

        Memory does not grow with `num_rows`.

        Args:
            num_rows: rows to generate, at least 1.
            first_row: number of the first one. Defaults to 0.

        Returns:
            An iterator of `PlantedBlock`, of at most 16,384 rows each.

        Raises:
            ValueError: an argument is out of range.
        """
        _check_integer("num_rows", num_rows, 1)
        _check_integer("first_row", first_row, 0)
        return self._blocks(first_row, first_row + num_rows)

    def _blocks(self, start: int, stop: int) -> Iterator[PlantedBlock]:
        for index in range(start // BLOCK_ROWS, -(-stop // BLOCK_ROWS)):
            base = index * BLOCK_ROWS
            rows = slice(max(start - base, 0), min(stop - base, BLOCK_ROWS))
            yield PlantedBlock(*(array[rows] for array in self._block(index)))

    def _block(self, index: int) -> PlantedBlock:
        rng = stream(self.seed, _BLOCKS, index)
        integers, missing, categories = columns.sample_features(
            rng, BLOCK_ROWS, self.vocabulary_sizes
        )
        probabilities = self.probabilities(integers, categories)
        labels = (rng.random(BLOCK_ROWS) < probabilities).astype(np.int8)
        return PlantedBlock(labels, integers, missing, categories, probabilities)

    def write(
        self,
        path: str | os.PathLike,
        num_rows: int,
        first_row: int = 0,
        probabilities_path: str | os.PathLike | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> PlantedReport:
        """Writes rows as Criteo TSV: label, I1..I13, C1..C26, no header.

        Missing values are empty fields, ids are the 8 hexadecimal characters of
        `category_text`, lines end in a newline. Files appear whole or not at all, and
        equal arguments give equal bytes.

        Args:
            path: file to write, compressed if it ends in ".gz".
            num_rows: rows to write, at least 1.
            first_row: number of the first one. Defaults to 0.
            probabilities_path: file for the true click probabilities of the rows, a
                float64 `(num_rows,)` array for `np.load`. Defaults to none.
            progress: called as `progress(rows_done, num_rows)` every 16,384 rows.

        Returns:
            A `PlantedReport`, with the best scores that are possible on these rows.

        Raises:
            ValueError: an argument is out of range.
        """
        blocks = self.blocks(num_rows, first_row)
        _check_directory("path", path)
        if probabilities_path is not None:
            _check_directory("probabilities_path", probabilities_path)
            if Path(probabilities_path).resolve() == Path(path).resolve():
                raise ValueError(
                    "`probabilities_path` must differ from `path`. "
                    f"Received: {os.fspath(path)!r} for both."
                )
        score = Score()
        with contextlib.ExitStack() as stack:
            text_file = stack.enter_context(tsv.replacing(path))
            array_file = None
            if probabilities_path is not None:
                array_file = stack.enter_context(tsv.replacing(probabilities_path))
                header = {
                    "descr": "<f8",
                    "fortran_order": False,
                    "shape": (int(num_rows),),
                }
                np.lib.format.write_array_header_1_0(array_file, header)
            for block in blocks:
                text_file.write(tsv.encode_rows(*block[:4]))
                if array_file is not None:
                    array_file.write(block.probabilities.astype("<f8").tobytes())
                score.add(block.labels, block.probabilities)
                if progress is not None:
                    progress(score.num_rows, num_rows)
        return PlantedReport(
            path=os.fspath(path),
            num_rows=int(num_rows),
            first_row=int(first_row),
            seed=int(self.seed),
            click_rate=score.click_rate,
            best_auc=score.auc,
            best_log_loss=score.log_loss,
            expected_log_loss=score.entropy,
        )


def _check_integer(name: str, value, minimum: int):
    if (
        not isinstance(value, numbers.Integral)
        or isinstance(value, bool)
        or value < minimum
    ):
        raise ValueError(
            f"`{name}` must be an integer of at least {minimum}. "
            f"Received: {name}={value!r}."
        )


def _check_directory(name: str, path: str | os.PathLike):
    if not Path(path).parent.is_dir():
        raise ValueError(
            f"`{name}` must lie in a directory that exists. "
            f"Received: {name}={os.fspath(path)!r}."
        )
