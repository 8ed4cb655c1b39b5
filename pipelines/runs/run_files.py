"""The layout of a run's folder, without importing TensorFlow."""

import json
import os
import pathlib
import typing
from typing import Any

from pipelines.runs.config import RunConfig
from pipelines.runtime import UserError, disk
from pipelines.value_types import check_types

_REQUIRED = ("config", "vocabulary_digest")
_PARTS = {
    "config": dict,
    "vocabulary_digest": str,
    "data": dict | None,
    "multi_hot": dict | None,
}
_DATA = {
    "records": str,
    "train": list[str],
    "valid": list[str],
    "vocabulary": str | None,
    "progressive": bool,
    "warm_start": str | None,
    "run": str | None,
    "devices": int,
    "rows_by_epoch": list[int] | None,
    "num_rows": int | None,
    "first_step": int | None,
    "negative_sampling_rate": float,
    "content": dict,
    "comparison": dict | None,
}
_TIMES = {
    "began": float,
    "seconds": float,
    "training_seconds": float,
    "waiting_seconds": float | None,
    "validation_seconds": float,
    "checkpoint_seconds": float,
    "checkpoint_seconds_within_epochs": float,
    "num_rows": int,
}


class RunFiles:
    """The paths of a run's files, and its `config.json`.

    Args:
        path: Path of the folder.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.config_path = self.path / "config.json"
        self.schema_path = self.path / "schema.json"
        self.vocabulary_path = self.path / "vocabulary.tsv"
        self.model_path = self.path / "model.keras"
        self.last_model_path = self.path / "model_last.keras"
        self.best_model_path = self.path / "model_best.keras"
        self.metrics_path = self.path / "metrics.json"
        self.history_path = self.path / "metrics.csv"
        self.steps_path = self.path / "steps.csv"
        self.times_path = self.path / "times.jsonl"
        self.bad_rows_path = self.path / "bad_rows.tsv"
        self.bad_valid_rows_path = self.path / "bad_rows_valid.tsv"
        self.plan_path = self.path / "plan.json"
        self.log_dir = self.path / "logs"
        self.checkpoint_dir = self.path / "checkpoints"
        self.evaluation_path = self.path / "evaluation.json"
        self.reliability_path = self.path / "evaluation_reliability.csv"

    def read_times(self) -> list[dict[str, Any]]:
        """Return the last line of each process in `times.jsonl`, parsed.

        Raises:
            ValueError: If the file is damaged.
        """
        try:
            lines = [json.loads(line) for line in read_whole_lines(self.times_path)]
            for line in lines:
                check_types(dict.fromkeys(_TIMES) | line, _TIMES)
            return list({line["began"]: line for line in lines}.values())
        except (ValueError, TypeError, RecursionError):
            raise UserError(f"{self.times_path} is damaged.") from None

    def other_model_path(self, saved: str) -> pathlib.Path:
        """Return the path of the second model, which exists if best and last differ.

        Args:
            saved: The model that the run saved in `model_path`: `"best"` or `"last"`.
        """
        return self.last_model_path if saved == "best" else self.best_model_path

    def read(self) -> dict[str, Any]:
        """Return the content of `config.json`.

        Raises:
            ValueError: If the folder is not that of a run, or the file is damaged.
        """
        if not self.config_path.exists():
            raise UserError(
                f"{self.path} is not the folder of a run: it contains no config.json."
            )
        content = disk.read_json(self.config_path)
        missing = [name for name in _REQUIRED if name not in content]
        if missing:
            raise UserError(f"{self.config_path} is damaged: it has no {missing[0]}.")
        try:
            check_types(content, _PARTS)
            check_types(content.get("data") or {}, _DATA)
            check_types(content["config"], typing.get_type_hints(RunConfig))
        except ValueError as error:
            raise UserError(f"{self.config_path} is damaged: {error}") from None
        return content

    @property
    def is_described(self) -> bool:
        """True if the folder contains a run, finished or not."""
        return self.config_path.exists()

    def read_data(self) -> dict[str, Any]:
        """Return the description of the run's data."""
        return self.read().get("data") or {}

    def read_config(self) -> RunConfig:
        """Return the run's config."""
        self.read()
        return RunConfig.load(self.config_path)


def read_whole_lines(path: pathlib.Path) -> list[str]:
    """Return the complete lines of a log; an empty list if the log is missing."""
    text = path.read_text("utf-8") if path.exists() else ""
    return [line for line in text.splitlines(keepends=True) if line.endswith("\n")]


def file_names(paths: str | list[str] | None) -> list[str]:
    """Return the last parts of paths, which the config of a run names."""
    paths = [paths] if isinstance(paths, str) else paths or []
    return [os.path.basename(path.rstrip("/")) for path in paths]
