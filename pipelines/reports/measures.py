"""Measures of runs, which are the columns of the table, and their best values."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from pipelines.reports.runs import Run
from pipelines.reports.times import Times


@dataclasses.dataclass(frozen=True)
class Measure:
    """A column of the table.

    Attributes:
        name: Name in `report.csv` and `report.json`.
        title: Title of the column in two lines.
        text: Function that returns a value as text.
        loss: Function that is smallest for the best value; `None`: no value is better.
    """

    name: str
    title: tuple[str, str]
    text: Callable[[Any], str]
    loss: Callable[[float], float] | None = None


def _number(digits):
    return lambda value: f"{value:,.{digits}f}"


def _percent(value):
    return f"{100 * value:.1f}%"


def _lowest(value):
    return value


def _highest(value):
    return -value


def _nearest_to_one(value):
    return abs(math.log(value)) if value > 0 else math.inf


QUALITY = (
    Measure("training_loss", ("training", "loss"), _number(4), _lowest),
    Measure("validation_auc", ("validation", "AUC"), _number(4), _highest),
    Measure("validation_log_loss", ("validation", "log loss"), _number(4), _lowest),
    Measure(
        "validation_normalized_entropy",
        ("validation", "norm. entropy"),
        _number(4),
        _lowest,
    ),
    Measure(
        "validation_calibration",
        ("validation", "calibration"),
        _number(3),
        _nearest_to_one,
    ),
    Measure("test_auc", ("test", "AUC"), _number(4), _highest),
)
TIME = (
    Measure("rows", ("", "rows"), _number(0)),
    Measure("epochs", ("", "epochs"), lambda value: f"{value:.3g}"),
    Measure("minutes", ("", "minutes"), _number(1)),
    Measure("samples_per_second", ("", "rows/s"), _number(0), _highest),
    Measure("input_wait_share", ("waiting", "for input"), _percent),
    Measure("checkpoint_seconds", ("writing", "checkpoints"), lambda x: f"{x:.1f} s"),
)
MEASURES = (*QUALITY, *TIME)


def measure(run: Run, times: Times) -> dict[str, float | None]:
    """Return the value of each of `MEASURES`, `None` for those that the run lacks.

    Metrics of an unfinished run are the last ones in its logs.

    Args:
        run: The run.
        times: The `Times` of the run.
    """
    found = {
        "training_loss": _last(run, "train", "loss"),
        **{
            f"validation_{name}": _last(run, "validation", name)
            for name in ("auc", "log_loss", "normalized_entropy", "calibration")
        },
        "test_auc": finite((run.evaluation or {}).get("auc")),
        "rows": _rows(run),
        "epochs": run.num_epochs,
        "minutes": None if times.total is None else times.total / 60,
        "samples_per_second": times.samples_per_second,
        "input_wait_share": times.input_wait_share,
        "checkpoint_seconds": times.saved,
    }
    return {each.name: found[each.name] for each in MEASURES}


def find_best(
    values: list[dict[str, float | None]], without: tuple[str, ...] = ()
) -> dict[str, list[int]]:
    """Return the runs with the best value of each measure, rounded as in the table.

    Args:
        values: The result of `measure` for each run.
        without: Measures that cannot be compared.

    Returns:
        Indices of runs by measure, for measures with at least two different values.
    """
    best = {}
    for each in MEASURES:
        known = {i: v[each.name] for i, v in enumerate(values)}
        known = {i: value for i, value in known.items() if value is not None}
        shown = {i: each.text(value) for i, value in known.items()}
        if each.loss is None or each.name in without or len(set(shown.values())) < 2:
            continue
        first = min(known, key=lambda i: each.loss(known[i]))
        best[each.name] = [i for i in known if shown[i] == shown[first]]
    return best


def find_differing(runs: list[Run]) -> list[str]:
    """Return the names of the options that differ between runs."""
    names = {name: None for run in runs for name in run.options}
    return [
        name
        for name in names
        if any(run.options.get(name) != runs[0].options.get(name) for run in runs)
    ]


def finite(value: float | None) -> float | None:
    """Return a finite number unchanged, and `None` for anything else."""
    return None if value is None or not math.isfinite(value) else float(value)


def _last(run, part, metric):
    """Return the saved model's value in `metrics.json`, or the last one in the logs."""
    if run.is_finished:
        name = metric if part == "train" else f"val_{metric}"
        return finite(run.results["metrics"].get(name))
    curve = run.scalars(part, metric)
    return finite(curve[max(curve)]) if curve else None


def _rows(run):
    """Return the number of rows of an epoch, or of all days."""
    if run.is_finished:
        return run.results["num_rows"]
    if run.options["progressive"]:
        return sum(run.rows_by_epoch)
    return run.rows_by_epoch[0] if run.rows_by_epoch else None
