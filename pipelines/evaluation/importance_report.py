"""The importance of features as a table, CSV and JSON."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from pipelines.text_tables import align
from pipelines.whole_files import write_csv

_MOST_LINES = 60
_COLUMNS = (
    "name",
    "kind",
    "log_loss_increase",
    "log_loss_deviation",
    "auc_decrease",
    "auc_deviation",
    "taylor_first_order",
    "taylor_second_order",
)


@dataclasses.dataclass(frozen=True)
class FeatureImportance:
    """Importance of a feature, or of a group of features.

    Attributes:
        name: Name of the feature or group.
        kind: `"dense"`, `"sparse"` or `"group"`.
        features: The features whose values were shuffled.
        log_losses: Increase of the log loss in each repeat; positive if the model
            needs the feature.
        aucs: Decrease of the AUC in each repeat; NaN if labels are of one class.
        taylor_first_order: Score from one backward pass: mean of -g (m - e), where e is
            the vector of a row, m their mean, and g the gradient of the loss.
        taylor_second_order: Estimated increase of the log loss, from the same pass.
    """

    name: str
    kind: str
    features: tuple[str, ...]
    log_losses: tuple[float, ...]
    aucs: tuple[float, ...]
    taylor_first_order: float
    taylor_second_order: float

    @property
    def log_loss_increase(self) -> float:
        """Mean increase of the log loss."""
        return float(np.mean(self.log_losses))

    @property
    def log_loss_deviation(self) -> float:
        """Standard deviation of the log loss over the repeats."""
        return float(np.std(self.log_losses))

    @property
    def auc_decrease(self) -> float:
        """Mean decrease of the AUC."""
        return float(np.mean(self.aucs))

    @property
    def auc_deviation(self) -> float:
        """Standard deviation of the AUC over the repeats."""
        return float(np.std(self.aucs))


@dataclasses.dataclass(frozen=True)
class Importance:
    """Importance of the features of a model.

    Attributes:
        features: The `FeatureImportance` of each feature, the largest increase of the
            log loss first.
        groups: The `FeatureImportance` of each group, in the same order.
        log_loss: Log loss of the rows as they are.
        auc: AUC of the rows as they are; NaN if labels are of one class.
        num_rows: Number of rows.
        are_all_rows: Whether these are all rows of the input.
        num_bytes: Size of the rows in memory, in bytes.
        repeats: Number of times that each feature was shuffled.
        seed: Seed of the permutations.
    """

    features: tuple[FeatureImportance, ...]
    groups: tuple[FeatureImportance, ...]
    log_loss: float
    auc: float
    num_rows: int
    are_all_rows: bool
    num_bytes: int
    repeats: int
    seed: int

    def describe(self) -> dict[str, Any]:
        """Return JSON-safe facts for `importance.json`; an undefined AUC is `None`."""
        facts = dataclasses.asdict(self)
        facts["auc"] = _number(self.auc)
        for kind in ("features", "groups"):
            facts[kind] = [_describe(entry) for entry in getattr(self, kind)]
        return facts

    def write_csv(self, path) -> None:
        """Write a line for each feature and group; an undefined AUC is empty."""
        facts = [_describe(entry) for entry in (*self.features, *self.groups)]
        write_csv(path, [_COLUMNS, *([f[name] for name in _COLUMNS] for f in facts)])

    def table(self) -> Iterator[str]:
        """Yield the lines of a table for a terminal, the most important first."""
        which = "all" if self.are_all_rows else "the first"
        times = "once" if self.repeats == 1 else f"{self.repeats} times"
        yield (
            f"Each feature shuffled {times} over {which} {self.num_rows:,} rows "
            f"({self.num_bytes / 1e6:,.1f} MB in memory). Log loss "
            f"{self.log_loss:.5f}, AUC {_text(self.auc, '.5f')} unshuffled."
        )
        yield from _lines("feature", self.features)
        left_out = len(self.features) - _MOST_LINES
        if left_out > 0:
            yield f"and {left_out:,} features of less importance"
        if self.groups:
            yield ""
            yield from _lines("group", self.groups)


def _describe(entry):
    facts = {name: getattr(entry, name) for name in _COLUMNS}
    facts |= {"features": list(entry.features), "log_losses": list(entry.log_losses)}
    facts["aucs"] = [_number(value) for value in entry.aucs]
    for name in ("auc_decrease", "auc_deviation"):
        facts[name] = _number(facts[name])
    return facts


def _number(value):
    return None if math.isnan(value) else value


def _text(value, form):
    return "-" if math.isnan(value) else format(value, form)


def _lines(title, entries):
    rows = [[title, "log loss", "±", "AUC", "±", "estimate"]]
    for entry in entries[:_MOST_LINES]:
        rows.append(
            [
                entry.name,
                f"{entry.log_loss_increase:+.5f}",
                f"{entry.log_loss_deviation:.5f}",
                _text(-entry.auc_decrease, "+.5f"),
                _text(entry.auc_deviation, ".5f"),
                f"{entry.taylor_second_order:+.5f}",
            ]
        )
    return align(rows)
