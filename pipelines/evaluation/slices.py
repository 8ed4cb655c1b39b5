"""Evaluate a model by slices: metrics for each value of a column, and GAUC.

The rows are read once. Each column takes eight bytes per row, and AUCs are exact.
"""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from pipelines.evaluation import row_sources, slice_columns
from pipelines.evaluation.slice_columns import FILE, check_name, period_of
from pipelines.evaluation.slice_report import METRICS, OTHER, sum_up, table
from pipelines.files import expand_paths
from pipelines.log_data import find_records
from pipelines.progress import bar
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.whole_files import write_text
from tf_dlrm import training
from tf_dlrm.metrics import GroupAUC, GroupedRows, Slices


class SlicedEvaluation:
    """An evaluation by slices: the columns, and the results.

    Args:
        columns: Names of columns; for the event time, also `time:day`, `time:hour` and
            `time:hour_of_day`, in UTC.
        group: Column whose values are the groups of GAUC, or `None`.
        min_rows: Rows that a value needs to get its own slice; all other values share
            one.

    Attributes:
        slices: The `Slices` of each column, the largest first; of days and hours, in
            order of time.
        gauc: The `GroupAUC`, or `None`.

    Raises:
        ValueError: If a column is named twice; from `check`, if it does not exist.
    """

    def __init__(
        self, columns: Sequence[str] = (), group: str | None = None, min_rows: int = 1
    ):
        if len(set(columns)) < len(columns):
            raise UserError(
                f"`columns` must name each column once. Received: {' '.join(columns)}"
            )
        if min_rows < 1:
            raise UserError(f"`min_rows` must be at least 1. Received: {min_rows}")
        self.columns, self.group, self._min_rows = tuple(columns), group, min_rows
        self.slices: dict[str, Slices] = {}
        self._periods: set[str] = set()
        self._values: dict[str, Any] = {}
        self._rows: dict[str, GroupedRows] = {}
        self.gauc: GroupAUC | None = None

    def check(self, schema: Schema) -> None:
        """Check that a schema has the columns.

        Raises:
            ValueError: If it does not; the message names the columns.
        """
        if schema.label.soft and (self.columns or self.group):
            raise UserError(
                "Slices and GAUC need labels that are 0 or 1, but the schema has soft "
                "labels. Leave `columns` and `group` out."
            )
        for name in self.columns:
            check_name("columns", name, schema)
        if self.group:
            check_name("group", self.group, schema)

    def evaluate(
        self, model, parser, paths, batch_size: int, quarantine, split: str
    ) -> dict[str, float]:
        """Evaluate a model once, on all rows and by slices.

        Args:
            model: A compiled `DLRM`.
            parser: The parser with the vocabulary of the model.
            paths: Labelled files, or one folder of records.
            batch_size: Rows in a step.
            quarantine: Collects bad rows of files.
            split: Name of the split, for records.

        Returns:
            The metrics of the model, as `model.evaluate` returns them.
        """
        schema = parser.vocabulary.schema
        folder = find_records(paths)
        if folder is None:
            others = self.other_columns(schema)
            source = row_sources.Lines(expand_paths(paths), parser, quarantine, others)
        else:
            source = row_sources.Records(folder, split, parser.vocabulary)
        self.open(source, schema)
        model.reset_metrics()
        training.build_metrics(model)
        step, losses, num_rows = _make_step(model, source, schema), 0.0, 0
        with bar("Evaluating", source.num_rows) as update:
            for block, batch in source:
                predictions = []
                for first in range(0, len(batch.labels), batch_size):
                    tensors = row_sources.tensors(batch, first, first + batch_size)
                    batch_predictions, loss = step(*tensors)
                    predictions.append(batch_predictions.numpy())
                    losses += float(loss) * len(predictions[-1])
                predictions = np.concatenate([np.zeros(0, np.float32), *predictions])
                self.add(block, batch, batch.labels, predictions)
                num_rows += len(predictions)
                update(num_rows)
        quarantine.check()
        gauc = self.close()
        metrics = {k: float(v) for k, v in model.get_metrics_result().items()}
        return {**metrics, "loss": losses / max(num_rows, 1), **gauc}

    @property
    def _names(self):
        return list(dict.fromkeys([*self.columns, *([self.group] * bool(self.group))]))

    def other_columns(self, schema: Schema) -> tuple[str, ...]:
        """Return the columns of files that are not features or periods."""
        features = {FILE, *schema.dense_features, *schema.sparse_features}
        return tuple(
            name
            for name in self._names
            if name not in features and not period_of(name, schema)
        )

    def open(self, source, schema: Schema) -> None:
        """Start to collect predictions.

        Args:
            source: The `row_sources.Lines` or `Records` of the rows.
            schema: The columns.

        Raises:
            ValueError: If there is no such column.
        """
        self.check(schema)
        self._periods = {name for name in self.columns if period_of(name, schema)}
        self._values = {name: source.column(name) for name in self._names}
        self._rows = {name: GroupedRows() for name in self._names}

    def add(self, block, batch, labels: np.ndarray, predictions: np.ndarray) -> None:
        """Add rows.

        Args:
            block: The `Block` of the rows, if they come from files.
            batch: The `Batch` of the rows, if they come from records.
            labels: Labels `(n,)`.
            predictions: Predictions `(n,)`.
        """
        for name, column in self._values.items():
            of_rows, codes = slice_columns.once_a_row(column.read(block, batch))
            self._rows[name].add(labels[of_rows], predictions[of_rows], codes)

    def close(self) -> dict[str, float]:
        """Compute the slices; return GAUC as a metric, if there is one."""
        for name in self.columns:
            slices = self._rows[name].slices()
            self.slices[name] = self._in_order(slices, self._values[name])
        if self.group:
            self.gauc = self._rows[self.group].gauc()
        return self._describe_gauc()

    def _in_order(self, slices, column):
        """Return slices with names: the largest first, or periods in order of time."""
        order = np.argsort(-slices.num_rows, kind="stable")
        large = order[slices.num_rows[order] >= self._min_rows]
        other = slices.take(order[len(large) :])
        names = np.array(column.names(large), object)
        if isinstance(column, slice_columns.Times):
            by_time = np.argsort(names)
            large, names = large[by_time], names[by_time]
        large = slices.take(large)
        columns = [names, *(getattr(large, name) for name in METRICS)]
        if other.num_rows.any():
            last = [OTHER, *sum_up(other)]
            columns = [np.append(c, [x]) for c, x in zip(columns, last, strict=True)]
        return Slices(*columns)

    def _describe_gauc(self) -> dict[str, float]:
        """Return GAUC as a metric; empty if no group has rows of both classes."""
        if self.gauc is None or math.isnan(self.gauc.value):
            return {}
        return {"gauc": self.gauc.value, "gauc_share_of_rows": self.gauc.share_of_rows}

    def describe(self) -> dict[str, Any]:
        """Return JSON-safe facts for `evaluation.json`."""
        facts = {}
        if self.columns:
            facts["slices"] = list(self.columns)
        if self.gauc is not None:
            facts["gauc_by"] = self.group
            facts["gauc_groups"] = self.gauc.num_groups
            facts["gauc_groups_left_out"] = self.gauc.num_groups_left_out
        return facts

    def write_csv(self, path) -> None:
        """Write a line for each value of each column; undefined metrics are empty."""
        file = io.StringIO(newline="")
        writer = csv.writer(file)
        writer.writerow(["column", "value", *METRICS])
        for name, slices in self.slices.items():
            columns = [slices.groups.tolist()]
            for each in METRICS:
                values = getattr(slices, each).tolist()
                columns.append(["" if math.isnan(v) else v for v in values])
            writer.writerows([name, *line] for line in zip(*columns, strict=True))
        write_text(path, file.getvalue())

    def print(self) -> None:
        """Print the largest slices of each column, the worst ones, and GAUC."""
        for name, slices in self.slices.items():
            print("\n".join(["", *table(name, slices, name in self._periods)]))
        if self.gauc is not None:
            print(f"\n{self._say_gauc()}")

    def _say_gauc(self):
        gauc = self.gauc
        num_values = gauc.num_groups + gauc.num_groups_left_out
        if not gauc.num_groups:
            return (
                f"GAUC by {self.group}: undefined, as none of the {num_values:,} "
                "values has both rows with and without a click."
            )
        text = (
            f"GAUC by {self.group}: {gauc.value:.5f}, the mean AUC of "
            f"{gauc.num_groups:,} of {num_values:,} values, weighted by rows; they "
            f"have {gauc.share_of_rows:.1%} of all rows."
        )
        if gauc.num_groups_left_out:
            text += " The other values have no clicks, or only clicks."
        return text


def _make_step(model, source, schema):
    """Return a function of a batch that returns predictions and the mean loss."""

    @tf.function(
        input_signature=row_sources.signature(model.spec.num_dense), autograph=False
    )
    def step(dense, ids, splits, id_weights, label, weights):
        features = row_sources.make_features(
            schema, source.expand, dense, ids, splits, id_weights
        )
        predictions = model(features, training=False)
        label = label[:, None]
        weights = weights if schema.weight is not None else None
        loss = model.compute_loss(
            features, label, predictions, sample_weight=weights, training=False
        )
        model.compute_metrics(features, label, predictions, sample_weight=weights)
        return predictions[:, 0], loss

    return step
