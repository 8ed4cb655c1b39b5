"""A run that goes on from an earlier one, with another vocabulary."""

import gc
import json
import os

import numpy as np

from pipelines.criteo import Parser
from pipelines.criteo.fields import Values
from pipelines.criteo.format import SPARSE_FEATURES
from pipelines.runs.config import RunConfig
from pipelines.runs.folder import RunFolder
from pipelines.vocabulary import HashVocabulary, Vocabulary
from tf_dlrm.training import WarmStartResult, warm_start

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
    """Where the ids of each feature go when another vocabulary numbers its values.

    Id 0, of empty and unknown values, stays.

    Args:
        old: The vocabulary that the rows were numbered by.
        new: The one that numbers them now.

    Returns:
        Of each feature an integer array `(ids of the old one,)`: the id in the new one,
        -1 where the value has none. For `tf_dlrm.training.warm_start`.

    Raises:
        ValueError: If one hashes and the other does not, or they hash into other
            numbers of buckets: then ids have nothing to do with each other.

    Example:

    >>> from pipelines.runs import row_maps
    >>> from pipelines.vocabulary import Vocabulary
    >>> yesterday = Vocabulary([[b"a", b"b", b"c"]] + [[]] * 25)
    >>> today = Vocabulary([[b"c", b"d", b"a"]] + [[]] * 25)
    >>> row_maps(yesterday, today)["C1"]
    array([ 0,  3, -1,  1])
    """
    if isinstance(old, HashVocabulary) != isinstance(new, HashVocabulary):
        kinds = [
            "hashes" if isinstance(each, HashVocabulary) else "lists values"
            for each in (old, new)
        ]
        raise ValueError(
            f"A vocabulary that {kinds[0]} and one that {kinds[1]} have no ids in "
            "common: --hash-buckets must be given in both runs, or in none."
        )
    if isinstance(old, HashVocabulary):
        if old.sizes != new.sizes:
            raise ValueError(
                "Hashing into another number of buckets gives every value another id: "
                f"--hash-buckets was {_shown(old.sizes)}, is {_shown(new.sizes)}."
            )
        return {
            table.name: np.arange(table.vocabulary_size)
            for table in Parser(old).spec(embedding_dim=1).tables
        }
    maps = {}
    for name, before, now in zip(
        SPARSE_FEATURES, old.numberings, new.numberings, strict=True
    ):
        before, now = before.load(), now.load()
        found = now.find(Values(None, None, before.keys, before.texts))
        moved = np.zeros(1 + len(before), np.int64)
        ids = np.concatenate([before.key_ids, before.text_ids])
        moved[ids] = np.where(found > 0, found, -1)
        maps[name] = moved
    return maps


class EarlierRun:
    """The finished run that another one goes on from.

    Args:
        path: Its folder.
        config: The config of the run that goes on from it.
        iterations: Its number of steps where that is known; else its model is loaded
            now. Not under a strategy, which would make copies of it.

    Attributes:
        iterations: Steps that it was trained for.

    Raises:
        ValueError: If it is no finished run, or of another architecture; each option
            that differs is named.
    """

    def __init__(self, path, config: RunConfig, iterations: int | None = None):
        self.path, self.iterations = os.path.abspath(path), iterations
        self._folder, self._model = check(path, config), None
        if iterations is None:
            self._load()
            self.iterations = int(self._model.optimizer.iterations.numpy())

    def _load(self):
        self._model = self._folder.load_model(self._folder.load_parser())

    def row_maps(self, vocabulary) -> dict[str, np.ndarray]:
        """Where its rows go in tables of this vocabulary."""
        return row_maps(self._folder.read_vocabulary(), vocabulary)

    def start(self, model, maps: dict[str, np.ndarray]) -> WarmStartResult:
        """Gives a new model what it has learned, says so, and lets go of its own.

        Args:
            model: The new model, compiled.
            maps: As of `row_maps`.
        """
        if self._model is None:
            self._load()
        report, self._model = warm_start(model, self._model, maps), None
        gc.collect()  # models are cycles; the tables should be gone before the training
        print(
            f"Warm start from {self.path}: MLPs, interaction and the state of their "
            f"optimizer as they were; steps count on from {report.iterations:,}. Rows "
            f"of tables, with their state:\n{report}",
            flush=True,
        )
        return report


def check(path, config: RunConfig) -> RunFolder:
    """Looks whether a run can go on from the one in a folder, without loading it.

    Raises:
        ValueError: If not.
    """
    folder = RunFolder(path)
    folder.check()
    before = folder.read_config()
    differing = [
        f"--{name.replace('_', '-')} was {_shown(getattr(before, name))}, is "
        f"{_shown(getattr(config, name))}"
        for name in _SAME
        if getattr(before, name) != getattr(config, name)
    ]
    if differing:
        raise ValueError(
            f"--warm-start {path} holds a run of another kind: {'; '.join(differing)}. "
            "Leave them out: options start from those of that run."
        )
    return folder


def _shown(value) -> str:
    if isinstance(value, list | tuple):
        if len(set(value)) == 1 and len(value) == len(SPARSE_FEATURES):
            return f"{value[0]:,}"
        return json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else str(value)
