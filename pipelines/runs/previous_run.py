"""Warm starts: a run that starts from a finished one, with another vocabulary."""

import dataclasses
import gc
import json
import os
from typing import Any

import numpy as np

import tf_dlrm
from pipelines.formats.fields import Values
from pipelines.formats.parser import Parser
from pipelines.runs.config import RunConfig
from pipelines.runs.defaults import COMPLETED
from pipelines.runs.folder import RunFolder
from pipelines.runtime import UserError
from pipelines.vocabulary import HashVocabulary, Vocabulary
from pipelines.vocabulary.hashing import HashNumbering
from pipelines.vocabulary.record_ids import RecordIds
from tf_dlrm.training import warm_start

_SAME = (
    "embedding_dim",
    "bottom_mlp_dims",
    "top_mlp_dims",
    "interaction",
    "cross_layers",
    "cross_rank",
    "batch_normalization",
    "shared_table",
    "optimizer",
    "negative_sampling_rate",  # the MLPs have learned the odds of the sample
)


def row_maps(
    old: Vocabulary | HashVocabulary, new: Vocabulary | HashVocabulary
) -> dict[str, np.ndarray]:
    """Return where the ids of each feature go when another vocabulary numbers them.

    Id 0, of empty and unknown values, stays.

    Args:
        old: The vocabulary that the rows were numbered by.
        new: The one that numbers them now.

    Returns:
        Of each feature an integer array `(ids of the old one,)`: the id in the new one,
        -1 where the value has none. For `tf_dlrm.training.warm_start`.

    Raises:
        ValueError: If a table hashes in one and not in the other, or they hash into
            other numbers of buckets, or put numbers into other buckets: then ids have
            nothing to do with each other.

    Example:

    >>> from pipelines.runs import row_maps
    >>> from pipelines.vocabulary import Vocabulary
    >>> yesterday = Vocabulary([[b"a", b"b", b"c"]] + [[]] * 25)
    >>> today = Vocabulary([[b"c", b"d", b"a"]] + [[]] * 25)
    >>> row_maps(yesterday, today)["C1"]
    array([ 0,  3, -1,  1])
    """
    if list(old.schema.tables) != list(new.schema.tables):
        raise UserError(
            f"The runs have different tables: {', '.join(old.schema.tables)} before, "
            f"{', '.join(new.schema.tables)} now."
        )
    if isinstance(old, RecordIds) or isinstance(new, RecordIds):
        if old.digest != new.digest:
            raise UserError(
                "Records without a vocabulary have ids of their own: a run on them "
                "starts only from one with the same tables."
            )
        sizes = zip(new.schema.tables, new.sizes, strict=True)
        return {name: np.arange(size) for name, size in sizes}
    if isinstance(old, HashVocabulary) != isinstance(new, HashVocabulary):
        kinds = [
            "hashes" if isinstance(vocabulary, HashVocabulary) else "lists values"
            for vocabulary in (old, new)
        ]
        raise UserError(
            f"A vocabulary that {kinds[0]} and one that {kinds[1]} have no ids in "
            "common: `hash_buckets` must be given in both runs, or in neither."
        )
    if isinstance(old, HashVocabulary):
        if old.sizes != new.sizes:
            raise UserError(
                "Hashing into another number of buckets gives every value another id: "
                f"`hash_buckets` was {_format(old.sizes)}, is {_format(new.sizes)}."
            )
        return {
            table.name: np.arange(table.vocabulary_size)
            for table in Parser(old).spec(embedding_dim=1).tables
        }
    _check_buckets(old.schema, new.schema)
    maps = {}
    for name, before, now in zip(
        new.schema.tables, old.numberings, new.numberings, strict=True
    ):
        if isinstance(before, HashNumbering) != isinstance(now, HashNumbering):
            kinds = "listed", "hashes"
            if isinstance(before, HashNumbering):
                kinds = "hashed", "lists"
            raise UserError(
                f"The table {name} {kinds[0]} values before and {kinds[1]} them now, "
                "so its ids have nothing in common: both schemas must give it the same "
                "`hash_buckets`, or none."
            )
        if isinstance(now, HashNumbering):
            if len(before) != len(now):
                raise UserError(f"The table {name} had other `hash_buckets` before.")
            maps[name] = np.arange(1 + len(now))
            continue
        before, now = before.load(), now.load()
        new_ids = now.find(Values(None, None, before.keys, before.texts))
        moved = np.zeros(1 + len(before), np.int64)
        ids = np.concatenate([before.key_ids, before.text_ids])
        moved[ids] = np.where(new_ids > 0, new_ids, -1)
        maps[name] = moved
    return maps


