"""Metrics of a run's model on labelled rows."""

from typing import NoReturn

from pipelines import records
from pipelines.evaluation import row_sources
from pipelines.evaluation.slices import SlicedEvaluation
from pipelines.files import Paths, expand_paths
from pipelines.formats.diagnosis import no_rows
from pipelines.formats.reading import read
from pipelines.log_data import (
    estimate_rows,
    expander_of,
    find_records,
    load_vocabulary,
    rate_of,
)
from pipelines.pipeline_errors import clear_errors
from pipelines.progress.fit import EvaluateProgress
from pipelines.quarantine import Quarantine
from pipelines.records.layout import Manifest
from pipelines.runtime import UserError


def evaluate(
    model,
    parser,
    paths: Paths,
    batch_size: int = 4096,
    quarantine: Quarantine | None = None,
    split: str = "test",
    slices: SlicedEvaluation | None = None,
) -> dict:
    """Return the metrics of a model on labelled rows, as a dict.

    Args:
        model: A compiled `DLRM`.
        parser: The parser with the vocabulary of the model.
        paths: Labelled files, or one folder of records.
        batch_size: Rows in a step.
        quarantine: Collects bad rows of files; default: `Quarantine()`.
        split: Name of the split, for records.
        slices: Slices to evaluate; they store their results. Default: none.

    Raises:
        ValueError: If there are no valid rows, if the records have another vocabulary
            than the model, or if the negatives of the split were sampled.
        pipelines.quarantine.BadRowsError: If too many rows are bad.
    """
    quarantine = Quarantine() if quarantine is None else quarantine
    folder = find_records(paths)
    if folder is not None:
        num_rows = check_records(folder, parser, split).num_rows(split)
    if slices is not None:
        results = slices.evaluate(model, parser, paths, batch_size, quarantine, split)
    else:
        if folder is not None:
            dataset = records.read(folder, batch_size, split=split)
            progress = EvaluateProgress(batch_size, num_rows, lambda: num_rows)
        else:
            dataset = read(paths, parser, batch_size, quarantine=quarantine)
            estimate = estimate_rows(paths)
            progress = EvaluateProgress(
                batch_size, estimate, lambda: quarantine.num_rows - quarantine.num_bad
            )
        with progress, clear_errors(quarantine):
            results = model.evaluate(
                dataset, verbose=0, return_dict=True, callbacks=[progress]
            )
    if folder is None:
        num_rows = quarantine.num_rows - quarantine.num_bad
    if not num_rows:
        refuse_empty(parser, paths, split)
    return {k: float(v) for k, v in results.items()} | {
        "num_rows": num_rows,
        "num_bad_rows": quarantine.num_bad,
    }


def refuse_empty(parser, paths: Paths, split: str) -> NoReturn:
    """Raise the error that files, or a split of records, contain no valid rows."""
    folder = find_records(paths)
    if folder is not None:
        raise UserError(f"The split {split!r} of {folder} contains no rows.")
    raise UserError(no_rows(expand_paths(paths), parser.vocabulary.schema))


def open_source(
    parser, paths: Paths, split: str, quarantine: Quarantine
) -> row_sources.Lines | row_sources.Records:
    """Return the rows of labelled files, or of a split of records.

    Raises:
        ValueError: If the records do not fit the model.
    """
    folder = find_records(paths)
    if folder is None:
        return row_sources.Lines(expand_paths(paths), parser, quarantine)
    check_records(folder, parser, split)
    return row_sources.Records(folder, split, parser.vocabulary)


def check_records(folder, parser, split):
    """Return the manifest of records after checking that they fit the model."""
    manifest = Manifest.load(folder)
    digest = manifest.vocabulary_digest
    if digest is None:
        digest = load_vocabulary(folder, manifest).digest
    if digest != parser.vocabulary.digest:
        raise UserError(
            f"{folder} was not prepared with the vocabulary of this model, so its ids "
            "mean other values. Prepare it with the vocabulary of the run."
        )
    if _bags(expander_of(manifest)) != _bags(parser.expander):
        raise UserError(
            f"{folder} was prepared with other bags (`multi_hot`) than this model "
            "was trained on. Prepare it with the options of the training records."
        )
    if split == "train" and rate_of(manifest) < 1:
        raise UserError(
            f"The negatives in the split 'train' of {folder} were sampled (at "
            f"negative_sampling_rate={rate_of(manifest):g}), so its metrics would not "
            "be those of all rows. Evaluate another split: those are not sampled."
        )
    return manifest


def _bags(expander):
    return None if expander is None else expander.get_config()
