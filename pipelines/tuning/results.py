"""The files and the table of a search."""

import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import tf_dlrm
from pipelines.runs.folder import RunFolder, write_json
from pipelines.text_tables import align
from pipelines.tuning import chart
from pipelines.tuning.space import Space
from pipelines.whole_files import write_csv

_MOST_ROWS = 10
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}
_SHARES = {None: "", 1: "1/9", 3: "1/3", 9: "all"}  # of a trial's rows


class SearchFiles:
    """Write `trials.csv`, `best.json` and `trials.png`, and keep the best model.

    Args:
        path: Folder of the search.
        space: The space.
        command: Command that trains the config in `best.json`.
        data: The facts that identify the data.

    Attributes:
        trials: The trials that ended, in order.
        best: The best of the complete trials, or `None`.
    """

    def __init__(
        self,
        path: pathlib.Path,
        space: Space,
        command: str,
        data: dict[str, Any],
    ):
        self._path, self._space, self._data = path, space, data
        self._monitor, self._command = space.base.monitor, command
        self.trials, self.best = [], None

    def write(self, trials: Sequence[Any]) -> None:
        """Write `trials.csv` and `best.json`.

        Args:
            trials: The trials of the study, as Optuna's `FrozenTrial`.
        """
        self.trials = [trial for trial in trials if trial.state.name in _STATES]
        self.best = min(self._complete(), key=self._rank, default=None)
        rows = [self._row(trial) for trial in self.trials]
        write_csv(self._path / "trials.csv", [self._head(), *rows], "the trials")
        for trial in self.trials:
            if trial is not self.best:
                self._drop_models(trial)
        if self.best is None:
            return
        content = {
            "tf_dlrm": tf_dlrm.__version__,
            "trial": self.best.number + 1,
            "monitor": self._monitor,
            "value": self.best.value,
            "command": self._command,
            "data": self._data,
            "config": self.best.user_attrs["config"],
        }
        write_json(self._path / "best.json", content)

    def draw(self) -> None:
        """Draw `trials.png`."""
        drawn = [trial for trial in self.trials if trial.state.name != "FAIL"]
        names, path = self._space.names, self._path / "trials.png"
        chart.draw(drawn, names, self._monitor, path)

    def table(self) -> list[str]:
        """Return the best trials as lines, the best first, and then what was pruned."""
        shown = sorted(self._complete(), key=self._rank)[:_MOST_ROWS]
        rows = [self._head()[:-1], *(self._row(trial)[:-1] for trial in shown)]
        kept = [0, 2, *range(4, len(rows[0]))]  # without state and share of the rows
        lines = align([[_short(row[i]) for i in kept] for row in rows])
        numbers = [
            f"{sum(t.state.name == name for t in self.trials):,} {text}"
            for name, text in _STATES.items()
        ]
        return [*lines, f"Trials: {', '.join(numbers)}"]

    def _complete(self):
        return [trial for trial in self.trials if trial.state.name == "COMPLETE"]

    def _rank(self, trial):
        return -trial.value if self._monitor == "auc" else trial.value

    def _head(self):
        names = ["trial", "state", self._monitor, "rows", "seconds"]
        return [*names, *self._space.names, "reason"]

    def _row(self, trial):
        step = trial.last_step
        value = "" if step is None else trial.intermediate_values[step]
        config = trial.user_attrs.get("config", {})
        return [
            trial.number + 1,
            _STATES[trial.state.name],
            value if trial.value is None else trial.value,
            _SHARES[step],
            trial.user_attrs.get("seconds", ""),
            *(_cell(config.get(name, "")) for name in self._space.names),
            trial.user_attrs.get("reason", ""),
        ]

    def _drop_models(self, trial):
        """Remove the large files of a trial; its logs and metrics stay."""
        folder = RunFolder(self._path / "trials" / f"{trial.number + 1:03d}")
        for path in (
            folder.model_path,
            folder.last_model_path,
            folder.best_model_path,
            folder.vocabulary_path,
        ):
            path.unlink(missing_ok=True)
        # Those of a pruned or failed trial are still there.
        shutil.rmtree(folder.checkpoint_dir, ignore_errors=True)


def _cell(value):
    return "-".join(map(str, value)) if isinstance(value, list | tuple) else value


def _short(value) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
