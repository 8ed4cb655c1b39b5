"""The data of a run: click logs, or the records that `prepare` wrote for them."""

import abc
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from pipelines import records
from pipelines.files import expand_paths
from pipelines.formats.diagnosis import no_rows
from pipelines.formats.parser import Parser
from pipelines.formats.reading import read
from pipelines.log_data import (
    build_vocabulary,
    check_rows,
    count_rows,
    describe_data,
    expander_of,
    load_vocabulary,
    rate_of,
)
from pipelines.multi_hot import MultiHot
from pipelines.quarantine import Quarantine
from pipelines.records.batch import concatenate
from pipelines.records.layout import Manifest
from pipelines.records.record_batches import open_rows
from pipelines.runs import defaults, growing_time
from pipelines.runs.config import RunConfig
from pipelines.runs.rows_in_memory import Rows, read_files
from pipelines.runtime import UserError
from pipelines.sampling import NegativeSampling, check_labels
from pipelines.schema import Schema
from pipelines.vocabulary import HashVocabulary, SharedHashVocabulary, Vocabulary
from pipelines.vocabulary.hashing import hash_vocabulary
from pipelines.vocabulary.schema_part import schema_of

COUNTS = (
    *("num_rows", "num_bad_rows", "num_negatives_left_out"),
    *("num_valid_rows", "num_bad_valid_rows"),
)


def make_quarantines(config, folder) -> tuple[Quarantine, Quarantine]:
    """Return quarantines for the bad rows of training and of validation."""
    share = config.max_bad_share
    paths = folder.bad_rows_path, folder.bad_valid_rows_path
    return Quarantine(paths[0], share), Quarantine(paths[1], share)


class TrainingData(abc.ABC):
    """The data of a run, opened and checked.

    Attributes:
        config: The `RunConfig`; `complete_config` fills in options that were left out.
        vocabulary: The vocabulary.
        expander: The `MultiHot` that expands the rows, or `None`.
        num_rows: Number of training rows in the first epoch.
        rows_by_epoch: Number of training rows in each epoch.
        negative_sampling_rate: Share of the negatives that the model is trained on.
        quarantines: The `Quarantine` objects that collect bad rows.
        comparison: Facts about the models that were compared, or `None`.
        callbacks: Keras callbacks that `fit` needs.
        validation_freq: Argument of `fit`: the epochs that end with a validation.
    """

    config: RunConfig
    vocabulary: Vocabulary | HashVocabulary | SharedHashVocabulary
    expander: MultiHot | None = None
    num_rows: int
    negative_sampling_rate: float
    quarantines: Sequence[Quarantine] = ()
    comparison: dict[str, Any] | None = None
    callbacks: Sequence[keras.callbacks.Callback] = ()
    validation_freq: int | list[int] = 1

    def complete_config(self, choose: Callable[..., Any] | None = None) -> None:
        """Choose the options that were left out by the number of rows; print them.

        Args:
            choose: Function of candidates and data that compares models, such as
                `model_choice.choose`; default: do not compare.
        """
        schema, config = self.vocabulary.schema, self.config
        num_rows, num_features = self.rows_to_choose_by, len(schema.dense)
        num_features += len(schema.sparse)
        num_values = sum(self.vocabulary.sizes) * config.embedding_dim
        candidates = defaults.make_candidates(
            config, num_rows, num_features, num_values
        )
        self.config = [*candidates.values()][-1]
        if choose is not None and len(candidates) > 1:
            choice = choose(candidates, self)
            self.config = candidates[choice.chosen]
            self.comparison = dataclasses.asdict(choice)
            print(choice.describe(), flush=True)
        min_count = getattr(self.vocabulary, "min_count", None)
        line = defaults.describe(config, self.config, num_rows, min_count)
        if line:
            print(line, flush=True)

    @property
    def rows_to_choose_by(self) -> int:
        """Number of different training rows, by which defaults are chosen."""
        return self.num_rows

    @property
    def rows_by_epoch(self) -> list[int]:
        return [self.num_rows] * self.config.epochs

    @property
    def num_steps(self) -> int:
        """Number of steps of the whole run."""
        return sum(math.ceil(n / self.config.batch_size) for n in self.rows_by_epoch)

    @property
    def monitor(self) -> str | None:
        """Name of the validation metric that selects the best model, or `None`."""
        return f"val_{self.config.monitor}"

    @property
    @abc.abstractmethod
    def origin(self) -> dict:
        """The facts that identify the data, for the run's `config.json`."""

    @abc.abstractmethod
    def train_dataset(self) -> tf.data.Dataset:
        """Return the training rows."""

    @abc.abstractmethod
    def valid_dataset(self) -> tf.data.Dataset | None:
        """Return the validation rows, or `None`."""

    @abc.abstractmethod
    def load_rows(self) -> Rows:
        """Return the rows to train models on that are compared, in memory."""

    def dataset_to_compare(self) -> tf.data.Dataset | None:
        """Return the validation rows to compare models on, or `None`."""
        return self.valid_dataset()

    @abc.abstractmethod
    def count_read(self) -> int:
        """Return an upper bound of the number of rows of the epoch read so far.

        It is exact when all rows are read.
        """

    @abc.abstractmethod
    def count(self, history: dict[str, list[float]]) -> dict[str, int]:
        """Return the numbers of rows, after all rows are read."""

    def describe_days(self, history: dict[str, list[float]]) -> dict:
        """Return the results of each day, if each file is a day."""
        return {}


