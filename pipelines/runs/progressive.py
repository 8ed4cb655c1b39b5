"""Progressive validation: evaluate on each day before training on it.

Each file is a day, and each day is an epoch of `fit`: the model is trained on day d and
then evaluated on day d + 1. The epoch and batch of a checkpoint are thus its full
position.

Reference:
    Blum et al. 1999, Beating the hold-out: bounds for k-fold and progressive
    cross-validation; McMahan et al. 2013, Ad click prediction: a view from the
    trenches, section 5.
"""

import dataclasses
import functools
import math
import os

import keras
import numpy as np

from pipelines.files import Paths, expand_paths
from pipelines.formats.parser import Parser
from pipelines.formats.reading import read
from pipelines.formats.scanning import ChunkReader
from pipelines.log_data import count_rows, describe_data, find_records
from pipelines.quarantine import Quarantine
from pipelines.runs import growing_time
from pipelines.runs.data import COUNTS, FileData
from pipelines.runtime import UserError, remote_files
from pipelines.sampling import NegativeSampling
from pipelines.schema import Schema
from pipelines.text_tables import align
from pipelines.vocabulary import Vocabulary
from tf_dlrm import training
from tf_dlrm.training.checkpoints import Position, ResumableInput

_COUNTS = COUNTS[:3]
_VALID_COUNTS = ("val_num_rows", "val_num_bad_rows")


def check(config, train_paths: Paths, valid_paths: Paths | None) -> list[str]:
    """Check the options of a progressive run, and return the files of its days.

    Raises:
        ValueError: If an option does not fit; the message says what to do.
    """
    if (config.epochs or 1) > 1:
        raise UserError(
            "`progressive=True` makes one pass over the days: in a second pass the "
            "model would have seen every row. Leave `epochs` out. Received: "
            f"epochs={config.epochs}"
        )
    if valid_paths:
        raise UserError(
            "`progressive=True` validates on the next day of `train_paths`: leave "
            "`valid_paths` out, or move its files to the end of `train_paths`."
        )
    comparing = {
        "`target_auc`": config.target_auc is not None,
        "`patience`": config.patience is not None,
        "`learning_rate_decay` = 'plateau'": config.learning_rate_decay == "plateau",
    }
    for option, is_set in comparing.items():
        if is_set:
            raise UserError(
                f"{option} compares evaluations on the same rows, but "
                "`progressive=True` evaluates on different days. Leave one of them out."
            )
    paths = [train_paths] if isinstance(train_paths, str | os.PathLike) else train_paths
    for path in paths:
        if find_records(path) is not None:
            raise UserError(
                "`progressive=True` needs one file of lines for each day, but "
                f"{path} contains records. Name the files that it was prepared from "
                f"(and for the same ids, the vocabulary {path}/vocabulary.tsv)."
            )
    days = expand_paths(train_paths)
    if len(days) < 2:
        raise UserError(
            "`progressive=True` needs at least two files in `train_paths`, one for "
            f"each day. Received: {', '.join(days)}"
        )
    return days


def in_order_of_time(days: list[str], schema: Schema) -> list[str]:
    """Return files in the order of their event times, if the schema names any.

    The time of a file is the median of those in its first block of rows.
    """
    if schema.time is None:
        return days
    return sorted(days, key=times_of(days, schema).__getitem__)


def times_of(days: list[str], schema: Schema) -> dict[str, float]:
    """Return the median event time in the first block of rows of each file."""
    reader, times = ChunkReader(schema), {}
    for day in days:
        chunk = reader.read(day, 0)
        rows = reader.take_apart(day, chunk.content) if chunk.size else None
        is_known = rows is not None and len(rows.times)
        times[day] = float(np.median(rows.times)) if is_known else math.inf
    return times


