"""Warm starts: start a run from a finished one, with another vocabulary."""

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
from pipelines.runs.defaults import CHOSEN, is_open
from pipelines.runs.folder import RunFolder
from pipelines.runtime import UserError
from pipelines.vocabulary import HashVocabulary, Vocabulary
from pipelines.vocabulary.hashing import GrowingNumbering, HashNumbering
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
    "negative_sampling_rate",  # the MLPs learned the odds of the sample
)


def row_maps(
    old: Vocabulary | HashVocabulary, new: Vocabulary | HashVocabulary
) -> dict[str, np.ndarray]:
    """Return the new id of each old id of each feature, after a change of vocabulary.

    Id 0, which stands for empty and unknown values, stays the same.

    Args:
        old: The vocabulary that numbered the values before.
        new: The vocabulary that numbers them now.

    Returns:
        For each feature an integer array `(number of old ids,)` of new ids, -1 for
        values without a new id. Argument of `tf_dlrm.training.warm_start`.

    Raises:
        ValueError: If a table is hashed in only one of the vocabularies, or if the
            numbers of hash buckets or the buckets of numbers differ; the ids then have
            nothing in common.

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
                "Records without a vocabulary have their own ids: a run on them can "
                "only start from a run with the same tables."
            )
        sizes = zip(new.schema.tables, new.sizes, strict=True)
        return {name: np.arange(size) for name, size in sizes}
    if isinstance(old, HashVocabulary) != isinstance(new, HashVocabulary):
        kinds = [
            "hashes values" if isinstance(vocabulary, HashVocabulary) else "lists them"
            for vocabulary in (old, new)
        ]
        raise UserError(
            f"A vocabulary that {kinds[0]} and one that {kinds[1]} have no ids in "
            "common: set `hash_buckets` in both runs or in neither."
        )
    if isinstance(old, HashVocabulary):
        if old.sizes != new.sizes:
            raise UserError(
                "Hashing into a different number of buckets changes the id of every "
                f"value: `hash_buckets` was {_format(old.sizes)}, now "
                f"{_format(new.sizes)}."
            )
        return {
            table.name: np.arange(table.vocabulary_size)
            for table in Parser(old).spec(embedding_dim=1).tables
            if table.growing is None  # its ids are copied
        }
    _check_buckets(old.schema, new.schema)
    maps = {}
    for name, before, now in zip(
        new.schema.tables, old.numberings, new.numberings, strict=True
    ):
        is_growing = [isinstance(n, GrowingNumbering) for n in (before, now)]
        if all(is_growing) or (is_growing[0] and not isinstance(now, HashNumbering)):
            continue  # by ids, see `warm_up`
        if is_growing[1] and not isinstance(before, HashNumbering):
            maps[name] = _values_by_id(before.load(), now)
            continue
        if isinstance(before, HashNumbering) != isinstance(now, HashNumbering) or any(
            is_growing
        ):
            kinds = "listed", "hashes"
            if isinstance(before, HashNumbering):
                kinds = "hashed", "lists"
            raise UserError(
                f"The table {name} {kinds[0]} values before and {kinds[1]} them now, "
                "so its ids have nothing in common: both schemas must set the same "
                "`hash_buckets` for it, or none."
            )
        if isinstance(now, HashNumbering):
            if len(before) != len(now):
                raise UserError(
                    f"The table {name} had a different number of `hash_buckets` "
                    "before: both schemas must set the same number."
                )
            maps[name] = np.arange(1 + len(now))
            continue
        before, now = before.load(), now.load()
        new_ids = now.find(Values(None, None, before.keys, before.texts))
        moved = np.zeros(1 + len(before), np.int64)
        ids = np.concatenate([before.key_ids, before.text_ids])
        moved[ids] = np.where(new_ids > 0, new_ids, -1)
        maps[name] = moved
    return maps


def _values_by_id(listed, hashed) -> np.ndarray:
    """Return the hashed id of each id of a listed vocabulary; 0 stays 0."""
    found = hashed.find(Values(None, None, listed.keys, listed.texts))
    ids = np.zeros(1 + len(listed), np.int64)
    ids[np.concatenate([listed.key_ids, listed.text_ids])] = found
    return ids


def _maps_of_growing(model, old, new) -> dict[str, np.ndarray]:
    """Return the new ids of rows of growing tables that are listed from now on."""
    maps = {}
    numberings = zip(old.schema.tables, old.numberings, new.numberings, strict=True)
    for name, before, now in numberings:
        is_growing = [isinstance(n, GrowingNumbering) for n in (before, now)]
        if not is_growing[0] or is_growing[1]:
            continue
        rows = model.embedding.find(name, _values_by_id(now.load(), before))
        maps[name] = np.full(before.rows, -1, np.int64)
        maps[name][rows[rows >= 0]] = np.flatnonzero(rows >= 0)
    return maps


def _check_buckets(old, new):
    """Raise an error if the buckets of a feature cover other numbers than before."""
    before = {feature.name: feature for feature in old.sparse}
    for feature in new.sparse:
        was = before.get(feature.name, feature)
        for name in ("buckets", "width", "num_buckets"):
            values = getattr(was, name), getattr(feature, name)
            if values[0] != values[1]:
                raise UserError(
                    f"The feature {feature.name} has other buckets than before, so "
                    f"their rows mean other numbers: `{name}` was {values[0]}, now "
                    f"{values[1]}."
                )


class ColdStart:
    """The start of a run without a previous run: newly initialized weights."""

    first_step = 0

    def complete(self, config: RunConfig) -> RunConfig:
        """Return the config unchanged: there is no previous run to depend on."""
        return config

    def map_rows(self, vocabulary) -> None:
        """Do nothing."""

    def warm_up(self, model, vocabulary) -> dict[str, Any]:
        """Leave the initial weights of the model unchanged."""
        return {}


class PreviousRun:
    """The finished run that another one starts from.

    Args:
        path: Folder of the previous run.
        config: Config of the run that starts from it.
        first_step: Number of steps of the previous run, if known; otherwise its model
            is loaded now. That must not happen under a strategy, which would make
            copies of the model.

    Attributes:
        first_step: Number of steps that the previous run was trained for.

    Raises:
        ValueError: If it is not a finished run or has another architecture; the message
            names each option that differs.
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
        """Return the config with the model that this run chose, if it left it open."""
        if config.interaction is not None:
            return config
        before = self._folder.read_config()
        chosen = [
            name
            for name in CHOSEN
            if name == "interaction" or is_open(name, config, getattr(before, name))
        ]
        return dataclasses.replace(config, **{n: getattr(before, n) for n in chosen})

    def _load(self):
        self._model = self._folder.load_model(self._folder.load_parser())

    def map_rows(self, vocabulary: Vocabulary | HashVocabulary) -> None:
        """Map the rows of the previous run to the tables of another vocabulary.

        Raises:
            ValueError: If the two vocabularies have no ids in common.
        """
        self._maps = row_maps(self._folder.read_vocabulary(), vocabulary)

    def warm_up(
        self, model: tf_dlrm.DLRM, vocabulary: Vocabulary | HashVocabulary
    ) -> dict[str, Any]:
        """Copy the weights of this run's model to a new model, and print a report.

        Args:
            model: The new model, compiled.
            vocabulary: The vocabulary of the new model.

        Returns:
            Facts about the warm start, for the `config.json` of the new run.
        """
        if self._model is None:
            self._load()
        if self._maps is None:
            self.map_rows(vocabulary)
        old = self._folder.read_vocabulary()
        if old.schema.has_growing:
            own = _maps_of_growing(self._model, old, vocabulary)
            self._maps = {**self._maps, **own}
        report, self._model = warm_start(model, self._model, self._maps), None
        gc.collect()  # models are reference cycles; free the tables before training
        print(
            f"Warm start from {self.path}: copied the MLPs, the interaction and the "
            "state of their optimizer; the step count continues from "
            f"{report.iterations:,}. Rows of tables, with their optimizer state:\n"
            f"{report}",
            flush=True,
        )
        return {"first_step": self.first_step, "warm_started": report.describe()}