def _check_buckets(old, new):
    """Raise where a number of a bucket stands for other numbers than before."""
    before = {feature.name: feature for feature in old.sparse}
    for feature in new.sparse:
        was = before.get(feature.name, feature)
        for name in ("buckets", "width", "num_buckets"):
            values = getattr(was, name), getattr(feature, name)
            if values[0] != values[1]:
                raise UserError(
                    f"The feature {feature.name} has other buckets than before, whose "
                    f"rows mean other numbers: `{name}` was {values[0]}, is "
                    f"{values[1]}."
                )


class ColdStart:
    """The start of a run without a previous one: freshly initialized weights."""

    first_step = 0

    def complete(self, config: RunConfig) -> RunConfig:
        """Return the config as it is: nothing depends on a previous run."""
        return config

    def map_rows(self, vocabulary) -> None:
        """Do nothing."""

    def warm_up(self, model, vocabulary) -> dict[str, Any]:
        """Leave the model as it was initialized."""
        return {}


class PreviousRun:
    """The finished run that another one starts from.

    Args:
        path: Its folder.
        config: The config of the run that starts from it.
        first_step: Its number of steps if that is known; else its model is loaded
            now. Not under a strategy, which would make copies of it.

    Attributes:
        first_step: Steps that it was trained for.

    Raises:
        ValueError: If it is not a finished run, or has another architecture; each
            option that differs is named.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        config: RunConfig,
        first_step: int | None = None,
    ):
        self.path = os.path.abspath(path)
        self._folder, self._model, self._maps = check(path, config), None, None
        if first_step is None:
            self._load()
            first_step = int(self._model.optimizer.iterations.numpy())
        self.first_step = first_step

    def complete(self, config: RunConfig) -> RunConfig:
        """Return the config with this run's interaction, where none is given."""
        if config.interaction is not None:
            return config
        interaction = self._folder.read_config().interaction
        return dataclasses.replace(config, interaction=interaction)

    def _load(self):
        self._model = self._folder.load_model(self._folder.load_parser())

    def map_rows(self, vocabulary: Vocabulary | HashVocabulary) -> None:
        """Find where its rows go in tables of another vocabulary.

        Raises:
            ValueError: If the two vocabularies have no ids in common.
        """
        self._maps = row_maps(self._folder.read_vocabulary(), vocabulary)

    def warm_up(
        self, model: tf_dlrm.DLRM, vocabulary: Vocabulary | HashVocabulary
    ) -> dict[str, Any]:
        """Give a new model what this run's model has learned, and print a report.

        Args:
            model: The new model, compiled.
            vocabulary: Its vocabulary.

        Returns:
            What the new run records of it in its `config.json`.
        """
        if self._model is None:
            self._load()
        if self._maps is None:
            self.map_rows(vocabulary)
        report, self._model = warm_start(model, self._model, self._maps), None
        gc.collect()  # models are cycles; the tables should be gone before the training
        print(
            f"Warm start from {self.path}: MLPs, interaction and the state of their "
            f"optimizer as they were; steps count on from {report.iterations:,}. Rows "
            f"of tables, with their state:\n{report}",
            flush=True,
        )
        return {"first_step": self.first_step, "warm_started": report.describe()}


def find(
    path: str | os.PathLike | None, config: RunConfig, first_step: int | None = None
) -> ColdStart | PreviousRun:
    """Return the start of a run: that from the run in `path`, or a cold one.

    Args:
        path: Folder of the previous run, or `None`.
        config: The config of the run that starts.
        first_step: Steps of the previous run, if they are known.

    Raises:
        ValueError: If the run in `path` cannot be started from.
    """
    return ColdStart() if path is None else PreviousRun(path, config, first_step)


def check(path, config: RunConfig) -> RunFolder:
    """Check that a run can start from the one in a folder, without loading it.

    Raises:
        ValueError: If not.
    """
    folder = RunFolder(path)
    folder.check()
    before = folder.read_config()
    differing = [
        f"`{name}` was {_format(getattr(before, name))}, is "
        f"{_format(getattr(config, name))}"
        for name in _SAME
        if getattr(before, name) != getattr(config, name)
        and not (name in COMPLETED and getattr(config, name) is None)
    ]
    if differing:
        raise UserError(
            f"`warm_start`: {path} holds a run of another kind: "
            f"{'; '.join(differing)}. Leave them out: options start from those of "
            "that run."
        )
    return folder


def _format(value) -> str:
    if isinstance(value, list | tuple):
        if len(set(value)) == 1:
            return f"{value[0]:,}"
        return json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
