"""The base of all generators, which writes their rows as text or as records."""

import abc
import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from pipelines.runtime import UserError, locks
from pipelines.synthetic import distributions, tsv
from pipelines.synthetic.blocks import Block
from pipelines.synthetic.checks import check_directory, check_integer
from pipelines.synthetic.score import Score
from pipelines.whole_files import replacing

TEXT_UNITS = 1000  # dense values of [0, 1) are written as floor(1000 * value)
_MAX_RANKS = 1 << tsv.RANK_BITS


@dataclasses.dataclass(frozen=True)
class Report:
    """Facts about a generated log, and the scores of a perfect model on it.

    Attributes:
        path: The log.
        num_rows: Number of rows.
        first_row: Number of the first row in the endless log of the seed.
        seed: Seed of the generator.
        click_rate: Share of rows with label 1.
        best_auc: Area under the ROC curve of the true probabilities and the labels of
            the file; `None` if all labels are equal.
        best_log_loss: Mean of -log(true probability of the label), in nats.
        expected_log_loss: Mean entropy of the true probabilities, in nats, the
            expectation of `best_log_loss`.
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
        """Return the report as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)


_Block = TypeVar("_Block")


class Source(abc.ABC, Generic[_Block]):
    """An endless log with labels drawn from known probabilities.

    A subclass has `seed`, `blocks(num_rows, first_row)` and the methods that this class
    lacks: `_probabilities`, `_text`, `_records`, `_schema`, `_arguments`.
    """

    def check_text(self) -> None:  # noqa: B027
        """Raise a `ValueError` if Criteo's text cannot represent the rows."""

    def blocks(self, num_rows: int, first_row: int = 0) -> Iterator[_Block]:
        """Generate rows `first_row` to `first_row + num_rows - 1`.

        Memory does not grow with `num_rows`.

        Args:
            num_rows: Number of rows to generate, at least 1.
            first_row: Number of the first row; a trace generates the ids of all rows
                before it, too. Default: 0.

        Returns:
            An iterator of blocks with at most 16,384 rows each.

        Raises:
            ValueError: If an argument is out of range.
        """
        check_integer("num_rows", num_rows, 1)
        check_integer("first_row", first_row, 0)
        return self._blocks(first_row, first_row + num_rows)

    @abc.abstractmethod
    def _blocks(self, start: int, stop: int) -> Iterator[_Block]:
        """Yield the blocks of rows `start` to `stop - 1`."""

    def write(
        self,
        path: str | os.PathLike,
        num_rows: int,
        first_row: int = 0,
        probabilities_path: str | os.PathLike | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Report:
        """Write rows as Criteo TSV: label, I1..I13, C1..C26, without a header.

        Ids are the 8 hexadecimal characters of `category_text`, and ids of a bag are
        joined by commas. A missing value is an empty field; lines end in a newline. The
        file appears complete or not at all, and equal arguments give equal bytes.

        Args:
            path: File to write, compressed if its name ends in ".gz".
            num_rows: Number of rows to write, at least 1.
            first_row: Number of the first row. Default: 0.
            probabilities_path: File for the true click probabilities of the rows, a
                float64 `(num_rows,)` array for `np.load`. Default: none.
            progress: Function that is called as `progress(rows_done, num_rows)` after
                every block.

        Returns:
            A `Report` with the best possible scores on these rows.

        Raises:
            ValueError: If an argument is out of range, or the rows do not fit the
                format.
        """
        self.check_text()
        blocks = self.blocks(num_rows, first_row)
        check_directory("path", path)
        if probabilities_path is not None:
            check_directory("probabilities_path", probabilities_path)
            if Path(probabilities_path).resolve() == Path(path).resolve():
                raise UserError(
                    "`probabilities_path` must differ from `path`. "
                    f"Received: {os.fspath(path)!r} for both."
                )
        score = Score()
        with contextlib.ExitStack() as stack:
            stack.enter_context(locks.locked_file(path))
            text_file = stack.enter_context(replacing(path))
            array_file = None
            if probabilities_path is not None:
                array_file = stack.enter_context(replacing(probabilities_path))
                header = {
                    "descr": "<f8",
                    "fortran_order": False,
                    "shape": (int(num_rows),),
                }
                np.lib.format.write_array_header_1_0(array_file, header)
            writer = self._writer(text_file)
            for block in blocks:
                writer.write(block)
                probabilities = self._count(block, score)
                if array_file is not None:
                    array_file.write(probabilities.astype("<f8").tobytes())
                if progress is not None:
                    progress(score.num_rows, num_rows)
            writer.close()
        return self._report(path, first_row, score)

    def _writer(self, file):
        return _TextWriter(file, self._text)

    def write_binary(
        self,
        folder: str | os.PathLike,
        num_rows: int,
        first_row: int = 0,
        rows_per_shard: int = 1 << 20,
        progress: Callable[[int, int], None] | None = None,
    ) -> Report:
        """Write rows as records (see `pipelines.records`), to train on.

        Args:
            folder: Folder to write; its manifest, written last, contains the arguments
                of the generator.
            num_rows: Number of rows to write, at least 1.
            first_row: Number of the first row. Default: 0.
            rows_per_shard: Rows in a shard. Default: 1,048,576.
            progress: Function that is called as `progress(rows_done, num_rows)` after
                every block.

        Returns:
            A `Report` with the best possible scores on these rows.

        Raises:
            ValueError: If an argument is out of range.
            FileExistsError: If the folder already contains records.
        """
        from pipelines.records import Writer

        blocks = self.blocks(num_rows, first_row)
        origin = {
            "generator": f"pipelines.synthetic.{type(self).__name__}",
            "arguments": json.loads(
                json.dumps(self._arguments(), default=lambda value: value.item())
            ),
            "first_row": int(first_row),
            "num_rows": int(num_rows),
        }
        score = Score()
        with Writer(
            folder, self._schema(), rows_per_shard=rows_per_shard, origin=origin
        ) as writer:
            for block in blocks:
                writer.append(*self._records(block))
                self._count(block, score)
                if progress is not None:
                    progress(score.num_rows, num_rows)
        return self._report(folder, first_row, score)

    def _count(self, block, score):
        probabilities = self._probabilities(block)
        score.add(block.labels, probabilities)
        return probabilities

    def _report(self, path, first_row, score):
        return Report(
            path=os.fspath(path),
            num_rows=score.num_rows,
            first_row=int(first_row),
            seed=int(self.seed),
            click_rate=score.click_rate,
            best_auc=score.auc,
            best_log_loss=score.log_loss,
            expected_log_loss=score.entropy,
        )


class _TextWriter:
    """Writes blocks as text."""

    def __init__(self, file, to_text):
        self._file, self._to_text = file, to_text

    def write(self, block):
        self._file.write(self._to_text(block))

    def close(self):
        pass


class BagSource(Source[Block]):
    """A source of `Block`s, whose labels do not depend on the features.

    A subclass also has `num_dense`, `vocabulary_sizes`, `click_rate` and `is_one_hot`;
    ids are written unchanged.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sparse features."""
        return tuple(f"C{i + 1}" for i in range(len(self.vocabulary_sizes)))

    def _probabilities(self, block):
        return np.full(len(block.labels), float(self.click_rate))

    def check_text(self) -> None:
        """Raise a `ValueError` if Criteo's text cannot represent the rows."""
        wanted = (distributions.NUM_INTEGERS, distributions.NUM_CATEGORIES)
        received = (self.num_dense, len(self.vocabulary_sizes))
        if received != wanted:
            raise UserError(
                f"Criteo TSV has {wanted[0]} dense and {wanted[1]} sparse features. "
                f"Received: num_dense={received[0]} and {received[1]} vocabulary "
                "sizes. Use `write_binary`, which takes any number."
            )
        largest = max(self.vocabulary_sizes)
        if largest > _MAX_RANKS:
            raise UserError(
                f"Ids in Criteo TSV must be below 2**{tsv.RANK_BITS}. Received: a "
                f"vocabulary size of {largest:,}. Use `write_binary`, which takes "
                "larger ids."
            )

    def _text(self, block: Block) -> bytes:
        integers = (block.dense * np.float32(TEXT_UNITS)).astype(np.int64)
        return tsv.encode_bags(block.labels, integers, block.ids, block.lengths)

    def _records(self, block: Block):
        if self.is_one_hot:
            return block.labels, block.dense, block.ids.reshape(block.lengths.shape)
        return block

    def _schema(self):
        from pipelines.records import Schema

        dense = tuple(f"I{i + 1}" for i in range(self.num_dense))
        return Schema(dense, self.names, self.vocabulary_sizes)
