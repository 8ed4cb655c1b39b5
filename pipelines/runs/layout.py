"""What lies where in the folder of a run. Nothing here imports TensorFlow."""

import json
import pathlib
from typing import Any


class RunFiles:
    """The paths of a run's files, and its `config.json`.

    Args:
        path: The folder.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.config_path = self.path / "config.json"
        self.vocabulary_path = self.path / "vocabulary.tsv"
        self.model_path = self.path / "model.keras"
        self.last_model_path = self.path / "model_last.keras"
        self.best_model_path = self.path / "model_best.keras"
        self.metrics_path = self.path / "metrics.json"
        self.history_path = self.path / "metrics.csv"
        self.bad_rows_path = self.path / "bad_rows.tsv"
        self.bad_valid_rows_path = self.path / "bad_rows_valid.tsv"
        self.plan_path = self.path / "plan.json"
        self.log_dir = self.path / "logs"
        self.checkpoint_dir = self.path / "checkpoints"
        self.evaluation_path = self.path / "evaluation.json"
        self.reliability_path = self.path / "evaluation_reliability.csv"

    def other_model_path(self, saved: str) -> pathlib.Path:
        """Path of the model that is not the run's, where best and last differ.

        Args:
            saved: Which one is the run's in `model_path`: `"best"` or `"last"`.
        """
        return self.last_model_path if saved == "best" else self.best_model_path

    def read(self) -> dict[str, Any]:
        """Returns the content of `config.json`.

        Raises:
            ValueError: If this is no folder of a run, or the file is damaged.
        """
        if not self.config_path.exists():
            raise ValueError(f"{self.path} is not the folder of a run: no config.json.")
        try:
            content = json.loads(self.config_path.read_text(encoding="utf-8"))
            content["config"], content["vocabulary_digest"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self.config_path} is damaged.") from None
        return content
