"""Progressive validation: each day is predicted before it is trained on.

Every file is a day, and every day an epoch of `fit`: the model is trained on day d and
evaluated on day d + 1 as it then is. So a checkpoint's epoch and batch say all.

Reference:
    Blum et al. 1999, Beating the hold-out: bounds for k-fold and progressive
    cross-validation; McMahan et al. 2013, Ad click prediction: a view from the
    trenches, section 5.
"""

import dataclasses
import functools
import os

import keras

from pipelines.files import Paths, expand_paths
from pipelines.formats.parser import Parser
from pipelines.formats.reading import read
from pipelines.log_data import build_vocabulary, count_rows, describe_data, find_records
from pipelines.quarantine import Quarantine
from pipelines.runs.data import TrainingData, make_quarantines
from pipelines.runtime import UserError, remote_files
from pipelines.sampling import NegativeSampling, check_labels
from pipelines.schema import Schema
from pipelines.text_tables import align
from pipelines.vocabulary.hashing import hash_vocabulary
from pipelines.vocabulary.schema_part import schema_of
from tf_dlrm import training
from tf_dlrm.training.checkpoints import Position, ResumableInput

_COUNTS = ("num_rows", "num_bad_rows", "num_negatives_left_out")
_VALID_COUNTS = ("val_num_rows", "val_num_bad_rows")


def check(config, train_paths: Paths, valid_paths: Paths | None) -> list[str]:
    """Return the files of the days, after checking that they can be days.

    Raises:
        ValueError: If not; the message says what to do.
    """
    if (config.epochs or 1) > 1:
        raise UserError(
            "`progressive=True` is one pass over the days: in a second one every row "
            f"would have been seen before. Leave `epochs` out. Received: "
            f"epochs={config.epochs}"
        )
    if valid_paths:
        raise UserError(
            "`progressive=True` validates on the next day of `train_paths`: leave "
            "`valid_paths` out, or name its files last in `train_paths`."
        )
    for name in ("target_auc", "patience"):
        if getattr(config, name) is not None:
            raise UserError(
                f"`{name}` compares evaluations on the same rows, and "
                "`progressive=True` makes each on another day. Leave one of them out."
            )
    paths = [train_paths] if isinstance(train_paths, str | os.PathLike) else train_paths
    for path in paths:
        if find_records(path) is not None:
            raise UserError(
                "`progressive=True` takes files of lines, one a day; "
                f"{path} holds records. Name the files that it was prepared from (and, "
                f"for the same ids, the vocabulary {path}/vocabulary.tsv)."
            )
    days = expand_paths(train_paths)
    if len(days) < 2:
        raise UserError(
            "`progressive=True` needs at least two days, each a file of `train_paths`. "
            f"Received: {', '.join(days)}"
        )
    return days