class DayData(FileData):
    """Labelled files of lines, one for each day.

    The default vocabulary is built from the first day only: one built from later days
    would reveal values that had not occurred yet. Values that occur later share row 0;
    with hashing they have their own rows.

    Args:
        config: The `RunConfig`.
        train_paths: The files of the days: in their order, or if the schema has a
            `time`, in any order.
        valid_paths: Must be `None`: each day is validated on the next one.
        folder: The `RunFolder`, which also takes the bad rows.
        vocabulary: `Vocabulary` or `HashVocabulary`; `None`: build one.
        rows_by_epoch: Number of rows of each day, if known.
        schema: The columns; default: the schema of the vocabulary, or
            `Schema.criteo()`.
    """

    monitor = None  # losses on different days cannot select the best model

    def __init__(
        self,
        config,
        train_paths,
        valid_paths,
        folder,
        vocabulary=None,
        rows_by_epoch: list[int] | None = None,
        schema: Schema | None = None,
    ):
        self._listed = check(config, train_paths, valid_paths)
        config = dataclasses.replace(config, epochs=1)
        super().__init__(config, folder, vocabulary, schema)
        self.days = in_order_of_time(self._listed, self.schema)
        if self.days != self._listed:
            names = ", ".join(map(remote_files.name_of, self.days))
            print(f"Days, in the order of {self.schema.time}: {names}", flush=True)
        self._sampling = [None] * len(self.days)
        if config.negative_sampling_rate < 1:
            self._sampling = [
                NegativeSampling(config.negative_sampling_rate, config.seed + day)
                for day in range(len(self.days))
            ]
        self.vocabulary = vocabulary or self._vocabulary_of_first_day()
        self._rows_by_epoch = rows_by_epoch or [
            count_rows([day], self.schema, sampling)
            for day, sampling in zip(self.days, self._sampling, strict=True)
        ]
        self.num_rows = self._rows_by_epoch[0]
        self._evaluated = Position()
        times = None
        if growing_time.is_used(self.schema):
            growing_time.check(self.schema, is_progressive=True)
            by_day = times_of(self.days, self.schema)
            times = [by_day[day] for day in self.days]
        self.callbacks = (_Days(self._evaluated, self._count, times),)
        # No day follows the last one to evaluate on.
        self.validation_freq = list(range(1, len(self.days)))

    @property
    def rows_to_choose_by(self) -> int:
        """Number of rows of all days."""
        return sum(self._rows_by_epoch)

    @property
    def rows_by_epoch(self) -> list[int]:
        return self._rows_by_epoch

    def _vocabulary_of_first_day(self):
        is_listed = Vocabulary.without_values(self.schema) is None
        if self.config.hash_buckets is None and is_listed:
            print(
                f"The vocabulary is built from the first day, {self.days[0]}: values "
                "that first occur later share row 0. With hashing, or `growing` in the "
                "schema, they have their own rows.",
                flush=True,
            )
        quarantine = Quarantine(max_bad_share=self.config.max_bad_share)
        return self._make_vocabulary(self.days[:1], quarantine)

    @property
    def origin(self) -> dict:
        """Facts that identify the files, for the run's `config.json`."""
        return {**describe_data(self._listed, None), "progressive": True}

    def train_dataset(self):
        """Return the days as one dataset: epoch d is day d, also after a resume."""
        days = zip(self.days, self._sampling, strict=True)
        return _join_days([self._read(day, sampling) for day, sampling in days])

    def valid_dataset(self):
        """Return the rows of the day that follows the current training day."""
        parser, size = Parser(self.vocabulary), self.config.batch_size
        days = [
            read(day, parser, size, seed=0, quarantine=self._bad_valid)
            for day in self.days
        ]
        return _join_days(days).resumable_input.make(self._evaluated, 0)

    def load_rows(self):
        """Return the rows of the first day, in memory."""
        return self._load(self.days[:1], self._sampling[0])

    def dataset_to_compare(self):
        """Return `None`: models are compared on a part of the first day."""
        return None

    def _count(self):
        """Return the number of rows that this process has read so far."""
        left_out = sum(sampling.num_left_out for sampling in self._sampling if sampling)
        counts = self._count_rows(left_out)
        return dict(zip((*_COUNTS, *_VALID_COUNTS), counts, strict=True))

    def count_read(self) -> int:
        """Return the number of rows of the day read so far, or slightly more."""
        return self._count()["num_rows"] - self.callbacks[0].num_rows_before

    def count(self, history: dict[str, list[float]]) -> dict:
        """Return the numbers of rows, including those before a resume."""
        columns = [history.get(name, []) for name in (*_COUNTS, *_VALID_COUNTS)]
        return {n: int(sum(column)) for n, column in zip(COUNTS, columns, strict=True)}

    def describe_days(self, history: dict[str, list[float]]) -> dict[str, list[dict]]:
        """Return the metrics of each day before training on it, except the first day.

        A run that ended early has only the days that were evaluated by then.
        """
        names = ("auc", "log_loss", "normalized_entropy", "calibration")
        evaluated = history.get("val_num_rows", [])
        days = [
            {
                "day": remote_files.name_of(day),
                "num_rows": int(num_rows),
                **{name: history[f"val_{name}"][i] for name in names},
            }
            for i, (day, num_rows) in enumerate(zip(self.days[1:], evaluated))
        ]
        return {"days": days}


class _Days(keras.callbacks.Callback):
    """Move on to the next day, and record the number of rows of each day.

    The numbers are part of the epoch's results and so of the checkpoint: a resumed run
    does not read earlier days again.
    """

    def __init__(self, evaluated: Position, count, times: list[float] | None = None):
        super().__init__()
        self._times = times
        self._evaluated, self._count = evaluated, count
        self._before = count()

    @property
    def num_rows_before(self) -> int:
        """Number of rows read before the current day."""
        return self._before["num_rows"]

    def on_epoch_begin(self, epoch, logs=None):
        self._evaluated.epoch, self._before = epoch + 1, self._count()
        training.forget_validation_size(self.model)
        if self._times is not None and math.isfinite(self._times[epoch]):
            self.model.embedding.advance_clock(int(self._times[epoch]))

    def on_epoch_end(self, epoch, logs=None):
        now = self._count()
        for name, count in now.items():
            if name in _COUNTS or "val_loss" in logs:
                logs[name] = float(count - self._before[name])


class _OnDay:
    """A position for the dataset of one day; that dataset is empty on other days."""

    def __init__(self, position: Position, day: int):
        self._position, self._day = position, day

    def begins(self):
        return self._position.begins().filter(lambda epoch, _: epoch == self._day)


def _join_days(datasets):
    """Return one dataset whose epoch d is the dataset of day d."""
    inputs = [dataset.resumable_input for dataset in datasets]

    def make(position, seed):
        days = [
            each.make(_OnDay(position, day), seed) for day, each in enumerate(inputs)
        ]
        return functools.reduce(lambda all_days, day: all_days.concatenate(day), days)

    joined = functools.reduce(lambda all_days, day: all_days.concatenate(day), datasets)
    return ResumableInput(
        {"days": [each.description for each in inputs]},
        inputs[0].seed,
        make,
        epochs_differ=True,
        files=tuple(path for each in inputs for path in each.files),
    ).attach(joined)


def print_report(days: list[dict]) -> None:
    """Print the report of `DayData` as a table."""
    names = ("auc", "log_loss", "normalized_entropy", "calibration")
    rows = [["day, before training on it", "rows", *names]]
    rows += [
        [day["day"], f"{day['num_rows']:,}", *(f"{day[name]:.5f}" for name in names)]
        for day in days
    ]
    print(*align(rows), sep="\n")