def find(
    path: str | os.PathLike | None, config: RunConfig, first_step: int | None = None
) -> ColdStart | PreviousRun:
    """Return the start of a run: a warm start from the run in `path`, or a cold start.

    Args:
        path: Folder of the previous run, or `None` for a cold start.
        config: Config of the run that starts.
        first_step: Number of steps of the previous run, if known.

    Raises:
        ValueError: If no run can start from the run in `path`.
    """
    return ColdStart() if path is None else PreviousRun(path, config, first_step)


def check(path, config: RunConfig) -> RunFolder:
    """Check that a run can start from the run in a folder, without loading it.

    Raises:
        ValueError: If it cannot; the message names each option that differs.
    """
    folder = RunFolder(path)
    folder.check()
    before = folder.read_config()
    differing = [
        f"`{name}` was {_format(getattr(before, name))}, now "
        f"{_format(getattr(config, name))}"
        for name in _SAME
        if getattr(before, name) != getattr(config, name)
        and not is_open(name, config, getattr(before, name))
    ]
    if differing:
        raise UserError(
            f"`warm_start`: the model of {path} has different options: "
            f"{'; '.join(differing)}. Leave them out to use the options of that run."
        )
    return folder


def _format(value) -> str:
    if isinstance(value, list | tuple):
        if len(set(value)) == 1:
            return f"{value[0]:,}"
        return json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
