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

from pipelines.evaluation import slice_columns
from pipelines.evaluation.slice_columns import FILE, check_name
from pipelines.evaluation.slice_report import METRICS, OTHER, sum_up, table
from pipelines.files import expand_paths
from pipelines.formats.encoding import encode
from pipelines.formats.layout import Wanted
from pipelines.formats.scanning import scan
from pipelines.log_data import expander_of, find_records
from pipelines.progress import bar
from pipelines.records.batch import Batch, concatenate, cut
from pipelines.records.layout import Manifest
from pipelines.records.record_batches import open_rows
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.whole_files import write_text
from tf_dlrm import training
from tf_dlrm.metrics import GroupAUC, GroupedRows, Slices

_BLOCK_ROWS = 1 << 15


class SlicedEvaluation:
    """An evaluation by slices: the columns, and the results.

    Args:
        columns: Names of columns.
        group: Column whose values are the groups of GAUC, or `None`.
        min_rows: Rows that a value needs to get its own slice; all other values share
            one.

    Attributes:
        slices: The `Slices` of each column, the largest first.
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
        self.check(schema)
        folder = find_records(paths)
        if folder is None:
            asked = dict.fromkeys([*self.columns, *([self.group] * bool(self.group))])
            features = {FILE, *schema.dense_features, *schema.sparse_features}
            others = tuple(name for name in asked if name not in features)
            source = _Lines(expand_paths(paths), parser, quarantine, others)
        else:
            source = _Records(folder, split, parser.vocabulary)
        names = dict.fromkeys([*self.columns, *([self.group] if self.group else [])])
        columns = {name: source.column(name) for name in names}
        rows = {name: GroupedRows() for name in names}
        model.reset_metrics()
        training.build_metrics(model)
        step, losses, num_rows = _make_step(model, source, schema), 0.0, 0
        with bar("Evaluating", source.num_rows, "samples") as update:
            for block, batch in source:
                predictions = []
                for first in range(0, len(batch.labels), batch_size):
                    tensors = _tensors(batch, first, first + batch_size)
                    batch_predictions, loss = step(*tensors)
                    predictions.append(batch_predictions.numpy())
                    losses += float(loss) * len(predictions[-1])
                predictions = np.concatenate([np.zeros(0, np.float32), *predictions])
                for name, column in columns.items():
                    of_rows, codes = slice_columns.once_a_row(column.read(block, batch))
                    labels = batch.labels[of_rows]
                    rows[name].add(labels, predictions[of_rows], codes)
                num_rows += len(predictions)
                update(num_rows)
        quarantine.check()
        for name in self.columns:
            self.slices[name] = self._largest_first(rows[name].slices(), columns[name])
        if self.group:
            self.gauc = rows[self.group].gauc()
        metrics = {k: float(v) for k, v in model.get_metrics_result().items()}
        return {**metrics, "loss": losses / max(num_rows, 1), **self._describe_gauc()}

    def _largest_first(self, slices, column):
        order = np.argsort(-slices.num_rows, kind="stable")
        large = order[slices.num_rows[order] >= self._min_rows]
        other = slices.take(order[len(large) :])
        names = np.array(column.names(large), object)
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
            print("\n".join(["", *table(name, slices)]))
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


class _Lines:
    """Files of lines, as blocks with their rows."""

    num_rows = None

    def __init__(self, paths, parser, quarantine, others):
        self._paths, self._quarantine = paths, quarantine
        self._vocabulary, self.expand = parser.vocabulary, parser.expand
        self._wanted = Wanted(others=others)

    def column(self, name):
        vocabulary = self._vocabulary
        schema = vocabulary.schema
        if name == FILE:
            return slice_columns.Files(self._paths)
        if name in schema.dense_features:
            return slice_columns.NumberBins(name, schema, is_transformed=False)
        return slice_columns.TextValues(name, schema, vocabulary.learned)

    def __iter__(self):
        def number(rows):
            return encode(rows, self._vocabulary)

        blocks = scan(
            self._paths,
            self._quarantine,
            self._vocabulary.schema,
            self._wanted,
            make=number,
        )
        for block in blocks:
            yield block, block.made


class _Records:
    """A split of records, as blocks of some rows."""

    def __init__(self, folder, split, vocabulary):
        self._manifest = Manifest.load(folder)
        self._store = open_rows(folder, self._manifest, split)
        self._folder, self._vocabulary = folder, vocabulary
        self.num_rows = self._store.num_rows

    def expand(self, features):
        return features  # `prepare` already expanded the rows

    def column(self, name):
        if name == FILE:
            raise UserError(
                f"Records do not contain the file of a row: leave {FILE} out, or "
                f"evaluate the original files. Received: {self._folder}"
            )
        schema = self._vocabulary.schema
        if name in schema.dense_features:
            return slice_columns.NumberBins(name, schema, is_transformed=True)
        if name not in schema.sparse_features:
            raise UserError(
                f"Records contain only the columns that the model reads, and {name} is "
                "not one of them: evaluate the original files. Received: "
                f"{self._folder}"
            )
        position = self._manifest.schema.sparse.index(name)
        is_expanded = expander_of(self._manifest) is not None
        return slice_columns.IdValues(name, position, self._vocabulary, is_expanded)

    def __iter__(self):
        for first in range(0, self.num_rows, _BLOCK_ROWS):
            last = min(first + _BLOCK_ROWS, self.num_rows)
            yield None, concatenate(self._store.read(first, last))


def _tensors(batch: Batch, first, last):
    """Return rows `first` .. `last - 1` as the tensors that the step takes."""
    id_ends = None
    if batch.lengths is not None:
        counts = batch.lengths.sum(1, dtype=np.int64)
        id_ends = np.concatenate([[0], np.cumsum(counts)])
    part = cut(batch, id_ends, first, last)
    ids, lengths = part.ids, part.lengths
    if lengths is None:  # missing ids are empty bags
        lengths = ids >= 0
        ids = ids[lengths]
    splits = np.concatenate([[0], np.cumsum(lengths.reshape(-1), dtype=np.int64)])
    id_weights, weights = part.id_weights, part.weights
    if id_weights is None:
        id_weights = np.ones(len(ids), np.float32)
    if weights is None:
        weights = np.ones(len(part.labels), np.float32)
    labels = part.labels.astype(np.float32)
    return part.dense, ids.astype(np.int64), splits, id_weights, labels, weights


def _make_step(model, source, schema):
    """Return a function of a batch that returns predictions and the mean loss."""
    num_dense, num_sparse = model.spec.num_dense, len(model.spec.sparse_features)
    numbers, ids = tf.TensorSpec((None,), tf.float32), tf.TensorSpec((None,), tf.int64)
    dense = tf.TensorSpec((None, num_dense), tf.float32)

    @tf.function(
        input_signature=[dense, ids, ids, numbers, numbers, numbers], autograph=False
    )
    def step(dense, ids, splits, id_weights, label, weights):
        num_rows = tf.shape(label, tf.int64)[0]

        def bags(values):
            bags = tf.RaggedTensor.from_row_splits(values, splits, validate=False)
            return tf.RaggedTensor.from_uniform_row_length(
                bags, num_sparse, nrows=num_rows
            )

        features = {"sparse_features": bags(ids)}
        if num_dense:
            features["dense_features"] = dense
        if schema.has_id_weights:
            features["sparse_weights"] = bags(id_weights)
        features = source.expand(features)
        predictions = model(features, training=False)
        label = label[:, None]
        weights = weights if schema.weight is not None else None
        loss = model.compute_loss(
            features, label, predictions, sample_weight=weights, training=False
        )
        model.compute_metrics(features, label, predictions, sample_weight=weights)
        return predictions[:, 0], loss

    return step