class FileData(TrainingData):
    """The data of a run in labelled files.

    Args:
        config: The `RunConfig`.
        folder: The `RunFolder`, which also takes the bad rows.
        vocabulary: The vocabulary, or `None`.
        schema: The columns; default: the schema of the vocabulary, or
            `Schema.criteo()`.
    """

    def __init__(self, config, folder, vocabulary, schema: Schema | None):
        self.config = config
        self.quarantines = make_quarantines(config, folder)
        self._bad, self._bad_valid = self.quarantines
        self.negative_sampling_rate = config.negative_sampling_rate
        self.schema = schema_of(schema, vocabulary)
        check_labels(config.negative_sampling_rate, self.schema.label.soft)

    def _make_vocabulary(self, paths, quarantine):
        config = self.config
        if config.hash_buckets is not None:
            return hash_vocabulary(
                config.hash_buckets, config.shared_table, self.schema
            )
        vocabulary = Vocabulary.without_values(self.schema)
        if vocabulary is not None:  # no pass over the rows
            return vocabulary
        limits = config.min_count, config.max_vocabulary_size
        return build_vocabulary(paths, *limits, quarantine, self.schema)

    def _read(self, paths, sampling):
        """Return the training rows of files."""
        config = self.config
        return read(
            paths,
            Parser(self.vocabulary),
            config.batch_size,
            shuffle=config.shuffle,
            seed=config.seed,
            quarantine=self._bad,
            negative_sampling=sampling,
        )

    def _load(self, paths, sampling):
        share = self.config.max_bad_share
        return read_files(paths, self.vocabulary, sampling, share)

    def _count_rows(self, left_out: int) -> tuple[int, ...]:
        """Return the numbers of rows that were read so far, as `COUNTS` names them."""
        train, valid = (q.num_rows - q.num_bad for q in self.quarantines)
        bad, bad_valid = (q.num_bad for q in self.quarantines)
        return train - left_out, bad, left_out, valid, bad_valid


class LogData(FileData):
    """The data of a run in labelled files.

    Args:
        config: The `RunConfig`.
        train_paths: Files to train on.
        valid_paths: Files for validation, or `None`.
        folder: The `RunFolder`, which also takes the bad rows.
        vocabulary: The vocabulary; `None`: build one with the options of the config.
        num_rows: Number of training rows in an epoch, if known; `None`: count them.
        schema: The columns; default: the schema of the vocabulary, or
            `Schema.criteo()`.
    """

    def __init__(
        self,
        config,
        train_paths,
        valid_paths,
        folder,
        vocabulary=None,
        num_rows: int | None = None,
        schema: Schema | None = None,
    ):
        self._train = expand_paths(train_paths)
        if schema is not None:
            growing_time.check(schema, is_progressive=False)
        self._valid = expand_paths(valid_paths) if valid_paths else None
        super().__init__(config, folder, vocabulary, schema)
        self._sampling = _sampling_of(config, self.schema)
        if self._valid:
            # Check every validation row before hours of training, not after.
            check_rows(self._valid, self._bad_valid, self.schema)
        self.vocabulary = vocabulary or self._make_vocabulary(self._train, self._bad)
        check_shared(config, self.vocabulary, "the vocabulary")
        self.num_rows = num_rows or getattr(self.vocabulary, "num_rows", 0)
        if num_rows:
            return
        if vocabulary is not None or not self.num_rows or self._sampling:
            self.num_rows = count_rows(self._train, self.schema, self._sampling)
        if not self.num_rows:
            nothing = (
                "No training rows are left: negative sampling dropped all rows. Raise "
                "`negative_sampling_rate`."
            )
            raise UserError(
                nothing if self._sampling else no_rows(self._train, self.schema)
            )

    @property
    def origin(self) -> dict:
        """Facts that identify the files, for the run's `config.json`."""
        return describe_data(self._train, self._valid)

    def train_dataset(self):
        """Return the training rows of an epoch."""
        return self._read(self._train, self._sampling)

    def valid_dataset(self):
        """Return the validation rows, or `None`."""
        if not self._valid:
            return None
        parser, size = Parser(self.vocabulary), self.config.batch_size
        return read(self._valid, parser, size, quarantine=self._bad_valid)

    def load_rows(self):
        """Return the training rows, in memory."""
        return self._load(self._train, self._sampling)

    def count_read(self) -> int:
        """Return how many rows of the epoch were read so far, or more."""
        return self.count({})["num_rows"]

    def count(self, history) -> dict:
        """Return the numbers of rows, when all are read."""
        left_out = self._sampling.num_left_out if self._sampling else 0
        return dict(zip(COUNTS, self._count_rows(left_out), strict=True))