class DayData(TrainingData):
    """Labelled files of lines, each a day.

    The vocabulary, where none is given, is made of the first day: a later one would
    tell the model of values that nobody had seen yet. Values that come later share row
    0; hashing gives them rows of their own.

    Args:
        config: The `RunConfig`.
        train_paths: The files in the order of the days.
        valid_paths: `None`: each day is validated on the next.
        folder: The `RunFolder`, for bad rows.
        vocabulary: `Vocabulary` or `HashVocabulary`; `None` makes one.
        rows_by_epoch: Rows of each day, where they were counted before.
        schema: The columns; `None`: the vocabulary's, or `Schema.criteo()`.
    """

    monitor = None  # losses on different days do not tell which model is best

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
        self.days = check(config, train_paths, valid_paths)
        self.config = dataclasses.replace(config, epochs=1)
        self.quarantines = make_quarantines(config, folder)
        self._bad, self._bad_valid = self.quarantines
        self.negative_sampling_rate = config.negative_sampling_rate
        self._sampling = [None] * len(self.days)
        if config.negative_sampling_rate < 1:
            self._sampling = [
                NegativeSampling(config.negative_sampling_rate, config.seed + day)
                for day in range(len(self.days))
            ]
        self.schema = schema_of(schema, vocabulary)
        check_labels(config.negative_sampling_rate, self.schema.label.soft)
        self.vocabulary = vocabulary or self._make_vocabulary()
        self._rows_by_epoch = rows_by_epoch or [
            count_rows([day], self.schema, sampling)
            for day, sampling in zip(self.days, self._sampling, strict=True)
        ]
        self.num_rows = self._rows_by_epoch[0]
        self._evaluated = Position()
        self.callbacks = (_Days(self._evaluated, self._count),)
        # After the last day there is none to evaluate on.
        self.validation_freq = list(range(1, len(self.days)))

    @property
    def rows_by_epoch(self) -> list[int]:
        return self._rows_by_epoch

    def _make_vocabulary(self):
        config = self.config
        if config.hash_buckets is not None:
            return hash_vocabulary(
                config.hash_buckets, config.shared_table, self.schema
            )
        print(
            f"The vocabulary is built from the first day, {self.days[0]}: values that "
            "come later share row 0. Hashing gives them rows of their own.",
            flush=True,
        )
        return build_vocabulary(
            self.days[:1],
            config.min_count,
            config.max_vocabulary_size,
            Quarantine(max_bad_share=config.max_bad_share),
            self.schema,
        )

    @property
    def origin(self) -> dict:
        """The facts that identify the files, for the run's `config.json`."""
        return {**describe_data(self.days, None), "progressive": True}

    def train_dataset(self):
        """Return the days; epoch d is day d, also after a resume."""
        config = self.config
        return _join_days(
            [
                read(
                    day,
                    Parser(self.vocabulary),
                    config.batch_size,
                    shuffle=config.shuffle,
                    seed=config.seed,
                    quarantine=self._bad,
                    negative_sampling=sampling,
                )
                for day, sampling in zip(self.days, self._sampling, strict=True)
            ]
        )

    def valid_dataset(self):
        """Return the day after the one that is trained on."""
        parser, size = Parser(self.vocabulary), self.config.batch_size
        days = [
            read(day, parser, size, seed=0, quarantine=self._bad_valid)
            for day in self.days
        ]
        return _join_days(days).resumable_input.make(self._evaluated, 0)

    def _count(self):
        """Return the rows that were read in this process so far."""
        left_out = sum(sampling.num_left_out for sampling in self._sampling if sampling)
        return {
            "num_rows": self._bad.num_rows - self._bad.num_bad - left_out,
            "num_bad_rows": self._bad.num_bad,
            "num_negatives_left_out": left_out,
            "val_num_rows": self._bad_valid.num_rows - self._bad_valid.num_bad,
            "val_num_bad_rows": self._bad_valid.num_bad,
        }

    def count_read(self) -> int:
        """Return the rows of the day read so far, or more; exact at its end."""
        return self._count()["num_rows"] - self.callbacks[0].num_rows_before

    def count(self, history: dict[str, list[float]]) -> dict:
        """Return the numbers of rows, those before a resume included."""
        names = [*_COUNTS, "num_valid_rows", "num_bad_valid_rows"]
        columns = [history.get(name, []) for name in (*_COUNTS, *_VALID_COUNTS)]
        return {n: int(sum(column)) for n, column in zip(names, columns, strict=True)}

    def describe_days(self, history: dict[str, list[float]]) -> dict[str, list[dict]]:
        """Return the metrics of each day but the first before it was trained on.

        For a run that ended early, they are those of the days evaluated by then.
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
    """Turn to the next day, and note how many rows each had.

    The numbers go into the epoch's results, and so into the checkpoint: a run that is
    resumed does not read earlier days again.
    """

    def __init__(self, evaluated: Position, count):
        super().__init__()
        self._evaluated, self._count = evaluated, count
        self._before = count()

    @property
    def num_rows_before(self) -> int:
        """Rows that were read before the day."""
        return self._before["num_rows"]

    def on_epoch_begin(self, epoch, logs=None):
        self._evaluated.epoch, self._before = epoch + 1, self._count()
        training.forget_validation_size(self.model)

    def on_epoch_end(self, epoch, logs=None):
        now = self._count()
        for name, count in now.items():
            if name in _COUNTS or "val_loss" in logs:
                logs[name] = float(count - self._before[name])


class _OnDay:
    """A position, for the dataset of one day: on another day there is nothing."""

    def __init__(self, position: Position, day: int):
        self._position, self._day = position, day

    def begins(self):
        return self._position.begins().filter(lambda epoch, _: epoch == self._day)


def _join_days(datasets):
    """One dataset whose epoch d is that of day d."""
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
