"""Metrics of an exported model on labelled files, through its signature for lines.

The parser and any correction of probabilities in the export take part, as in serving.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipelines.evaluation import row_sources
from pipelines.evaluation.reliability import Reliability, from_histogram
from pipelines.evaluation.slices import SlicedEvaluation
from pipelines.files import Paths, expand_paths
from pipelines.formats.diagnosis import no_rows
from pipelines.formats.layout import Wanted
from pipelines.formats.lines import LineMaker
from pipelines.formats.scanning import scan
from pipelines.log_data import estimate_rows, find_records
from pipelines.progress import bar
from pipelines.quarantine import Quarantine
from pipelines.runtime import UserError
from pipelines.schema import Schema
from pipelines.scoring import Model
from tf_dlrm.metrics import ClickAUC, click_metrics


class _Columns(NamedTuple):
    """The part of a vocabulary that columns need to be read, without its numbers."""

    schema: Schema
    learned: dict = {}


class _Unnumbered(NamedTuple):
    vocabulary: _Columns
    expand: None


def check_slices(slices: SlicedEvaluation, schema: Schema) -> None:
    """Check that an export, which has no vocabulary file, can be sliced by columns.

    Raises:
        ValueError: If it cannot; the message names the column.
    """
    slices.check(schema)
    asked = (*slices.columns, slices.group)
    for feature in schema.sparse:
        if feature.name in asked and feature.buckets == "quantile":
            raise UserError(
                f"{feature.name} has buckets that were learned, which are only in the "
                "run: evaluate the run to slice by them."
            )


def evaluate_export(
    model: Model,
    paths: Paths,
    quarantine: Quarantine | None = None,
    slices: SlicedEvaluation | None = None,
) -> tuple[dict[str, float], Reliability]:
    """Return the metrics of an exported model on labelled files, and its reliability.

    Args:
        model: The model, as `pipelines.scoring.load` returns it.
        paths: Labelled files.
        quarantine: Collects bad rows; default: `Quarantine()`.
        slices: Slices to evaluate; they store their results. Default: none.

    Raises:
        ValueError: If there are no valid rows, or the input is a folder of records.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    quarantine = Quarantine() if quarantine is None else quarantine
    if (records := find_records(paths)) is not None:
        raise UserError(
            f"{records} contains records, whose ids an exported model does not take: "
            "evaluate the files that they were prepared from."
        )
    paths, schema, wanted = expand_paths(paths), model.schema, Wanted()
    if slices is not None:
        check_slices(slices, schema)
        wanted = Wanted(others=slices.other_columns(schema))
        unnumbered = _Unnumbered(_Columns(schema), None)
        slices.open(row_sources.Lines(paths, unnumbered, quarantine), schema)
    metrics = [
        m for m in click_metrics() if not schema.label.soft or m.name != "accuracy"
    ]

    def score(rows, source):
        """Return predictions for the valid rows of a block."""
        maker = LineMaker(source.layout, source.is_table)
        text, _, is_line, *_ = maker(source.content)
        lines = tf.raw_ops.StringSplitV2(input=[text.removesuffix(b"\n")], sep="\n")
        is_good = np.ones(rows.num_lines, bool)
        is_good[[position for position, *_ in rows.bad]] = False
        if is_line is not None:  # only these rows have a line
            is_good = is_good[is_line]
        if not is_good.any():
            return np.zeros(0, np.float32)
        return model.score(tf.boolean_mask(lines.values, is_good))

    num_rows = 0
    with bar("Evaluating", estimate_rows(paths)) as update:
        for block in scan(paths, quarantine, schema, wanted, make_lines=score):
            labels, weights = block.rows.labels, block.rows.weights
            predictions = block.made
            for metric in metrics:
                metric.update_state(
                    labels.astype(np.float32)[:, None],
                    predictions[:, None],
                    sample_weight=weights,
                )
            if slices is not None:
                slices.add(block, None, labels, predictions)
            num_rows += len(predictions)
            update(num_rows)
    quarantine.check()
    if not num_rows:
        raise UserError(no_rows(paths, schema))
    results = {metric.name: float(metric.result()) for metric in metrics}
    if slices is not None:
        results |= slices.close()
    (auc,) = (metric for metric in metrics if isinstance(metric, ClickAUC))
    counts = {"num_rows": num_rows, "num_bad_rows": quarantine.num_bad}
    return results | counts, from_histogram(*auc.histogram())