class RecordData(TrainingData):
    """The data of a run in a folder of records: split `"train"` and, if any, `"valid"`.

    Args:
        config: The `RunConfig`.
        records_folder: The folder that `prepare` wrote.

    Raises:
        ValueError: If the folder has no vocabulary or not that of its records, if
            `shared_table` is set but the records have a table for each feature, or if
            the config samples negatives that were already sampled.
    """

    def __init__(self, config, records_folder):
        self._folder, self.config = records_folder, config
        self._manifest = Manifest.load(records_folder)
        check_sampled_once(config, records_folder, self._manifest)
        self.vocabulary = load_vocabulary(records_folder, self._manifest)
        growing_time.check(self.vocabulary.schema, is_progressive=False)
        check_shared(config, self.vocabulary, records_folder)
        self.num_rows = self._manifest.num_rows("train")
        self.negative_sampling_rate = rate_of(self._manifest)
        self._sampling = _sampling_of(config, self.vocabulary.schema)
        if self._sampling:
            self.negative_sampling_rate = config.negative_sampling_rate
            self.num_rows = open_rows(
                records_folder, self._manifest, "train", self._sampling
            ).num_rows
        self._has_valid = "valid" in self._manifest.splits
        self.expander = expander_of(self._manifest)

    @property
    def origin(self) -> dict:
        """Facts that identify the folder, for the run's `config.json`."""
        return describe_data(self._folder, None)

    def train_dataset(self):
        """Return the training rows of an epoch."""
        config = self.config
        return records.read(
            self._folder,
            config.batch_size,
            config.shuffle,
            seed=config.seed,
            negative_sampling=self._sampling,
        )

    def valid_dataset(self):
        """Return the validation rows, or `None`."""
        if not self._has_valid:
            return None
        return records.read(self._folder, self.config.batch_size, split="valid")

    def load_rows(self):
        """Return the training rows, in memory."""
        rows = open_rows(self._folder, self._manifest, "train", self._sampling)
        return Rows(concatenate(rows.read(0, rows.num_rows)))

    def count_read(self) -> int:
        """Return the number of rows of the epoch."""
        return self.num_rows

    def count(self, history) -> dict:
        """Return the numbers of rows."""
        num_valid = self._manifest.num_rows("valid") if self._has_valid else 0
        left_out = self._manifest.num_rows("train") - self.num_rows
        counts = self.num_rows, 0, left_out, num_valid, 0
        return dict(zip(COUNTS, counts, strict=True))


def check_sampled_once(config, folder, manifest: Manifest) -> None:
    """Check that negatives are not sampled a second time.

    Raises:
        ValueError: If the config samples negatives that `prepare` already sampled.
    """
    prepared = rate_of(manifest)
    if config.negative_sampling_rate < 1 and prepared < 1:
        raise UserError(
            f"The negatives in {folder} were already sampled by `prepare` at "
            f"negative_sampling_rate={prepared:g}; they cannot be sampled again at "
            f"negative_sampling_rate={config.negative_sampling_rate:g}. "
            "Leave `negative_sampling_rate` out, or prepare all rows."
        )


def check_shared(config, vocabulary, place) -> None:
    """Check that a vocabulary has one shared table if the config requires it.

    Raises:
        ValueError: If `shared_table` is set but the vocabulary has a table for each
            feature.
    """
    if config.shared_table and not vocabulary.is_shared:
        raise UserError(
            f"`shared_table=True`: {place} has a table for each feature. Prepare it "
            f"with `hash_buckets={config.hash_buckets}` and `shared_table=True`, or "
            "train with `shared_table=False`."
        )


def _sampling_of(config, schema) -> NegativeSampling | None:
    rate = config.negative_sampling_rate
    check_labels(rate, schema.label.soft)
    return NegativeSampling(rate, config.seed) if rate < 1 else None
