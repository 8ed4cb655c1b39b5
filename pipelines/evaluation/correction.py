"""Fit a correction of a model's probabilities on validation rows, and show its effect.

# n rows
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from pipelines.evaluation import reliability_chart, row_sources
from pipelines.evaluation.evaluation import open_source, refuse_empty
from pipelines.evaluation.permutation_importance import score
from pipelines.evaluation.reliability import NUM_BINS, Reliability, from_histogram
from pipelines.files import Paths
from pipelines.progress import bar
from pipelines.quarantine import Quarantine
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.text_tables import align
from tf_dlrm.calibration import Correction, SlicedCorrection, first_ids, fit_correction

_NAMES = {"log_loss": "log loss", "calibration": "calibration", "auc": "AUC"}
_BATCH_SIZE = 4096


@dataclasses.dataclass(frozen=True)
class FittedCorrection:
    """A correction, and its effect on rows that it was not fitted on.

    The figures after the correction come from two more fits: each half of the rows is
    corrected by the fit of the other half.

    Attributes:
        correction: The correction, fitted on all rows.
        before: `log_loss`, `calibration` (mean prediction over click rate) and `auc`
            of the model's predictions.
        after: The same of corrected predictions.
        reliability: The `Reliability` before and after the correction.
        num_rows: Number of rows.
    """

    correction: Correction | SlicedCorrection
    before: dict[str, float]
    after: dict[str, float]
    reliability: tuple[Reliability, Reliability]
    num_rows: int

    def describe(self) -> dict[str, Any]:
        """Return JSON-safe facts."""
        errors = [each.expected_calibration_error for each in self.reliability]
        return {
            "correction": self.correction.describe(),
            "num_rows": self.num_rows,
            "before": self.before | {"expected_calibration_error": errors[0]},
            "after": self.after | {"expected_calibration_error": errors[1]},
        }

    def write(self, stem: str) -> list[str]:
        """Write predicted and observed click rates, and their diagram.

        Args:
            stem: Beginning of the paths of `*_before.csv`, `*_after.csv` and `*.png`.

        Returns:
            The paths.
        """
        pathlib.Path(stem).parent.mkdir(parents=True, exist_ok=True)
        before, after = self.reliability
        paths = [f"{stem}{ending}" for ending in ENDINGS]
        before.write_csv(paths[0])
        after.write_csv(paths[1])
        curves = []
        for name, color, each, figures in (
            ("before", reliability_chart.BEFORE, before, self.before),
            ("after", reliability_chart.MODEL, after, self.after),
        ):
            label = f"{name}: {figures['calibration']:.3f}"
            curves.append((label, color, [vars(b) for b in each.bins]))
        reliability_chart.compare(curves, paths[2])
        return paths

    def table(self) -> list[str]:
        """Return the figures before and after as lines."""
        rows = [
            [text, f"{self.before[name]:.5f}", f"{self.after[name]:.5f}"]
            for name, text in _NAMES.items()
        ]
        return align([["metric", "before", "after"], *rows])


ENDINGS = ("_before.csv", "_after.csv", ".png")


def fit_on_rows(
    model,
    parser,
    paths: Paths,
    method: str = "isotonic",
    slice_feature: str | None = None,
    min_slice_rows: int = 10_000,
    split: str = "valid",
    quarantine: Quarantine | None = None,
) -> FittedCorrection:
    """Score labelled rows with a model, and fit a correction on them.

    It takes 20 bytes of memory for each row.

    Args:
        model: A `DLRM`.
        parser: The parser with the vocabulary of the model.
        paths: Labelled files that the model was not trained on, or one folder of
            records.
        method: `"isotonic"` or `"platt"`, see `tf_dlrm.calibration.fit_correction`.
        slice_feature: Categorical feature whose values get a correction each.
        min_slice_rows: Rows that a value needs for a correction of its own.
        split: Name of the split, for records.
        quarantine: Collects bad rows of files; default: `Quarantine()`.

    Raises:
        ValueError: If there are no valid rows, the records do not fit the model, the
            feature is not one of the model, or the rows cannot be fitted.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    quarantine = Quarantine() if quarantine is None else quarantine
    schema = parser.vocabulary.schema
    check(schema, slice_feature)
    rows = _score(model, parser, paths, slice_feature, split, quarantine)
    labels, predictions, ids, weights = rows
    options = {"method": method, "min_slice_rows": min_slice_rows}

    def fit(which, **more):
        slices = {}
        if slice_feature is not None:
            slices = {"slice_feature": slice_feature, "slice_ids": ids[which]}
        weight = None if weights is None else weights[which]
        return fit_correction(
            labels[which],
            predictions[which],
            sample_weight=weight,
            **slices,
            **{**options, **more},
        )

    correction = fit(slice(None))
    # Halves with equal shares of clicks and of each slice.
    order = np.lexsort((labels, ids))
    corrected = np.empty_like(predictions)
    for fitted, other in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        half = fit(fitted, min_slice_rows=max(min_slice_rows // 2, 1))
        slices = () if slice_feature is None else (ids[other],)
        corrected[other] = half(predictions[other], *slices)
    columns = predictions, corrected
    before, after = (_figures(labels, p, weights) for p in columns)
    reliability = tuple(_reliability(labels, p, weights) for p in columns)
    return FittedCorrection(correction, before, after, reliability, len(labels))


def check(schema: Schema, slice_feature: str | None) -> None:
    """Check that slices are by a categorical feature.

    Raises:
        ValueError: If they are not; the message names the features.
    """
    features = schema.sparse_features
    if slice_feature is not None and slice_feature not in features:
        raise UserError(
            "`slice_feature` must be a categorical feature of the model: "
            f"{', '.join(features[:60])}. Received: {slice_feature}"
        )


def _score(model, parser, paths, slice_feature, split, quarantine):
    """Return labels, predictions, ids of slices and weights (or `None`), `(n,)`."""
    schema = parser.vocabulary.schema
    source = open_source(parser, paths, split, quarantine)
    column, pieces, num_rows = 0, [], 0
    if slice_feature is not None:
        column = model.spec.sparse_features.index(slice_feature)

    def add_ids(features, predictions):
        return predictions, first_ids(features["sparse_features"], column)

    step = row_sources.make_step(model, schema, source.expand, add_ids)
    with bar("Scoring", source.num_rows) as update:
        for _, batch in source:
            for first in range(0, len(batch.labels), _BATCH_SIZE):
                tensors = row_sources.tensors(batch, first, first + _BATCH_SIZE)
                predictions, ids = step(*tensors[:4])
                pieces.append((*tensors[4:], predictions.numpy(), ids.numpy()))
            num_rows += len(batch.labels)
            update(num_rows)
    quarantine.check()
    if not num_rows:
        refuse_empty(parser, paths, split)
    labels, weights, predictions, ids = map(np.concatenate, zip(*pieces, strict=True))
    return labels, predictions, ids, None if schema.weight is None else weights


def _figures(labels, predictions, weights):
    log_loss, auc = score(labels, predictions, weights)
    means = (np.average(each, weights=weights) for each in (predictions, labels))
    predicted, observed = map(float, means)
    return {"log_loss": log_loss, "calibration": predicted / observed, "auc": auc}


def _reliability(labels, predictions, weights):
    weights = np.ones(len(labels)) if weights is None else weights
    p, places = np.unique(predictions.astype(np.float64), return_inverse=True)
    positives = np.bincount(places, weights * labels)
    negatives = np.bincount(places, weights * (1 - labels))
    with np.errstate(divide="ignore"):  # the logits of 0 and 1
        logits = np.log(p) - np.log1p(-p)
    return from_histogram(logits, negatives, positives, NUM_BINS)
