"""The self-contained folder of a run: config, vocabulary, model, logs and results."""

import hashlib
import itertools
import json
import math
import os
import pathlib
import shutil
from typing import Any

import keras

import tf_dlrm
from pipelines import vocabulary as vocabularies
from pipelines.files import Paths, expand_paths
from pipelines.formats.parser import Parser
from pipelines.log_data import find_records
from pipelines.multi_hot import MultiHot
from pipelines.records.layout import MANIFEST
from pipelines.runs.config import RunConfig
from pipelines.runs.run_files import RunFiles
from pipelines.runtime import UserError, disk, remote_files
from pipelines.schema import Schema
from pipelines.whole_files import write_csv, write_text
from tf_dlrm.runtime import place
from tf_dlrm.training.checkpoints import CheckpointFolder

WHICH = ("saved", "best", "last")


class RunFolder(RunFiles):
    """The folder with all inputs and outputs of a run.

    It contains `config.json` (run and data), `schema.json` (the columns of its files),
    `vocabulary.tsv`, `model.keras` (and `model_last.keras` or `model_best.keras`, if
    the best model is not the last), `metrics.json`, `metrics.csv` (a line for each
    epoch), `steps.csv` (metrics by step), `times.jsonl`, `bad_rows.tsv`, `logs/`
    (TensorBoard), `plan.json` if tables were sharded, and `checkpoints/` during
    training.

    Args:
        path: Path of the folder.

    Raises:
        ValueError: When reading, if the folder is not a run or its files do not match.
    """

    def start(self) -> None:
        """Make the folder; replace an unfinished run that has no checkpoint.

        Raises:
            FileExistsError: If the folder contains a run that is finished or can be
                resumed.
        """
        if self.model_path.exists():
            raise FileExistsError(
                f"{self.path} already contains a run. Choose another `out`, or remove "
                "it."
            )
        if (self.path / MANIFEST).exists():
            raise FileExistsError(
                f"{self.path} contains prepared records, whose vocabulary the run "
                "would replace. Choose another `out`."
            )
        if CheckpointFolder(self.checkpoint_dir).names():
            raise FileExistsError(
                f"{self.path} contains an interrupted run. Resume it with "
                "`resume=True`, choose another `out`, or remove it."
            )
        self.path.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.log_dir, ignore_errors=True)
        for path in (
            self.config_path,
            self.metrics_path,
            self.history_path,
            self.steps_path,
            self.times_path,
            self.plan_path,
            self.last_model_path,
            self.best_model_path,
        ):
            path.unlink(missing_ok=True)

    def describe(
        self, config: RunConfig, data: dict[str, Any], vocabulary, expander=None
    ) -> None:
        """Write the config, schema and vocabulary, which are known before training.

        Args:
            config: Config of the run.
            data: JSON-safe description of the data.
            vocabulary: The vocabulary.
            expander: The `MultiHot` that expands the rows, or `None`.
        """
        vocabulary.save(self.vocabulary_path)
        vocabulary.schema.save(self.schema_path)
        content = {
            "tf_dlrm": tf_dlrm.__version__,
            "config": json.loads(config.to_json()),
            "data": data,
            "vocabulary_digest": vocabulary.digest,
            "multi_hot": None if expander is None else expander.get_config(),
        }
        write_json(self.config_path, content)

    @property
    def is_finished(self) -> bool:
        """True if the folder contains a finished run."""
        return self.model_path.exists() and self.metrics_path.exists()

    def was_trained_on(self, paths: Paths, split: str) -> bool:
        """Return whether the run is known to be trained on some of these rows.

        Files are recognized by name, or by name and content in another folder.

        Args:
            paths: Files, or one folder of records.
            split: Name of the split, for records.
        """
        data, records = self.read_data(), find_records(paths)
        if records is not None:
            is_own = data.get("records") == os.path.abspath(records)
            return is_own and split == "train"
        paths, trained = expand_paths(paths), data.get("train", [])
        if set(map(remote_files.absolute, paths)) & set(trained):
            return True
        known = {tuple(each) for each in data.get("content", {}).get("train", [])}
        return any(tuple(each) in known for each in disk.fingerprints(paths))

    def read_vocabulary(self):
        """Return the run's vocabulary.

        Raises:
            ValueError: If it is not the vocabulary that the run was trained with.
        """
        vocabulary = vocabularies.load(self.vocabulary_path)
        if vocabulary.digest != self.read()["vocabulary_digest"]:
            raise UserError(
                f"{self.vocabulary_path} is not the vocabulary that this run was "
                "trained with: its ids would mean other values."
            )
        return vocabulary

    def read_schema(self) -> Schema:
        """Return the schema of the run's files; Criteo's for a run without one."""
        if self.schema_path.exists():
            return Schema.load(self.schema_path)
        return Schema.criteo()

    def save_model(self, model, path=None) -> None:
        """Write a trained model; the file appears complete or not at all.

        Args:
            model: The model.
            path: File to write; default: the file of the run's model.
        """
        temporary = self.path / ".model.tmp.keras"
        path = path or self.model_path
        with disk.explaining("the model", path, also=(RuntimeError,)):
            try:
                model.save(temporary)
                if not place.place_of(model.distribute_strategy).is_chief:
                    return  # only the chief has written a file
                disk.sync(temporary)
                os.replace(temporary, path)
            finally:
                temporary.unlink(missing_ok=True)

    def check(self) -> None:
        """Check that this is the folder of a finished run, without loading it.

        Raises:
            ValueError: If it is not; the message names the missing file.
        """
        self.read()
        if not self.vocabulary_path.exists():
            raise UserError(f"{self.path} contains no vocabulary.tsv.")
        if not self.model_path.exists():
            raise UserError(
                f"{self.path} contains no trained model (model.keras): training has "
                "not finished."
            )

    def load_parser(self) -> Parser:
        """Return the parser with the run's vocabulary.

        Raises:
            ValueError: If it is not the vocabulary that the run was trained with.
        """
        content = self.read()
        vocabulary = self.read_vocabulary()
        expander = content.get("multi_hot")
        if expander is not None:
            try:
                expander = MultiHot.from_config(expander)
            except (TypeError, ValueError, KeyError) as error:
                raise UserError(
                    f"{self.config_path} is damaged: `multi_hot`: {error}"
                ) from None
        return Parser(vocabulary, expander=expander)

    def find_model(self, which: str = "saved") -> pathlib.Path:
        """Return the file of a model of the run, without loading it.

        Args:
            which: `"saved"` for the run's model, `"best"` or `"last"`.

        Raises:
            ValueError: If the run has no such model; the message says why.
        """
        self.check()
        if which not in WHICH:
            raise UserError(f"`which` must be one of {WHICH}. Received: {which!r}")
        results = self._read_results()
        saved = results.get("saved_model", "last")  # runs of earlier versions: last
        if which in ("saved", saved):
            return self.model_path
        if self.other_model_path(saved).exists():
            return self.other_model_path(saved)
        best, last = results.get("best"), results.get("last")
        if best is not None and best["step"] == last["step"]:
            return self.model_path
        raise UserError(
            f"{self.path} contains no {which} model, only the {saved} one: "
            + (
                "no validation on the same rows, with and without a click, selected a "
                "best one, or the version of tf_dlrm saved only the last."
                if best is None
                else f"{self.other_model_path(saved).name} is missing."
            )
        )

    def _read_results(self):
        try:
            return disk.read_json(self.metrics_path)
        except (OSError, ValueError):
            raise UserError(
                f"{self.metrics_path} is missing or damaged: training did not finish."
            ) from None

    def load_model(self, parser: Parser, which: str = "saved") -> tf_dlrm.DLRM:
        """Return a trained model.

        Args:
            parser: The parser with the run's vocabulary.
            which: `"saved"` for the run's model, `"best"` or `"last"`.

        Raises:
            ValueError: If there is no such model, it is not the one that the run wrote,
                or its tables do not match the vocabulary.
        """
        path = self.find_model(which)
        is_other = path != self.model_path
        key = "other_model_sha256" if is_other else "model_sha256"
        if self._read_results().get(key) != _sha256(path):
            raise UserError(
                f"{path} is not the model that this run wrote, or it is damaged."
            )
        model = keras.saving.load_model(path)
        rows, ids = _rows(model.spec), _rows(parser.spec())
        if rows != ids:
            raise UserError(
                f"The vocabulary {self.vocabulary_path} does not match the model "
                f"{path}: {sum(ids.values()):,} ids in {len(ids)} tables, "
                f"but {sum(rows.values()):,} rows in {len(rows)} tables."
            )
        return model

    def write_results(self, history: dict[str, list[float]], results: dict) -> None:
        """Write `metrics.csv`, a line for each epoch, and `metrics.json`."""
        # Some epochs may have no validation.
        lines = itertools.zip_longest(*history.values(), fillvalue="")
        rows = ([epoch, *values] for epoch, values in enumerate(lines, start=1))
        write_csv(self.history_path, [["epoch", *history], *rows], "the results")
        digests = {"model_sha256": _sha256(self.model_path)}
        other_path = self.other_model_path(results["saved_model"])
        if other_path.exists():
            digests["other_model_sha256"] = _sha256(other_path)
        write_json(self.metrics_path, {**results, **digests})


def write_json(path, content) -> None:
    """Write JSON text; the file appears complete or not at all.

    A number that is not finite, such as the AUC of rows without a click, is null.
    """
    text = json.dumps(_to_json_safe(content), indent=2, allow_nan=False)
    write_text(path, text + "\n")


def _to_json_safe(value):
    """Return a value with `None` for each number that is not finite."""
    if isinstance(value, dict):
        return {name: _to_json_safe(member) for name, member in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json_safe(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rows(spec) -> dict[str, int]:
    return {table.name: table.vocabulary_size for table in spec.tables}


def _sha256(path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
