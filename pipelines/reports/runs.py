"""`Run`: the content of a run's folder, finished or not."""

import csv
import dataclasses
import itertools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

from pipelines.runs.config import RunConfig
from pipelines.runs.run_files import RunFiles, file_names, read_whole_lines
from pipelines.runtime import UserError, disk
from pipelines.value_types import check_types

_LONGEST_NAME = 28
_BIN_COLUMNS = {"num_rows", "predicted", "observed", "observed_low", "observed_high"}
_RESULTS = {
    "metrics": dict,
    "num_rows": int,
    "seconds": float,
    "training_seconds": float,
    "validation_seconds": float,
    "samples_per_second": float,
    "checkpoint_seconds": list[float],
    "days": list,
}


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, to compare with other runs.

    Attributes:
        files: The `RunFiles` of the run.
        name: The last parts of its path that distinguish it from the other runs.
        label: The name, with its middle left out if the result is still distinct.
        options: Its config and data as a flat dict.
        rows_by_epoch: Number of rows in each epoch, counted before training; empty if
            not known.
        first_step: Number of steps of the run that it was warm-started from; its own
            steps continue from there.
        results: `metrics.json`, or `None` if training is not finished.
        history: A dict for each line of `metrics.csv`.
        evaluation: `evaluation.json`, or `None`.
        bins: Rows of `evaluation_reliability.csv` as numbers; empty if a column is
            missing.
        steps: A dict for each row of `steps.csv`.
        processes: Seconds spent by each process, from `times.jsonl`: one for each time
            that the run was started or resumed.
        trace: Folder of the newest profile, or `None`.
    """

    files: RunFiles
    name: str
    label: str
    options: dict[str, Any]
    rows_by_epoch: list[int]
    first_step: int
    results: dict[str, Any] | None
    history: list[dict[str, float | None]]
    evaluation: dict[str, Any] | None
    bins: list[dict[str, float]]
    steps: list[dict[str, float | None]]
    processes: list[dict[str, Any]]
    trace: pathlib.Path | None

    @property
    def is_finished(self) -> bool:
        """True if training is finished."""
        return self.results is not None

    @property
    def batch_size(self) -> int:
        """Number of rows in a step."""
        return self.options["batch_size"]

    @property
    def epoch_ends(self) -> list[int]:
        """The last step of each epoch, including epochs that are not trained yet."""
        steps = [math.ceil(rows / self.batch_size) for rows in self.rows_by_epoch]
        return list(itertools.accumulate(steps, initial=self.first_step))[1:]

    @property
    def last_step(self) -> int:
        """The last step in the logs, or without logs, the end of the last epoch."""
        steps = [int(row["step"]) for row in self.steps if row.get("loss") is not None]
        return max(steps or [self.first_step, *self.epoch_ends[: len(self.history)]])

    @property
    def num_epochs(self) -> float | None:
        """Number of epochs so far, or `None` if their length is not known."""
        if self.is_finished and not self.results.get("stopped"):
            return float(len(self.history))
        before, done, last = self.first_step, 0.0, self.last_step
        for end in self.epoch_ends:
            done += min(max(last - before, 0) / max(end - before, 1), 1.0)
            before = end
        return done if self.epoch_ends else None

    def scalars(self, part: str, metric: str) -> dict[int, float]:
        """Return the curve of a metric by step, for `"train"` or `"validation"`.

        Without `steps.csv` it has a value for each epoch, from `metrics.csv`.
        """
        name = metric if part == "train" else f"val_{metric}"
        for rows in (
            [(int(row["step"]), row) for row in self.steps],
            zip(self.epoch_ends, self.history),
        ):
            curve = {end: row[name] for end, row in rows if row.get(name) is not None}
            if curve:
                return curve
        return {}


def read_runs(paths: Sequence) -> list[Run]:
    """Read the folders of runs.

    Args:
        paths: The folders.

    Raises:
        ValueError: If a folder is not a run, is listed twice, or contains a damaged
            file.
    """
    folders = [pathlib.Path(path) for path in paths]
    for i, folder in enumerate(folders):
        if folder.resolve() in [each.resolve() for each in folders[:i]]:
            raise UserError(f"The run {folder} is listed twice; name it once.")
    names = name_folders(folders)
    labels = [shorten(name) for name in names]
    if len(set(labels)) < len(labels):
        labels = names
    return [_read(*each) for each in zip(folders, names, labels)]


def find_run(folder) -> RunFiles:
    """Return the files of a run.

    Raises:
        ValueError: If the folder is not a run; the message suggests runs inside it.
    """
    files = RunFiles(folder)
    if not files.path.is_dir():
        raise UserError(f"There is no folder {files.path}.")
    if not files.config_path.exists():
        within = sorted(path.parent for path in files.path.glob("*/config.json"))
        if within:
            raise UserError(
                f"{files.path} is not a run, but contains runs: name {within[0]}"
                + (f", or {files.path}/*" if len(within) > 1 else "")
            )
    files.read()
    return files


def name_folders(folders: Sequence[pathlib.Path]) -> list[str]:
    """Return short distinct names of folders: the ends of their paths."""
    parts = [folder.resolve().parts for folder in folders]
    for number in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(each[-number:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return names


def shorten(text: str, longest: int = _LONGEST_NAME) -> str:
    """Return a text, without its middle if it is too long."""
    if len(text) <= longest:
        return text
    end = (longest - 1) // 2
    return f"{text[: longest - 1 - end]}…{text[-end:]}"


def _read(folder, name, label):
    files = find_run(folder)
    content = files.read()
    data = content.get("data") or {}
    results = _read_json(files.metrics_path)
    traces = sorted(files.log_dir.rglob("*.xplane.pb"), key=lambda path: path.parts)
    run = Run(
        files,
        name,
        label,
        _options(content, data),
        _rows_by_epoch(content["config"], data, results),
        data.get("first_step") or 0,
        results,
        _read_csv(files.history_path) if results else [],
        _read_json(files.evaluation_path),
        _read_bins(files.reliability_path),
        _read_csv(files.steps_path),
        files.read_times(),
        traces[-1].parent if traces else None,
    )
    for path, found, names in (
        (files.config_path, content["config"], ("batch_size", "epochs")),
        (files.metrics_path, results, ("metrics", "num_rows", "seconds")),
        (files.evaluation_path, run.evaluation, ("auc", "num_rows")),
        (files.steps_path, run.steps[0] if run.steps else None, ("step",)),
    ):
        missing = [name for name in names if found is not None and name not in found]
        if missing:
            raise UserError(f"{path} is damaged: it has no {missing[0]}.")
    return run


def _rows_by_epoch(config, data, results):
    rows = data.get("rows_by_epoch")
    if rows is None:  # the run is of an earlier version
        rows = data.get("num_rows") or (results or {}).get("num_rows")
        rows = [rows] * config.get("epochs", 1) if rows else []
    return rows


def _options(content, data):
    """Return the options by name, with files as names without folders.

    Options that are newer than the run have the values that correspond to its version.
    """
    options = {**json.loads(RunConfig.from_json("{}").to_json()), **content["config"]}
    if "negative_sampling_rate" in data:  # also set if `prepare` sampled
        options["negative_sampling_rate"] = data["negative_sampling_rate"]
    options["train"] = file_names(data.get("records") or data.get("train"))
    options["valid"] = file_names(data.get("records") or data.get("valid"))
    options["progressive"] = bool(data.get("progressive"))
    options["warm_start"] = file_names(data.get("warm_start"))
    options["vocabulary"] = file_names(data.get("vocabulary"))
    options["devices"] = data.get("devices", 1)
    for name, value in (content.get("multi_hot") or {"hotness": 1}).items():
        if name != "vocabulary_sizes":
            options[f"multi_hot_{name}"] = value
    options["tf_dlrm"] = content.get("tf_dlrm")
    return options


def _read_json(path):
    if not path.exists():
        return None
    content = disk.read_json(path)
    try:
        check_types(content, _RESULTS)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return content


def _read_bins(path):
    rows = _read_csv(path)
    return rows if rows and _BIN_COLUMNS <= rows[0].keys() else []


def _read_csv(path):
    try:
        return [
            {name: float(v) if v != "" else None for name, v in line.items()}
            for line in csv.DictReader(read_whole_lines(path))
        ]
    except (ValueError, TypeError):
        raise UserError(f"{path} is damaged.") from None
